# SPDX-License-Identifier: LGPL-2.1-or-later
"""Waiting that outlives the daemon: a restart or an upgrade ends no `run --wait`, for it ends no task."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from bgtaskd.client.blocking import Client
from bgtaskd.client.task import TaskInfo
from bgtaskd.errors import NotReachable, TimedOut

GIVE_UP_SECONDS = 30.0
AGAIN_SECONDS = 0.2

Item = TypeVar("Item")


def patiently(begin: Callable[[], Iterator[Item]], reached: bool = False) -> Iterator[Item]:
    """A stream's items; where the daemon goes away meanwhile, it is begun anew when it is back.

    ``begin`` is called again for that, and knows itself where to go on. Raises NotReachable at once
    where nobody answers from the beginning (unless ``reached``: somebody did before), else when the
    daemon has been away for GIVE_UP_SECONDS.
    """
    away_since = None
    while True:
        try:
            for item in begin():
                reached, away_since = True, None
                yield item
            return
        except NotReachable as error:
            away_since = time.monotonic() if away_since is None else away_since
            broken = "the connection broke" in str(error)
            if not (reached or broken) or time.monotonic() - away_since > GIVE_UP_SECONDS:
                raise
            reached = True
            # With systemd this is no poll: it holds the socket, and the next connect just waits.
            time.sleep(AGAIN_SECONDS)


def wait_all(
    client: Client, ids: list[int], timeout: float | None = None, reached: bool = False
) -> Iterator[TaskInfo]:
    """Tasks in the order in which they end. Raises TimedOut after so many seconds."""
    left = list(dict.fromkeys(ids))
    end = None if timeout is None else time.monotonic() + timeout

    def begin() -> Iterator[TaskInfo]:
        seconds = None if end is None else max(0.0, end - time.monotonic())
        return client.wait_all(list(left), seconds)

    while left:
        for task in patiently(begin, reached):
            reached = True
            if task.id in left:
                left.remove(task.id)
                yield task
            if not left:
                return
        if left and end is not None and time.monotonic() >= end:
            raise TimedOut(timeout_usec=round((timeout or 0) * 1e6))


def wait(client: Client, task_id: int) -> TaskInfo:
    """A task that is known to be there, once it has ended."""
    return next(wait_all(client, [task_id], reached=True))


def get(client: Client, task_id: int) -> TaskInfo:
    """The task as it is now, even if the daemon is just being restarted."""
    return next(patiently(lambda: iter([client.get(task_id)]), reached=True))
