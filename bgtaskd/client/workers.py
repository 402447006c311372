# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a caller sees of named tasks: typed, from the wire's plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from bgtaskd.client.task import Failure


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A named task's process. Times in microseconds (``started``: since the epoch), memory in bytes."""

    id: int
    """Of its task, as `bgtaskctl status` and `logs` take it."""
    instance: int
    state: str
    """A task's; "starting" until it is ready, "leaving" once it takes no more."""
    started: int | None
    served: int
    failed: int
    held: int
    """Payloads it has in hand."""
    memory_current: int | None
    memory_peak: int | None
    cpu_usec: int | None

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> ProcessInfo:
        """Unknown fields are passed over: the daemon may be newer."""
        values: dict[str, Any] = {one.name: data.get(one.name) for one in fields(cls)}
        return cls(**values)


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A named task."""

    name: str
    type: str
    target: str
    user: str
    wanted: int
    """How many processes there are to be now; 0: it waits for a first call."""
    waiting: int
    aside: int
    """How many payloads were given up."""
    error: str | None
    """Why no process is ready, where one has failed."""
    processes: Sequence[ProcessInfo]

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> WorkerInfo:
        """Unknown fields are passed over: the daemon may be newer."""
        values: dict[str, Any] = {one.name: data.get(one.name) for one in fields(cls)}
        values["processes"] = [ProcessInfo.from_wire(one) for one in data["processes"]]
        return cls(**values)

    @property
    def backlog(self) -> int:
        """Payloads that were accepted and are not done, also those in hand."""
        return self.waiting + sum(one.held for one in self.processes)


@dataclass(frozen=True, slots=True)
class AsidePayload:
    """A payload that was given up. ``created``: microseconds since the epoch, when it was accepted."""

    id: int
    name: str
    uid: int
    payload: str
    """As JSON, its first 4096 characters."""
    tries: int
    created: int
    reason: str
    failure: Failure | None
    """What work() raised; None where its process died."""

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> AsidePayload:
        """Unknown fields are passed over: the daemon may be newer."""
        values: dict[str, Any] = {one.name: data.get(one.name) for one in fields(cls)}
        try:
            values["failure"] = Failure(**json.loads(data["reason"]))
            values["reason"] = str(values["failure"])
        except (TypeError, ValueError):
            pass  # it is in words
        return cls(**values)
