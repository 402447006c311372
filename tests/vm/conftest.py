# SPDX-License-Identifier: LGPL-2.1-or-later
"""The virtual machine for the VM tests: Debian 13, booted once for all of them."""

from collections.abc import Iterator

import pytest

from tests.houses import package
from tests.houses.vm import VM


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "vm":
            item.add_marker("vm")


@pytest.fixture(scope="session")
def bare_vm() -> Iterator[VM]:
    """A virtual machine as it comes out of the image, shared; tests of the house run first."""
    with VM(13) as machine:
        yield machine


@pytest.fixture(scope="session")
def vm(bare_vm: VM) -> VM:
    """The same machine with bgtaskd installed."""
    package.install(bare_vm)
    return bare_vm
