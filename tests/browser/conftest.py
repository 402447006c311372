# SPDX-License-Identifier: LGPL-2.1-or-later
"""A machine with a browser in it. Debian 12 alone: what is tried here is the browser's side."""

from collections.abc import Iterator

import pytest

from tests.browser.machine import prepare
from tests.houses.container import Container


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "browser":
            item.add_marker("system")


@pytest.fixture(scope="session")
def machine() -> Iterator[Container]:
    """bgtaskd and Chromium; alice, who may restart services, has this folder's files at home."""
    with Container(12, browser=True) as container:
        prepare(container)
        yield container
