# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a developer writes for a named task that lives long: a class with work(), installed by a file."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, NamedTuple

LOOP_INTERVAL = 0.2


class Context(NamedTuple):
    """What is known of a payload besides itself."""

    worker: str
    """The task's name."""
    instance: int
    """Which of its processes this is; the first is 1."""
    uid: int
    """Who has sent it, as the kernel says."""
    id: int | None = None
    """An asynchronous payload's number; None for a call."""
    tries: int = 1
    """How many times it has been given to a process, this one included."""


class _Worker:
    """The common part. A process makes one object, which lives as long as the process."""

    name: ClassVar[str] = ""
    """What it is called, where the file in tasks.d does not say so by its own name."""
    loop_interval: ClassVar[float] = LOOP_INTERVAL
    """loop() is called between jobs, at least so often: seconds."""
    concurrency: ClassVar[int] = 100
    """How many payloads an ``async def work`` may have in hand at once."""

    def setup(self) -> Any:
        """Called once, before the first job. May be ``async``, where work is."""

    def teardown(self) -> Any:
        """Called once, after the last job. May be ``async``, where work is."""

    def loop(self) -> Any:
        """Called between jobs. Where a class has none, an idle process sleeps for as long as nobody calls."""

    def work(self, payload: Any, context: Context) -> Any:
        """One job. ``async def`` takes many at once."""
        raise NotImplementedError(f"{type(self).__qualname__} needs a work(self, payload, context)")


class AsyncTask(_Worker):
    """A named task whose caller goes on at once: its payloads are on the disk before they are accepted.

    Each payload is done at least once, and exactly once where nothing crashes.
    """


class SyncTask(_Worker):
    """A named task whose caller waits for what work() returns (any JSON)."""


def has_loop(worker: _Worker) -> bool:
    """Whether its class defines a loop()."""
    return type(worker).loop is not _Worker.loop


def is_asyncio(worker: _Worker) -> bool:
    """Whether it takes many payloads at once."""
    return inspect.iscoroutinefunction(worker.work)


Worker = _Worker
