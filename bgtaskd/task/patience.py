# SPDX-License-Identifier: LGPL-2.1-or-later
"""A daemon that is being restarted ends no task: calls that may be repeated wait for it."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Final, TypeVar

from bgtaskd.errors import NotReachable

Value = TypeVar("Value")
GIVE_UP_SECONDS: Final = 60.0
AGAIN_SECONDS: Final = (0.05, 0.1, 0.2, 0.5)
THERE_SECONDS: Final = 2.0
"""A call that took so long before its connection broke had reached the daemon."""


def patiently(
    call: Callable[[], Value], seconds: float = GIVE_UP_SECONDS, end: float | None = None
) -> Value:
    """Call until the daemon answers. Raises NotReachable when it has been away for so long.

    ``end``: on the clock of time.monotonic(), when to stop trying earlier. What will not get better by
    waiting (no right to the socket) is raised at once.
    """
    away = None
    tries = 0
    while True:
        began = time.monotonic()
        try:
            return call()
        except NotReachable as error:
            now = time.monotonic()
            if away is None or now - began > THERE_SECONDS:
                away, tries = now, 0
            if error.errno == errno.EACCES or now - away > seconds or (end and now >= end):
                raise
        # With systemd this is hardly a poll: it holds the socket, and the next connect just waits.
        time.sleep(AGAIN_SECONDS[min(tries, len(AGAIN_SECONDS) - 1)])
        tries += 1
