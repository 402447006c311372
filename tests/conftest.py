# SPDX-License-Identifier: LGPL-2.1-or-later
"""What system and VM tests share: when one fails, the journal of its machine is shown."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.houses.machine import Machine, MachineError

# How fast this machine is at the moment is not what the properties are about.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

JOURNAL_LINES = 200
BEGAN = pytest.StashKey[float]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[BEGAN] = time.time()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome: Any = yield
    report: pytest.TestReport = outcome.get_result()
    if report.failed and report.when in ("setup", "call"):
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Machine):
                report.sections.append((f"journal of {value.name}", journal(item, value)))


def journal(item: pytest.Item, machine: Machine) -> str:
    """What the machine logged during the test; its console if it cannot say."""
    since = f"@{item.stash[BEGAN] - 1:.0f}"
    try:
        return machine.journal("--since", since, f"--lines={JOURNAL_LINES}")
    except (MachineError, OSError):
        return machine.console()
