# SPDX-License-Identifier: LGPL-2.1-or-later
"""What can go wrong, for callers. The daemon raises the very same classes that its clients catch."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any, ClassVar

INTERFACE = "org.bgtaskd"


class BgtaskdError(Exception):
    """The root of all of bgtaskd's errors."""


class NotReachable(BgtaskdError):
    """Nobody answers at the socket. ``path``: which; the text says what may help.

    ``errno``: why connect() failed; None where a connection broke.
    """

    def __init__(self, path: str, reason: str, number: int | None = None) -> None:
        self.path = path
        self.reason = reason
        self.errno = number
        super().__init__(f"cannot reach bgtaskd at {path}: {reason}")

    @classmethod
    def because(cls, path: str, error: OSError) -> NotReachable:
        """From the error of connect(), with the likeliest remedy."""
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
            reason += " (is it running? systemctl status bgtaskd.socket)"
        elif error.errno == errno.EACCES:
            reason += " (are you in the group bgtask? id)"
        return cls(path, reason, error.errno)


class ProtocolError(BgtaskdError):
    """The peer sent something that is not Varlink, or more than was agreed."""


class TaskFailed(BgtaskdError):
    """A task that was waited for did not succeed. ``task``: the task."""

    def __init__(self, task: Any) -> None:
        self.task = task
        why = f": {task.error}" if task.error else ""
        super().__init__(f"task {task.id} ({task.name}) {task.state}, {task.result}{why}")


class InvalidTarget(BgtaskdError):
    """This cannot run in the background. ``target``: its name; ``reason``: why not."""

    def __init__(self, target: str, reason: str) -> None:
        self.target = target
        self.reason = reason
        super().__init__(f"{target} cannot run in the background: {reason}")


class StartedWhileLoading(InvalidTarget):
    """A task's own module starts a task while it is loaded: each would start the next, without end."""

    def __init__(self, target: str) -> None:
        reason = (
            "it is started while the module of a task is being loaded, so each task would start another;"
            ' put what starts it into a function, or under if __name__ == "__main__":'
        )
        super().__init__(target, reason)


class InvalidResult(BgtaskdError):
    """What execute() returned is not JSON, or more than can be stored."""


class FailCalled(BgtaskdError):
    """status.fail() was called where the task has no process of its own to end: in a request."""


class NotInTask(BgtaskdError):
    """bgtaskd.current() was called outside of a task."""

    def __init__(self) -> None:
        super().__init__("this process is no background task (BGTASK_ID is not set)")


class RemoteError(BgtaskdError):
    """The daemon refused. ``name``: the error's full Varlink name; ``parameters``: what it said."""

    text: ClassVar[str] = ""

    def __init__(self, name: str, parameters: Mapping[str, Any]) -> None:
        self.name = name
        self.parameters = dict(parameters)
        super().__init__(self._words())

    def _words(self) -> str:
        if self.text:
            try:
                return self.text.format_map(self.parameters)
            except (KeyError, ValueError):
                pass
        return f"{self.name} {self.parameters or ''}".strip()


class _Named(RemoteError):
    """An error of interface org.bgtaskd: its parameters in the interface's order, or by name."""

    fields: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *values: Any, **named: Any) -> None:
        parameters = {**dict(zip(self.fields, values, strict=False)), **named}
        super().__init__(f"{INTERFACE}.{type(self).__name__}", parameters)


class InvalidSpec(_Named):
    """A field of the task's spec, or a parameter, was wrong."""

    fields = ("field", "reason")
    text = "{field}: {reason}"


class NoSuchTask(_Named):
    """No task has this id, or it is not the caller's."""

    fields = ("id",)
    text = "there is no task {id}"


class NoSuchQueue(_Named):
    """No queue has this name."""

    fields = ("queue",)
    text = "there is no queue {queue}"


class NoSuchSchedule(_Named):
    """No schedule has this name."""

    fields = ("name",)
    text = "there is no schedule {name}"


class PermissionDenied(_Named):
    """The policy says no."""

    fields = ("reason",)
    text = "not allowed: {reason}"


class QueueFull(_Named):
    """As many tasks wait as may."""

    fields = ("queue", "limit")
    text = "queue {queue} is full: {limit} wait already"


class NotPossible(_Named):
    """The task is in a state in which this cannot be done."""

    fields = ("id", "state", "reason")
    text = "task {id} is {state}: {reason}"


class TimedOut(_Named):
    """The time given for waiting is over."""

    fields = ("timeout_usec",)
    text = "timed out"


class NoSuchWorker(_Named):
    """There is no named task with this name."""

    fields = ("name",)
    text = "no such named task: {name} (is there a /etc/bgtaskd/tasks.d/{name}.yaml, and was it reloaded?)"


class CallFailed(_Named):
    """The named task's work() has raised an exception: its type's name, its message, its traceback."""

    fields = ("type", "message", "traceback")
    text = "{type}: {message}"


class WorkerDied(_Named):
    """The named task's process died with the call in hand. Whether it was done, nobody knows."""

    fields = ("name", "reason")
    text = "the named task {name} died with the call in hand: {reason}"


class StorageFailed(_Named):
    """The disk is full, or the database cannot be written. What was accepted before is safe."""

    fields = ("reason",)
    text = "{reason}"


class LauncherFailed(_Named):
    """The launcher does not answer, or refused."""

    fields = ("reason",)
    text = "the launcher: {reason}"


class TooManyRequests(_Named):
    """Too many connections or requests at once from one user."""

    fields = ("reason",)
    text = "{reason}"


BY_NAME: dict[str, type[_Named]] = {
    f"{INTERFACE}.{one.__name__}": one
    for one in (
        InvalidSpec,
        NoSuchTask,
        NoSuchQueue,
        NoSuchSchedule,
        PermissionDenied,
        QueueFull,
        NoSuchWorker,
        CallFailed,
        WorkerDied,
        NotPossible,
        TimedOut,
        StorageFailed,
        LauncherFailed,
        TooManyRequests,
    )
}


def from_wire(name: object, parameters: object) -> RemoteError:
    """The exception for an error reply."""
    if not isinstance(name, str) or not isinstance(parameters, Mapping):
        return RemoteError(str(name), {})
    known = BY_NAME.get(name)
    return RemoteError(name, parameters) if known is None else known(**dict(parameters))
