# SPDX-License-Identifier: LGPL-2.1-or-later
"""A task as its caller sees it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Self

from bgtaskd.client.blocking import Client
from bgtaskd.client.plain import plain
from bgtaskd.client.task import Failure, Seconds, TaskInfo, usec
from bgtaskd.errors import NotReachable
from bgtaskd.task.patience import patiently

_client: Client | None = None


def shared_client() -> Client:
    """The process's own client. Threads and forks may use it."""
    global _client
    if _client is None:
        _client = Client()
    return _client


class TaskStatus:
    """A task by its id. Its properties are as of the last look: :meth:`refresh` looks again.

    ``TaskStatus(42)`` works in any process that may see task 42; nothing is asked before it is needed.
    """

    def __init__(self, task_id: int, *, client: Client | None = None) -> None:
        self.id = task_id
        self._client = client
        self._info: TaskInfo | None = None

    def __repr__(self) -> str:
        seen = "" if self._info is None else f" {self._info.name} {self._info.state}"
        return f"<{type(self).__name__} {self.id}{seen}>"

    @property
    def client(self) -> Client:
        """Through which it asks."""
        return self._client or shared_client()

    @property
    def info(self) -> TaskInfo:
        """Everything that is known of it, as of the last look."""
        if self._info is None:
            self._info = self.client.get(self.id)
        return self._info

    def refresh(self) -> Self:
        """Look again. Raises NoSuchTask."""
        self._info = self.client.get(self.id)
        return self

    def is_running(self) -> bool:
        """Whether it has not ended yet; looks again."""
        return not self.refresh().info.is_ended()

    def wait(self, timeout: Seconds | None = None) -> Self:
        """Wait until it has ended, across restarts of the daemon too. Raises TimedOut after so many seconds."""
        end = None if timeout is None else time.monotonic() + usec(timeout) / 1e6

        def wait() -> TaskInfo:
            left = None if end is None else max(0.0, end - time.monotonic())
            return self.client.wait(self.id, left)

        self._info = patiently(wait, end=end)
        return self

    def watch(self) -> Iterator[Self]:
        """Itself as it is now, and at every change, until it has ended; across restarts of the daemon too."""
        while True:
            try:
                for event in self.client.watch([self.id]):
                    self._info = event.task
                    yield self
                return
            except NotReachable:
                patiently(lambda: self.client.get(self.id))

    @property
    def name(self) -> str:
        """What it is called."""
        return self.info.name

    @property
    def state(self) -> str:
        """delayed, queued, running, paused, finished, failed or stopped."""
        return self.info.state

    @property
    def percentage(self) -> float:
        """0 to 100; 0 where it has said nothing, 100 once it has succeeded."""
        return self.info.percent or 0.0

    @property
    def message(self) -> str | None:
        """What it said last."""
        return self.info.message

    @property
    def settings(self) -> Any:
        """What it was started with."""
        return self.info.settings

    @property
    def result(self) -> str | None:
        """None until it has ended; then success, exit-code, signal, timeout, … (see org.bgtaskd.varlink)."""
        return self.info.result

    @property
    def result_value(self) -> Any:
        """What execute() returned."""
        return self.info.value

    @property
    def failure(self) -> Failure | None:
        """The exception that ended it: type, message, traceback."""
        return self.info.failure

    @property
    def error(self) -> str | None:
        """Why it failed, in a line."""
        return self.info.error

    @property
    def output(self) -> str:
        """What it printed so far. What is not UTF-8 becomes U+FFFD."""
        return self.client.output(self.id).decode("utf-8", "replace")

    @property
    def output_text(self) -> str:
        """The same as text: without colours and other escapes, overwritten lines as they ended."""
        return plain(self.output)

    @property
    def status_text(self) -> str:
        """What to show to people: what it said last; where it says nothing, all that it printed."""
        return self.message or self.output_text

    def stop(self) -> None:
        """SIGTERM to all its processes, SIGKILL after its stop timeout."""
        self.client.stop(self.id)

    def kill(self, signal: str | int = "SIGKILL", whom: str = "all") -> None:
        """A Unix signal to all its processes, or to the main one (``whom="main"``)."""
        self.client.kill(self.id, signal, whom)

    def pause(self) -> None:
        """Freeze all its processes."""
        self.client.pause(self.id)

    def resume(self) -> None:
        """Thaw it."""
        self.client.resume(self.id)

    def retry(self) -> None:
        """Run it again, once it has ended: a further attempt under the same id."""
        self.client.retry(self.id)

    def set_config(self, config: Any) -> None:
        """Replace the configuration that it sees while it runs."""
        self.client.set_config(self.id, config)

    def signal(self, name: str, payload: Any = None) -> int:
        """Leave a message in its mailbox; the message's number."""
        return self.client.signal(self.id, name, payload)
