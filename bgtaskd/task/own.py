# SPDX-License-Identifier: LGPL-2.1-or-later
"""A task as it sees itself: what execute() gets, and what bgtaskd.current() returns."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Final, NoReturn

from bgtaskd.client.blocking import Client
from bgtaskd.client.task import TaskInfo
from bgtaskd.errors import FailCalled, NotInTask
from bgtaskd.task.mailbox import Mailbox
from bgtaskd.task.patience import patiently
from bgtaskd.task.prints import Prints
from bgtaskd.task.report import Reporter

_UNKNOWN: Final = object()


class Failed(SystemExit):
    """How fail() ends the task; its failure has been reported already."""


class OwnStatus(Mailbox):
    """The status of the task that this code runs in. All that a caller sees, and the means to report."""

    def __init__(
        self,
        task_id: int,
        *,
        client: Client | None = None,
        notify: str | None = None,
        settings: Any = _UNKNOWN,
        secrets: Mapping[str, str] | None = None,
        prints: Prints | None = None,
    ) -> None:
        """``notify``: the supervisor's socket. Without one, reports are calls to the daemon."""
        super().__init__(task_id, client=client)
        self._reporter = None if notify is None else Reporter(notify)
        self._settings = settings
        self.secrets: Mapping[str, str] = secrets or {}
        """What nobody but this process knows."""
        self._prints = prints
        self._percent = 0.0
        self._message: str | None = None
        self._finished = 0
        self._total: int | None = None
        self._counting = threading.Lock()

    # --- progress -------------------------------------------------------------------------------

    def update(
        self,
        percent: float | str | None = None,
        message: str | None = None,
        *,
        rewind: bool = False,
    ) -> None:
        """Tell how far it is (0 to 100), and in a line what it does. It never goes back, unless ``rewind``.

        Costs next to nothing: what comes faster than anybody can look is folded.
        """
        if isinstance(percent, str):  # update("Chugging along")
            percent, message = None, percent
        if percent is not None:
            percent = min(100.0, max(0.0, float(percent)))
            self._percent = percent = percent if rewind else max(self._percent, percent)
        if message is not None:
            self._message = str(message)
        self._report(percent=percent, message=message, rewind=rewind or None)

    def operations(self, total: int | None, finished: int = 0) -> None:
        """So many operations make up the whole, and so many are done."""
        with self._counting:
            self._total, self._finished = total, finished
        self._count()

    def increment(self, n: int = 1) -> None:
        """So many more operations are done."""
        with self._counting:
            self._finished += n
        self._count()

    def finish(self, message: str | None = None) -> None:
        """All is done: 100 %. What execute() does after that still counts."""
        self.update(100.0, message)

    def fail(self, message: str) -> NoReturn:
        """End the task here and now as failed, with this message.

        Where the task has no process of its own, in a request of a web server, this raises FailCalled.
        """
        message = str(message).encode("utf-8", "backslashreplace").decode()
        failure = {"type": "TaskFailed", "message": message[:4096], "traceback": ""}
        if self._reporter is None:
            self.report_end(failure=failure)
            raise FailCalled(str(message))
        print(f"Failed: {message}", file=sys.stderr)
        self.report_end(failure=failure)
        if threading.current_thread() is not threading.main_thread():
            sys.stdout.flush()
            os._exit(1)  # an exception would end this thread only
        raise Failed(1)

    def flush(self) -> None:
        """Send out what has been held back for being reported too fast."""
        if self._reporter is not None:
            self._reporter.flush()

    def _count(self) -> None:
        if self._total:
            done = min(100.0, max(0.0, 100.0 * self._finished / self._total))
            self._percent = max(self._percent, done)
        self._report(finished=self._finished, total=self._total)

    def _report(self, **progress: Any) -> None:
        if self._reporter is None:
            self.client.report(self.id, **progress)
        else:
            self._reporter.report(**progress)

    def report_end(self, **end: Any) -> None:
        """Hand over ``value`` or ``failure``, which are on the disk on return. Waits for the daemon."""
        self.flush()
        patiently(lambda: self.client.report(self.id, **end))

    # --- itself ---------------------------------------------------------------------------------

    @property
    def percentage(self) -> float:
        """How far it is, 0 to 100."""
        return self._percent

    @property
    def message(self) -> str | None:
        """What it said last."""
        return self._message

    @property
    def settings(self) -> Any:
        """What it was started with."""
        return self.info.settings if self._settings is _UNKNOWN else self._settings

    @property
    def info(self) -> TaskInfo:
        """Everything that is known of it; looks again."""
        return self.client.get(self.id)

    @property
    def output(self) -> str:
        """What it has printed so far (its last million characters)."""
        return super().output if self._prints is None else self._prints.text()


_current: ContextVar[OwnStatus | None] = ContextVar("bgtaskd_current", default=None)
_process: OwnStatus | None = None


def current() -> OwnStatus:
    """The status of the task that this code runs in, from wherever. Raises NotInTask."""
    global _process
    here = _current.get()
    if here is not None:
        return here
    if _process is None:
        task_id = os.environ.get("BGTASK_ID", "")
        if not task_id.isdigit():
            raise NotInTask()
        _process = OwnStatus(int(task_id), notify=os.environ.get("NOTIFY_SOCKET"))
    return _process


def set_current(status: OwnStatus) -> Any:
    """Make it current() in this context (a request, an asyncio task); give the token to reset_current()."""
    return _current.set(status)


def reset_current(token: Any) -> None:
    """Undo set_current()."""
    _current.reset(token)


def set_process(status: OwnStatus) -> None:
    """Make it current() in the whole process."""
    global _process
    _process = status
