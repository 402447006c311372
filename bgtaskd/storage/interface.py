# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the daemon asks of a store of tasks. Blocking; the daemon calls the writing half from one thread.

A store is durable when :meth:`Storage.apply` returns: a reply with an id is a promise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from bgtaskd.model import State, Task


class StorageError(Exception):
    """The store could not be read or written; nothing of the batch was kept. The text says why."""


class RowRefused(StorageError):
    """What was to be written cannot be stored at all, by any disk: trying again is of no use."""


class StorageFull(StorageError):
    """There is no room left."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message in a task's mailbox. ``seq`` rises within a task and is never used twice."""

    task_id: int
    seq: int
    name: str
    payload: Any
    created: int


@dataclass(frozen=True, slots=True)
class Query:
    """Which tasks to list, newest first. ``None`` means any."""

    states: Sequence[State] | None = None
    kinds: Sequence[str] | None = None
    queue: str | None = None
    name_glob: str | None = None
    group: str | None = None
    user: str | None = None
    owner_uid: int | None = None
    before: int | None = None
    limit: int = 100
    or_apps: Sequence[str] = ()
    """With owner_uid: or anybody's that request one of these apps (spec.http["app"])."""


LATELY_MAX: Final = 20_000


class Ended(NamedTuple):
    """What came of a task, for statistics. Times in microseconds, sizes in bytes."""

    name: str
    result: str
    duration: int | None
    cpu_usec: int | None
    memory_peak: int | None


# What one transaction may hold.


@dataclass(frozen=True, slots=True)
class PutTask:
    """Insert the task, or replace the row with its id."""

    task: Task


@dataclass(frozen=True, slots=True)
class PutSpec:
    """Put the spec of a task, which is there, in the old one's place."""

    task: Task


@dataclass(frozen=True, slots=True)
class RemoveTask:
    """Forget a task, its messages and its configuration."""

    task_id: int


@dataclass(frozen=True, slots=True)
class PutMessage:
    """Add a message to a mailbox."""

    message: Message


@dataclass(frozen=True, slots=True)
class ClearMessages:
    """Clear messages of a task: those with these numbers, or all (``None``)."""

    task_id: int
    seqs: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class PutConfig:
    """Replace a task's configuration."""

    task_id: int
    config: Any


@dataclass(frozen=True, slots=True)
class PutFlag:
    """A durable fact of the daemon's own (a paused queue, …). ``None`` removes it."""

    name: str
    value: str | None


@dataclass(frozen=True, slots=True)
class PutSchedule:
    """Keep a schedule (a JSON object), in the place of one with the same name."""

    name: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RemoveSchedule:
    """Forget a schedule."""

    name: str


Operation = (
    PutTask
    | PutSpec
    | RemoveTask
    | PutMessage
    | ClearMessages
    | PutConfig
    | PutFlag
    | PutSchedule
    | RemoveSchedule
)


class Storage(Protocol):
    """A store of tasks."""

    def apply(self, operations: Sequence[Operation]) -> None:
        """All of the operations, in order, in one transaction, durable on return.

        Raises StorageFull or StorageError; then none of them was kept.
        """

    def next_task_id(self) -> int:
        """The lowest id that was never used. Read once, at start."""

    def unended(self) -> Iterable[Task]:
        """Every task that has not ended, oldest first."""

    def get(self, task_id: int) -> Task | None:
        """One task."""

    def list(self, query: Query) -> Sequence[Task]:
        """Tasks, newest first."""

    def lately_ended(self, owner_uid: int | None, name_glob: str | None) -> Sequence[Ended]:
        """What came of the last LATELY_MAX tasks that ended, of those with this name (not RESIDENT)."""

    def counts(self) -> dict[State, int]:
        """How many tasks there are (not RESIDENT), by state. Must not scan a million rows."""

    def messages(self, task_id: int, after: int = 0) -> Sequence[Message]:
        """A task's mailbox, in order; only what is numbered above ``after``."""

    def last_message_seq(self, task_id: int) -> int:
        """The highest number ever given to a message of the task; 0 where there was none."""

    def config(self, task_id: int) -> Any:
        """A task's configuration; None where none was set."""

    def schedules(self) -> dict[str, dict[str, Any]]:
        """All schedules, by name."""

    def flags(self) -> dict[str, str]:
        """All flags."""

    def ended_before(
        self, success: int | None, any_result: int | None, limit: int
    ) -> Sequence[int]:
        """Ids of tasks whose retention is over: ended successfully before ``success``, or at all before
        ``any_result`` (microseconds; None: kept for ever)."""

    def raise_next_task_id(self, task_id: int) -> None:
        """Give out no id below this one any more: others have been seen in use."""

    def vacuum(self, pages: int = 1000) -> None:
        """Give room that was freed back to the file system, bounded."""

    def close(self) -> None:
        """Close. Nothing is lost without it."""
