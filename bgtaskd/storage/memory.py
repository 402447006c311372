# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tasks in memory: for tests, and for machines where nothing need outlive the daemon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bgtaskd.model import ENDED, Result, State, Task
from bgtaskd.storage.interface import (
    LATELY_MAX,
    ClearMessages,
    Ended,
    Message,
    Operation,
    PutConfig,
    PutFlag,
    PutMessage,
    PutSchedule,
    PutSpec,
    PutTask,
    Query,
    RemoveSchedule,
    RemoveTask,
)


class MemoryStorage:
    """A Storage without a file."""

    def __init__(self) -> None:
        self._tasks: dict[int, Task] = {}
        self._messages: dict[int, dict[int, Message]] = {}
        self._seqs: dict[int, int] = {}
        self._configs: dict[int, Any] = {}
        self._flags: dict[str, str] = {}
        self._schedules: dict[str, dict[str, Any]] = {}
        self._next = 1

    def apply(self, operations: Sequence[Operation]) -> None:
        """See Storage."""
        for operation in operations:
            self._apply(operation)

    def _apply(self, operation: Operation) -> None:
        match operation:
            case PutSpec(task):
                self._tasks[task.id] = replace(self._tasks[task.id], spec=task.spec)
            case PutTask(task):
                self._tasks[task.id] = task
                self._next = max(self._next, task.id + 1)
            case RemoveTask(task_id):
                for table in (self._tasks, self._messages, self._seqs, self._configs):
                    table.pop(task_id, None)
            case PutMessage(message):
                self._messages.setdefault(message.task_id, {})[message.seq] = message
                self._seqs[message.task_id] = message.seq
            case ClearMessages(task_id, seqs):
                box = self._messages.get(task_id, {})
                for seq in list(box) if seqs is None else seqs:
                    box.pop(seq, None)
            case PutConfig(task_id, config):
                self._configs[task_id] = config
            case PutSchedule(name, body):
                self._schedules[name] = dict(body)
            case RemoveSchedule(name):
                self._schedules.pop(name, None)
            case PutFlag(name, None):
                self._flags.pop(name, None)
            case PutFlag(name, value):
                self._flags[name] = str(value)

    def next_task_id(self) -> int:
        """See Storage."""
        return self._next

    def raise_next_task_id(self, task_id: int) -> None:
        """Give out no id below this one any more."""
        self._next = max(self._next, task_id)

    def unended(self) -> Sequence[Task]:
        """See Storage."""
        return [task for _, task in sorted(self._tasks.items()) if task.state not in ENDED]

    def get(self, task_id: int) -> Task | None:
        """See Storage."""
        return self._tasks.get(task_id)

    def list(self, query: Query) -> Sequence[Task]:
        """See Storage."""
        found = [
            task for _, task in sorted(self._tasks.items(), reverse=True) if _matches(task, query)
        ]
        return found[: query.limit]

    def lately_ended(self, owner_uid: int | None, name_glob: str | None) -> Sequence[Ended]:
        """See Storage."""
        query = Query(tuple(ENDED), owner_uid=owner_uid, limit=len(self._tasks))
        ended = [task for task in self.list(query) if not task.is_resident()]
        return [
            Ended(
                task.spec.name,
                "" if task.result is None else task.result.value,
                None if task.ended is None or task.started is None else task.ended - task.started,
                task.cpu_usec,
                task.memory_peak,
            )
            for task in ended[:LATELY_MAX]
            if name_glob is None or fnmatchcase(task.spec.name, name_glob)
        ]

    def counts(self) -> dict[State, int]:
        """See Storage."""
        out: dict[State, int] = {}
        for task in self._tasks.values():
            if not task.is_resident():
                out[task.state] = out.get(task.state, 0) + 1
        return out

    def messages(self, task_id: int, after: int = 0) -> Sequence[Message]:
        """See Storage."""
        box = self._messages.get(task_id, {})
        return [one for seq, one in sorted(box.items()) if seq > after]

    def last_message_seq(self, task_id: int) -> int:
        """See Storage."""
        return self._seqs.get(task_id, 0)

    def config(self, task_id: int) -> Any:
        """See Storage."""
        return self._configs.get(task_id)

    def schedules(self) -> dict[str, dict[str, Any]]:
        """See Storage."""
        return dict(self._schedules)

    def flags(self) -> dict[str, str]:
        """See Storage."""
        return dict(self._flags)

    def ended_before(
        self, success: int | None, any_result: int | None, limit: int
    ) -> Sequence[int]:
        """See Storage."""
        out = []
        for task in self._tasks.values():
            if task.state in ENDED and task.ended is not None:
                old = task.result is Result.SUCCESS and task.ended < (success or 0)
                if old or task.ended < (any_result or 0):
                    out.append(task.id)
        return out[:limit]

    def vacuum(self, pages: int = 1000) -> None:
        """There is nothing to give back."""

    def close(self) -> None:
        """See Storage."""


def in_memory(directory: Path) -> MemoryStorage:
    """As the entry point of a storage has it: nothing is written to the directory."""
    return MemoryStorage()


def _requests(task: Task, query: Query) -> bool:
    return task.spec.http is not None and task.spec.http["app"] in query.or_apps


def _matches(task: Task, query: Query) -> bool:
    return (
        (query.states is None or task.state in query.states)
        and (query.kinds is None or task.spec.kind in query.kinds)
        and (query.queue is None or task.spec.queue == query.queue)
        and (query.name_glob is None or fnmatchcase(task.spec.name, query.name_glob))
        and (query.group is None or task.spec.group == query.group)
        and (query.user is None or task.user == query.user)
        and (query.owner_uid is None or task.owner_uid == query.owner_uid or _requests(task, query))
        and (query.before is None or task.id < query.before)
    )
