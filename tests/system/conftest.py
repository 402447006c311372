# SPDX-License-Identifier: LGPL-2.1-or-later
"""Containers for the system tests, each on Debian 12 and on Debian 13."""

from collections.abc import Iterator

import pytest

from tests.houses import package
from tests.houses.container import Container

IDS = ["debian12", "debian13"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "system":
            item.add_marker("system")


@pytest.fixture(scope="module", params=[12, 13], ids=IDS)
def machine(request: pytest.FixtureRequest) -> Iterator[Container]:
    """A container with bgtaskd installed; one for all tests of a module. Leave it as it was."""
    with Container(request.param) as container:
        package.install(container)
        yield container


@pytest.fixture(params=[12, 13], ids=IDS)
def fresh_machine(request: pytest.FixtureRequest) -> Iterator[Container]:
    """A container with bgtaskd just installed, for one test alone to do with as it likes."""
    with Container(request.param) as container:
        package.install(container)
        yield container
