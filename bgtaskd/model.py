# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a task is, and how it may change. Pure: no I/O, no clock, no imports beyond the standard library.

Times are microseconds since the epoch (UTC), durations are microseconds (``*_usec``), sizes are bytes:
systemd's own units. What is not known is ``None``, never 0.

::

                      due            picked          started        frozen
        ┌─────────┐        ┌────────┐      ┌──────────┐     ┌─────────┐ ──> ┌────────┐
     ─> │ delayed │ ─────> │ queued │ ───> │ starting │ ──> │ running │     │ paused │
        └─────────┘        └────────┘      └──────────┘     └─────────┘ <── └────────┘
          ^  │                ^ │            │   │ put_back      │    thawed     │
          │  │ stop_asked     │ └────────────│───┘               │               │
          │  v                │ retry_asked  v could_not_start   v ended         v ended
          │ stopped        (any ended)      failed       finished | failed | stopped
          └─────────────────────────── ended, with a retry left ─┘

``starting`` is an inner state: everyone outside sees ``queued`` (:meth:`Task.public_state`).
Every change goes through one :func:`transition`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any, Final

from bgtaskd.units import HTTP, scope_name


class State(str, Enum):
    """Where a task is in its life."""

    DELAYED = "delayed"
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"


class Result(str, Enum):
    """Why a task ended: systemd's words for a service's Result=, and what only a task needs."""

    SUCCESS = "success"
    EXIT_CODE = "exit-code"
    SIGNAL = "signal"
    CORE_DUMP = "core-dump"
    TIMEOUT = "timeout"
    WATCHDOG = "watchdog"
    OOM_KILL = "oom-kill"
    RESOURCES = "resources"
    INTERRUPTED = "interrupted"
    LOST = "lost"
    STOPPED = "stopped"
    DEPENDENCY = "dependency"


class StopReason(str, Enum):
    """Who or what asked a running task to end. It decides the result once the task has ended."""

    USER = "user"
    TIMEOUT = "timeout"
    WATCHDOG = "watchdog"


WAITING: Final = frozenset({State.DELAYED, State.QUEUED})
LIVE: Final = frozenset({State.STARTING, State.RUNNING, State.PAUSED})
ENDED: Final = frozenset({State.FINISHED, State.FAILED, State.STOPPED})

# An out-of-memory kill or a user's stop would only repeat itself or overrule the user (celery#3053).
RETRIED_BY_DEFAULT: Final = frozenset(
    {
        Result.EXIT_CODE,
        Result.SIGNAL,
        Result.CORE_DUMP,
        Result.TIMEOUT,
        Result.WATCHDOG,
        Result.RESOURCES,
        Result.INTERRUPTED,
        Result.LOST,
    }
)
NEVER_RETRIED: Final = frozenset({Result.SUCCESS, Result.STOPPED, Result.DEPENDENCY})

RETRY_DELAY_MAX_USEC: Final = 3_600_000_000
ERROR_MAX: Final = 1000
NAME_MAX: Final = 200
RECORD: Final = "record"
"""The kind of a task whose work is done elsewhere: no attempt is made, how it stands is reported by hand."""

TEMPLATE: Final = "template"
"""The kind of what tasks are forked from: bgtaskd's own doing, so it takes no slot and is in no list."""

WORKER: Final = "worker"
"""The kind of a process of a named task that lives long: the administrator's, and in no queue's slots."""
RESIDENT: Final = frozenset({TEMPLATE, WORKER})
"""Kinds that nobody starts by asking: they take no slot, and are in no list of tasks."""


class IllegalTransition(Exception):
    """The event cannot happen in the task's present state; nothing was changed."""

    def __init__(self, task: Task, event: Event) -> None:
        self.task = task
        self.event = event
        super().__init__(f"task {task.id} is {task.public_state().value}: {event.what}")


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What to run, and how. As the caller gave it and the policy completed it; never changed later."""

    kind: str = "command"
    name: str = ""
    argv: tuple[str, ...] = ()
    user: str | None = None
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    queue: str = "default"
    priority: int = 0
    delay_usec: int = 0
    merge_key: str | None = None
    timeout_usec: int | None = None
    stall_timeout_usec: int | None = None
    stop_timeout_usec: int | None = None
    retries: int = 0
    retry_delay_usec: int = 1_000_000
    retry_on: tuple[Result, ...] | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    settings: Any = None
    secrets: tuple[str, ...] = ()
    """The names alone."""
    target: str | None = None
    """Kind python: what is run, "module:name" or "/path/script.py:name"."""
    import_path: tuple[str, ...] = ()
    """Kind python: what sys.path is for it."""
    preload: tuple[str, ...] = ()
    """Kind python: the modules that the process it is forked from has loaded."""
    after: tuple[int, ...] = ()
    """The tasks that must have ended first."""
    after_result: str = "success"
    """How: "success" or "any-result"."""
    group: str | None = None
    weight: int = 1
    """How many of its queue's slots it takes."""
    needs: Mapping[str, int] = field(default_factory=dict)
    """How much it takes of the configuration's resources."""
    on_end: Mapping[str, Any] | None = None
    """What to run when it has ended: argv, and on: any, success or failure."""
    stdin: bool = False
    """Whether text can be sent to its standard input."""
    http: Mapping[str, Any] | None = None
    """Kind http: app, method, path, query, body, encoding, body_type. Headers and cookies are secrets."""

    def is_retried_after(self, result: Result) -> bool:
        """Whether a task that ended this way may be tried again by itself."""
        if result in NEVER_RETRIED:
            return False
        allowed = RETRIED_BY_DEFAULT if self.retry_on is None else self.retry_on
        return result in allowed

    def to_json(self) -> dict[str, Any]:
        """The spec as plain JSON values, without what is at its default."""
        out: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "retry_on" and value is not None:
                value = [one.value for one in value]
            if isinstance(value, tuple):
                value = list(value)
            elif isinstance(value, Mapping):
                value = dict(value)
            if value not in (None, "", [], {}) or item.name == "settings":
                out[item.name] = value
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TaskSpec:
        """The inverse of :meth:`to_json`, for specs that were checked before they were stored."""
        known = {item.name for item in fields(cls)}
        values = {key: value for key, value in data.items() if key in known}
        for name in ("argv", "import_path", "preload", "secrets", "after"):
            values[name] = tuple(values.get(name, ()))
        if values.get("retry_on") is not None:
            values["retry_on"] = tuple(Result(one) for one in values["retry_on"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Task:
    """One task: what every door shows, and a few columns only the daemon needs (``spec``, ``uid``, …)."""

    id: int
    spec: TaskSpec
    uid: int
    """The user the task runs as; ``owner_uid`` is the user who asked for it."""
    user: str
    owner_uid: int
    state: State
    created: int
    updated: int
    attempt: int = 0
    result: Result | None = None
    exit_status: int | None = None
    signal: str | None = None
    percent: float | None = None
    total: int | None = None
    finished: int | None = None
    message: str | None = None
    value: Any = None
    error: str | None = None
    failure: Mapping[str, str] | None = None
    """The exception that ended it, as the task itself reported it: type, message, traceback."""
    started: int | None = None
    ended: int | None = None
    not_before: int | None = None
    cpu_usec: int | None = None
    memory_current: int | None = None
    memory_peak: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    stop_reason: StopReason | None = None
    boot_id: str | None = None
    pid: int | None = None
    retries_used: int = 0

    @property
    def unit(self) -> str:
        """The scope of the present attempt (of the first, where none has been made); "" for a record."""
        if self.spec.kind == RECORD:
            return ""
        return scope_name(self.id, max(self.attempt, 1))

    def public_state(self) -> State:
        """The state that the world sees."""
        return State.QUEUED if self.state is State.STARTING else self.state

    def is_resident(self) -> bool:
        """Whether it is a process of bgtaskd's own: shown to who asks for it by id or kind, and no one else."""
        return self.spec.kind in RESIDENT

    def is_ended(self) -> bool:
        """Whether nothing more will happen to this task unless somebody retries it."""
        return self.state in ENDED

    def to_json(self) -> dict[str, Any]:
        """The task as every door shows it."""
        return {
            "id": self.id,
            "name": self.spec.name,
            "kind": self.spec.kind,
            "state": self.public_state().value,
            "result": None if self.result is None else self.result.value,
            "exit_status": self.exit_status,
            "signal": self.signal,
            "percent": self.percent,
            "total": self.total,
            "finished": self.finished,
            "message": self.message,
            "queue": self.spec.queue,
            "user": self.user,
            "priority": self.spec.priority,
            "attempt": self.attempt,
            "unit": self.unit,
            "settings": self.spec.settings,
            "value": self.value,
            "error": self.error,
            "failure": self.failure,
            "target": self.spec.target,
            "argv": list(self.spec.argv),
            "cwd": self.spec.cwd,
            "group": self.spec.group,
            "after": list(self.spec.after),
            "http": self.spec.http,
            "created": self.created,
            "started": self.started,
            "updated": self.updated,
            "ended": self.ended,
            "not_before": self.not_before,
            "cpu_usec": self.cpu_usec,
            "memory_current": self.memory_current,
            "memory_peak": self.memory_peak,
            "io_read_bytes": self.io_read_bytes,
            "io_write_bytes": self.io_write_bytes,
        }


# ---------------------------------------------------------------------------------------------------
# Events. One class each; `what` completes the sentence "task 42 is finished: …" when it cannot happen.


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a task, at a time."""

    at: int

    @property
    def what(self) -> str:
        """The refusal's words."""
        return f"{type(self).__name__} cannot happen now"


@dataclass(frozen=True, slots=True)
class Due(Event):
    """The delay is over."""


@dataclass(frozen=True, slots=True)
class Picked(Event):
    """The scheduler has given the task a slot: the next attempt is about to be launched, on this boot."""

    boot_id: str


@dataclass(frozen=True, slots=True)
class PutBack(Event):
    """The launcher was never reached for this attempt: the task waits again, and the attempt does not count."""


@dataclass(frozen=True, slots=True)
class CouldNotStart(Event):
    """The attempt could not be started: no scope, no such user, no such program."""

    error: str


@dataclass(frozen=True, slots=True)
class DependencyFailed(Event):
    """A task that was to succeed first did not."""

    error: str


@dataclass(frozen=True, slots=True)
class Started(Event):
    """The task's own program runs, in its scope."""

    pid: int


@dataclass(frozen=True, slots=True)
class Reported(Event):
    """Progress. A field that is None was not in the report. Percentages only rise, unless ``rewind``."""

    percent: float | None = None
    total: int | None = None
    finished: int | None = None
    message: str | None = None
    value: Any = None
    failure: Mapping[str, str] | None = None
    rewind: bool = False


@dataclass(frozen=True, slots=True)
class Frozen(Event):
    """The scope was frozen."""

    @property
    def what(self) -> str:
        return "only a running task can be paused"


@dataclass(frozen=True, slots=True)
class Thawed(Event):
    """The scope was thawed."""

    @property
    def what(self) -> str:
        return "only a paused task can be resumed"


@dataclass(frozen=True, slots=True)
class StopAsked(Event):
    """Somebody, or a time limit, wants the task to end."""

    reason: StopReason = StopReason.USER

    @property
    def what(self) -> str:
        return "it has ended already"


@dataclass(frozen=True, slots=True)
class Exited(Event):
    """The attempt is over, as its supervisor's exit record (or its absence: lost, interrupted) says."""

    result: Result
    exit_status: int | None = None
    signal: str | None = None
    error: str | None = None
    started: int | None = None
    cpu_usec: int | None = None
    memory_peak: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class RetryAsked(Event):
    """Somebody wants an ended task to run again."""

    @property
    def what(self) -> str:
        return "only a task that has ended can be retried"


# ---------------------------------------------------------------------------------------------------


def transition(task: Task, event: Event) -> Task:
    """The task after the event.

    Raises IllegalTransition where the event cannot happen in the task's state.
    """
    handler = _HANDLERS.get((type(event), task.state))
    if handler is None:
        raise IllegalTransition(task, event)
    after: Task = handler(task, event)
    return replace(after, updated=event.at)


def _due(task: Task, event: Due) -> Task:
    return replace(task, state=State.QUEUED)


def _picked(task: Task, event: Picked) -> Task:
    return replace(
        task,
        state=State.STARTING,
        attempt=task.attempt + 1,
        boot_id=event.boot_id,
        pid=None,
        started=None,
        ended=None,
        result=None,
        exit_status=None,
        signal=None,
        error=None,
        percent=None,
        total=None,
        finished=None,
        message=None,
        value=None,
        failure=None,
    )


def _put_back(task: Task, event: PutBack) -> Task:
    if task.stop_reason is not None:
        return _end(task, Exited(event.at, Result.STOPPED), State.STOPPED, Result.STOPPED)
    return replace(task, state=State.QUEUED, attempt=task.attempt - 1, boot_id=None)


def _could_not_start(task: Task, event: CouldNotStart) -> Task:
    return _exited(task, Exited(event.at, Result.RESOURCES, error=event.error))


def _dependency_failed(task: Task, event: DependencyFailed) -> Task:
    exited = Exited(event.at, Result.DEPENDENCY, error=event.error)
    return _end(task, exited, State.FAILED, Result.DEPENDENCY)


def _started(task: Task, event: Started) -> Task:
    return replace(task, state=State.RUNNING, started=event.at, pid=event.pid)


def _reported(task: Task, event: Reported) -> Task:
    total = task.total if event.total is None else event.total
    finished = task.finished if event.finished is None else event.finished
    percent = event.percent
    counted = event.finished is not None or event.total is not None
    if counted and finished is not None and total and not (event.rewind and percent is not None):
        percent = max(percent or 0.0, 100.0 * finished / total)
    if percent is None:
        percent = task.percent
    else:
        percent = min(100.0, max(0.0, percent))
        if task.percent is not None and not event.rewind:
            percent = max(percent, task.percent)
    return replace(
        task,
        percent=percent,
        total=total,
        finished=finished,
        message=task.message if event.message is None else event.message,
        value=task.value if event.value is None else event.value,
        failure=task.failure if event.failure is None else event.failure,
    )


def _frozen(task: Task, event: Frozen) -> Task:
    return replace(task, state=State.PAUSED)


def _thawed(task: Task, event: Thawed) -> Task:
    return replace(task, state=State.RUNNING)


def _stop_asked_waiting(task: Task, event: StopAsked) -> Task:
    return _end(task, Exited(event.at, Result.STOPPED), State.STOPPED, Result.STOPPED)


def _stop_asked_live(task: Task, event: StopAsked) -> Task:
    # The first reason stays, except that a user's stop overrules a time limit's: no retry then.
    if task.stop_reason is None or event.reason is StopReason.USER:
        return replace(task, stop_reason=event.reason)
    return task


def _exited(task: Task, event: Exited) -> Task:
    state, result = _verdict(task, event)
    if (
        state is State.FAILED
        and task.spec.is_retried_after(result)
        and task.retries_used < task.spec.retries
    ):
        ended = _end(task, event, State.DELAYED, result)
        delay = retry_delay(task.spec.retry_delay_usec, task.retries_used)
        return replace(
            ended,
            retries_used=task.retries_used + 1,
            not_before=event.at + delay,
            stop_reason=None,
            pid=None,
        )
    return _end(task, event, state, result)


def _verdict(task: Task, event: Exited) -> tuple[State, Result]:
    """What the end means: a stop that was asked for outranks how the process happened to die."""
    if event.result in (Result.LOST, Result.INTERRUPTED) and task.stop_reason is None:
        return State.FAILED, event.result
    if task.stop_reason is StopReason.USER or event.result is Result.STOPPED:
        return State.STOPPED, Result.STOPPED
    if task.stop_reason is StopReason.TIMEOUT:
        return State.FAILED, Result.TIMEOUT
    if task.stop_reason is StopReason.WATCHDOG:
        return State.FAILED, Result.WATCHDOG
    if event.result is Result.SUCCESS:
        return State.FINISHED, Result.SUCCESS
    return State.FAILED, event.result


def _end(task: Task, event: Exited, state: State, result: Result) -> Task:
    percent, finished, failure, error = task.percent, task.finished, task.failure, event.error
    if state is State.FINISHED:
        percent = 100.0
        finished = task.total if task.total is not None else task.finished
        failure = None
    elif failure is not None and error is None and result is Result.EXIT_CODE:
        error = failure["message"]
        if task.spec.kind != HTTP:  # its messages are whole sentences
            error = f"{failure['type']}: {error}"
        error = error.partition("\n")[0][:ERROR_MAX]
    return replace(
        task,
        state=state,
        result=result,
        exit_status=event.exit_status,
        signal=event.signal,
        error=error,
        failure=failure,
        percent=percent,
        finished=finished,
        started=task.started if event.started is None else event.started,
        ended=event.at,
        cpu_usec=event.cpu_usec,
        memory_current=None,
        memory_peak=event.memory_peak,
        io_read_bytes=event.io_read_bytes,
        io_write_bytes=event.io_write_bytes,
    )


def _retry_asked(task: Task, event: RetryAsked) -> Task:
    return replace(
        task,
        state=State.QUEUED,
        result=None,
        exit_status=None,
        signal=None,
        error=None,
        percent=None,
        total=None,
        finished=None,
        message=None,
        value=None,
        failure=None,
        started=None,
        ended=None,
        not_before=None,
        cpu_usec=None,
        memory_peak=None,
        io_read_bytes=None,
        io_write_bytes=None,
        stop_reason=None,
        boot_id=None,
        pid=None,
        retries_used=0,
    )


def retry_delay(base_usec: int, retries_used: int) -> int:
    """Exponential back-off: base, 2×, 4×, …, an hour at most. Microseconds."""
    return min(RETRY_DELAY_MAX_USEC, base_usec << min(retries_used, 40))


def _by_hand(task: Task, event: Started | Reported | Exited) -> Task:
    """A record that waits: what is reported of it says that it has begun, or even ended."""
    if task.spec.kind != RECORD:
        raise IllegalTransition(task, event)
    if isinstance(event, Exited):
        return _exited(task, event)
    begun = replace(task, state=State.RUNNING, started=event.at)
    return _reported(begun, event) if isinstance(event, Reported) else begun


def _table() -> dict[tuple[type[Event], State], Any]:
    table: dict[tuple[type[Event], State], Any] = {
        (Due, State.DELAYED): _due,
        (Picked, State.QUEUED): _picked,
        (PutBack, State.STARTING): _put_back,
        (CouldNotStart, State.STARTING): _could_not_start,
        (DependencyFailed, State.QUEUED): _dependency_failed,
        (Started, State.STARTING): _started,
        (Frozen, State.RUNNING): _frozen,
        (Thawed, State.PAUSED): _thawed,
    }
    for event in (Started, Reported, Exited):
        table[event, State.QUEUED] = _by_hand
    for state in LIVE:
        table[Exited, state] = _exited
        table[StopAsked, state] = _stop_asked_live
    for state in (State.RUNNING, State.PAUSED, State.STARTING):
        table[Reported, state] = _reported
    for state in WAITING:
        table[StopAsked, state] = _stop_asked_waiting
    for state in ENDED:
        table[RetryAsked, state] = _retry_asked
    return table


_HANDLERS: Final = _table()


def canonical_json(value: Any, *, allow_nan: bool = True) -> str:
    """JSON in one fixed form, for storing and comparing."""
    return json.dumps(
        value, separators=(",", ":"), sort_keys=True, ensure_ascii=False, allow_nan=allow_nan
    )
