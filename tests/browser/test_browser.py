# SPDX-License-Identifier: LGPL-2.1-or-later
"""The widgets in a real browser, driven from inside the machine: it has no network but its own loopback."""

from __future__ import annotations

import pytest

from tests.browser.machine import HOME
from tests.houses.container import Container


@pytest.mark.parametrize("what", ["widgets", "examples", "admin"])
def test_in_a_browser(machine: Container, what: str) -> None:
    files = f"tests/browser/check_{what}.py"
    argv = ["python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5", files]
    done = machine.run(argv, user="alice", cwd=HOME, check=False, timeout=300)
    assert done.returncode == 0, done.stdout
