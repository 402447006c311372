# SPDX-License-Identifier: LGPL-2.1-or-later
"""A thread for work that may hang for ever: others' code. The daemon can stop without it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

R = TypeVar("R")


class Hand(Generic[R]):
    """Does one thing after the other. (An executor's threads are joined when Python ends; these are not.)"""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[tuple[Callable[[], R], asyncio.Future[R]] | None] = SimpleQueue()
        Thread(target=self._work, name=name, daemon=True).start()

    def ask(self, work: Callable[[], R]) -> asyncio.Future[R]:
        """What ``work`` returns; it must not raise."""
        done: asyncio.Future[R] = self._loop.create_future()
        self._jobs.put((work, done))
        return done

    def close(self) -> None:
        """End the thread, once it has done what it was asked."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            result = job[0]()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(_settle, job[1], result)


def _settle(future: asyncio.Future[R], result: R) -> None:
    if not future.done():  # who asked may have gone
        future.set_result(result)
