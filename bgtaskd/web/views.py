# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a page is told of a task: what its widgets need and nothing else. Pure, but for acceptable_wait()."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from bgtaskd.client.task import Seconds, TaskInfo
from bgtaskd.errors import TimedOut

if TYPE_CHECKING:
    from bgtaskd.task.status import TaskStatus

MESSAGE_MAX: Final = 1000
"""Characters. A page is no log."""
GUESS_PERCENT: Final = 1.0
GUESS_SECONDS: Final = 2.0
"""Nothing is said of the time that remains before so much was done, in so much time."""


class Sight(str, Enum):
    """What there is to see where there is no task."""

    NONE = "none"
    """No task of that name."""
    GONE = "gone"
    """It was removed."""
    UNREACHABLE = "unreachable"
    """The daemon is away, so nobody knows."""


def view(
    seen: TaskInfo | Sight, may: Collection[str] = (), now: float | None = None
) -> dict[str, Any]:
    """A task as status/REF has it, plain JSON. ``now``: seconds since the epoch.

    ``elapsed, remaining, delay`` are seconds as of now: the clock of a browser is anybody's guess.
    """
    if isinstance(seen, Sight):
        return {"state": seen.value}
    now_usec = round((time.time() if now is None else now) * 1e6)
    elapsed = None
    if seen.started is not None:
        elapsed = max(0.0, ((seen.ended or now_usec) - seen.started) / 1e6)
    remaining = None
    percent = seen.percent or 0.0
    if seen.state == "running" and (elapsed or 0.0) >= GUESS_SECONDS and percent >= GUESS_PERCENT:
        remaining = (elapsed or 0.0) * (100.0 - percent) / percent
    delay = None
    if seen.state == "delayed" and seen.not_before is not None:
        delay = max(0.0, (seen.not_before - now_usec) / 1e6)
    return {
        "state": seen.state,
        "result": seen.result if seen.is_ended() else None,
        "name": seen.name,
        "percent": seen.percent,
        "finished": seen.finished,
        "total": seen.total,
        "message": None if seen.message is None else seen.message[:MESSAGE_MAX],
        "elapsed": elapsed,
        "remaining": remaining,
        "delay": delay,
        "may": [right for right in ("output", *_possible(seen)) if right in may],
    }


def is_end(seen: TaskInfo | Sight) -> bool:
    """Whether nothing more will come of it."""
    return isinstance(seen, TaskInfo) and seen.is_ended()


def as_json(value: Any) -> bytes:
    """JSON in one line, as an event needs it; ASCII, and harmless wherever it is put into a page."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").encode()


def acceptable_wait(status: TaskStatus, seconds: Seconds = 0.5) -> bool:
    """Whether the task ends within this time: then the page that would have waited for it can be skipped."""
    try:
        status.wait(seconds)
    except TimedOut:
        return False
    return True


def _possible(task: TaskInfo) -> tuple[str, ...]:
    if task.is_ended():
        return ()
    by_state = {"running": ("pause",), "paused": ("resume",)}
    return ("stop", *by_state.get(task.state, ()))
