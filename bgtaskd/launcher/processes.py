# SPDX-License-Identifier: LGPL-2.1-or-later
"""The `process` way to launch, for machines without systemd: a session and its process group a task.

The same five verbs as ``scopes``, on whatever belongs to the task's session. A process that makes a
session of its own escapes: only a cgroup misses nobody.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any, Final

from bgtaskd.launcher.proc import session_members, start_time

ROUNDS: Final = 100


class Processes:
    """Tasks as sessions. ``leader_of`` gives the task's own pid, if it still is that process."""

    version = 0

    def __init__(self, leader_of: Callable[[str], int | None]) -> None:
        self._leader_of = leader_of
        self._kills: list[tuple[float, str]] = []

    def fileno(self) -> int:
        """Nothing comes in."""
        return -1

    def process(self) -> None:
        """Nothing comes in."""

    def start_scope(self, unit: str, properties: list[Any], done: Callable[[str], None]) -> None:
        """There is nothing to make: the session exists."""
        done("done")

    def wait(self) -> None:
        """Nothing comes in."""

    def tick(self) -> float | None:
        """Kill what outlived its grace; when the next one is due (monotonic), if any."""
        now = time.monotonic()
        for when, unit in self._kills:
            if when <= now:
                self.kill(unit, signal.SIGKILL)
        self._kills = [one for one in self._kills if one[0] > now]
        return min((when for when, _ in self._kills), default=None)

    def stop_empty(self, unit: str) -> None:
        """There is no unit that could be in the way."""

    def stop(self, unit: str, grace: float) -> None:
        """SIGTERM to all; SIGKILL after ``grace`` seconds."""
        self.kill(unit, signal.SIGTERM)
        self.kill(unit, signal.SIGCONT)
        self._kills.append((time.monotonic() + grace, unit))

    def kill(self, unit: str, number: int) -> None:
        """A signal to all processes of the session."""
        leader = self._leader_of(unit)
        if leader is not None:
            signal_session(leader, number)

    def freeze(self, unit: str) -> None:
        """SIGSTOP to all."""
        self.kill(unit, signal.SIGSTOP)

    def thaw(self, unit: str) -> None:
        """SIGCONT to all."""
        self.kill(unit, signal.SIGCONT)

    def set_properties(self, unit: str, properties: list[Any]) -> None:
        """Without cgroups there are no limits to set."""


def signal_session(session: int, number: int) -> None:
    """Signal every process of a session; with what none survives, until a round finds no new one.

    Not so with what can be survived: who forks on SIGTERM would keep us here for ever.
    """
    done: set[tuple[int, int | None]] = set()
    for _ in range(ROUNDS if number in (signal.SIGKILL, signal.SIGSTOP) else 1):
        fresh = {(pid, start_time(pid)) for pid in session_members(session)} - done
        if not fresh:
            return
        for pid, _ in fresh:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        done |= fresh
