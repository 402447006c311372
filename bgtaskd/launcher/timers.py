# SPDX-License-Identifier: LGPL-2.1-or-later
"""Schedules' timers: transient units of systemd's, which start bgtask-schedule@NAME.service."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from typing import Any, Final

from bgtaskd.launcher.messages import ID_MAX, BadMessage, SystemdError, integer, is_plain, text
from bgtaskd.launcher.scopes import NO_SUCH_UNIT, Property, Scopes

NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
NAMES_MAX: Final = 10_000
CALENDARS_MAX: Final = 16
STOP_SECONDS: Final = 5.0
NEVER: Final = (1 << 64) - 1


def unit_of(message: Mapping[str, Any]) -> str:
    """The timer that a request is about. Raises BadMessage."""
    return _unit(text(message, "name", 64))


def _unit(name: str) -> str:
    if not NAME.fullmatch(name):
        raise BadMessage("name", "letters, digits, _ and - only")
    return f"bgtask-schedule@{name}.timer"


def arm(systemd: Scopes, message: Mapping[str, Any]) -> None:
    """Have the timer as asked for; one that is so already is left alone. Raises BadMessage, SystemdError."""
    unit = unit_of(message)
    calendar = message.get("calendar")
    if (
        not isinstance(calendar, list)
        or not 1 <= len(calendar) <= CALENDARS_MAX
        or not all(is_plain(one) and len(one) <= 200 for one in calendar)
    ):
        raise BadMessage("calendar", f"a list of 1 to {CALENDARS_MAX} expressions")
    persistent = message.get("persistent", False)
    if type(persistent) is not bool:
        raise BadMessage("persistent", "true or false")
    delay = integer(message, "randomized_delay_usec", 0, ID_MAX)
    asked = json.dumps([calendar, persistent, delay])
    import hashlib  # it brings OpenSSL, 3 MiB that most launchers never need

    description = f"bgtaskd schedule ({hashlib.sha256(asked.encode()).hexdigest()[:16]})"
    if systemd.unit_property(unit, "Unit", "ActiveState") == "active":
        if systemd.unit_property(unit, "Unit", "Description") == description:
            return
        _check(systemd, unit, calendar)
        disarm(systemd, unit)
    properties: list[Property] = [
        ("Description", "s", description),
        ("TimersCalendar", "a(ss)", [("OnCalendar", one) for one in calendar]),
        ("Persistent", "b", persistent),
        ("RandomizedDelayUSec", "t", delay),
        ("AccuracyUSec", "t", 1_000_000),
        ("CollectMode", "s", "inactive-or-failed"),
    ]
    systemd.start_unit(unit, properties)


def _check(systemd: Scopes, unit: str, calendar: list[str]) -> None:
    """Before the old timer is given up: whether systemd takes the new one. Raises SystemdError."""
    probe = f"bgtask-schedule-check@{unit.partition('@')[2]}"
    # It elapses never: the check is of the expressions, each of them, and nothing is to be started.
    properties: list[Property] = [
        ("TimersCalendar", "a(ss)", [("OnCalendar", one) for one in calendar])
    ]
    systemd.start_unit(probe, properties)
    disarm(systemd, probe)


def disarm(systemd: Scopes, unit: str) -> None:
    """Stop the timer, and wait until it is gone. Raises SystemdError."""
    deadline = time.monotonic() + STOP_SECONDS
    while True:
        try:
            systemd.stop(unit, 0)
        except SystemdError as error:
            if error.name == NO_SUCH_UNIT:
                return
            raise
        if systemd.unit_property(unit, "Unit", "ActiveState") in ("inactive", None):
            return
        if time.monotonic() > deadline:
            raise SystemdError("Timeout", f"{unit} does not stop")
        time.sleep(0.01)


def times(systemd: Scopes, message: Mapping[str, Any]) -> dict[str, dict[str, int | None]]:
    """When timers will elapse next and did last, in microseconds since the epoch. Raises BadMessage."""
    names = message.get("names")
    if not isinstance(names, list) or len(names) > NAMES_MAX:
        raise BadMessage("names", f"a list of at most {NAMES_MAX} names")
    out = {}
    for name in names:
        unit = _unit(name) if isinstance(name, str) else _unit("")
        out[name] = {
            key: _moment(systemd.unit_property(unit, "Timer", member, "t"))
            for key, member in (("next", "NextElapseUSecRealtime"), ("last", "LastTriggerUSec"))
        }
    return out


def _moment(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 < value < NEVER else None
