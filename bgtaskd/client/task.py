# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a caller sees of tasks: typed, from the wire's plain values."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

Seconds = float | timedelta


@dataclass(frozen=True, slots=True)
class Failure:
    """The exception that ended a task, as the task reported it. ``traceback`` is text, as Python prints it."""

    type: str
    message: str
    traceback: str

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


class StartedId(int):
    """A task's id. ``merged``: no task was made, it is that of one with the same merge key."""

    merged: bool = False

    @classmethod
    def from_wire(cls, reply: Mapping[str, Any]) -> StartedId:
        """From the reply of Start."""
        one = cls(reply["id"])
        one.merged = reply["merged"] is True
        return one


UNENDED = ("queued", "delayed", "running", "paused")
GROUP_MAX = 1_000_000


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A task, as method Get of org.bgtaskd has it. Times: microseconds since the epoch, UTC."""

    id: int
    name: str
    kind: str
    state: str
    result: str | None
    exit_status: int | None
    signal: str | None
    percent: float | None
    total: int | None
    finished: int | None
    message: str | None
    queue: str
    user: str
    priority: int
    attempt: int
    unit: str
    settings: Any
    value: Any
    error: str | None
    failure: Failure | None
    target: str | None
    argv: Sequence[str]
    cwd: str | None
    group: str | None
    after: Sequence[int]
    created: int
    started: int | None
    updated: int
    ended: int | None
    not_before: int | None
    cpu_usec: int | None
    memory_current: int | None
    memory_peak: int | None
    io_read_bytes: int | None
    io_write_bytes: int | None
    http: Mapping[str, Any] | None = None
    """Kind http: app, method, path, query, body, encoding, body_type, as far as they were given."""

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> TaskInfo:
        """Unknown fields are passed over: the daemon may be newer."""
        values: dict[str, Any] = {one.name: data.get(one.name) for one in fields(cls)}
        if values["failure"] is not None:
            values["failure"] = Failure(**values["failure"])
        return cls(**values)

    def is_ended(self) -> bool:
        """Whether nothing more will happen to it unless somebody retries it."""
        return self.state in ("finished", "failed", "stopped")


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """Something happened to a task: "added", "changed", "finished" or "removed"."""

    event: str
    task: TaskInfo


@dataclass(frozen=True, slots=True)
class Message:
    """A message in a task's mailbox."""

    seq: int
    name: str
    payload: Any
    created: int


@dataclass(frozen=True, slots=True)
class NameStats:
    """What came of the last tasks of a name. Durations in microseconds, memory in bytes."""

    name: str
    runs: int
    failures: int
    p50_usec: int | None
    p95_usec: int | None
    memory_peak: int | None
    cpu_usec: int


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """A recurring task. ``next``, ``last``: microseconds since the epoch, as systemd's timer says."""

    name: str
    user: str
    calendar: Sequence[str]
    persistent: bool
    randomized_delay_usec: int
    overlap: str
    enabled: bool
    file: str | None
    argv: Sequence[str]
    next: int | None
    last: int | None
    last_task: int | None
    error: str | None

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> ScheduleInfo:
        """Unknown fields are passed over: the daemon may be newer."""
        values: dict[str, Any] = {one.name: data.get(one.name) for one in fields(cls)}
        return cls(**values)


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """A queue, and how busy it is."""

    name: str
    slots: int
    running: int
    waiting: int
    delayed: int
    paused: bool


@dataclass(frozen=True, slots=True)
class OutputChunk:
    """A piece of a task's output. ``dropped``: bytes in the middle that are gone."""

    data: bytes
    offset: int
    next_offset: int
    dropped: int
    eof: bool


def usec(value: Seconds) -> int:
    """Seconds, or a timedelta, in microseconds."""
    return round((value.total_seconds() if isinstance(value, timedelta) else value) * 1_000_000)


def spec_of(argv: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """A Spec for the wire from Python's natural arguments: durations in seconds, None left out.

    Raises TypeError for a command that is one string: no shell takes it apart.
    """
    if isinstance(argv, (str, bytes)):
        raise TypeError("a command is a list: its program, then each argument")
    return {"argv": [os.fspath(one) for one in argv], **changes_of(options)}


def changes_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a task as the wire has them."""
    spec: dict[str, Any] = {}
    for name, value in options.items():
        if value is None:
            continue
        if name in ("delay", "timeout", "stall_timeout", "stop_timeout", "retry_delay"):
            spec[f"{name}_usec"] = usec(value)
        elif name == "properties":
            spec[name] = {key: str(one) for key, one in value.items()}
        elif name == "cwd":
            spec[name] = os.fspath(value)
        elif name in ("retry_on", "after"):
            spec[name] = list(value)
        elif name == "on_end":
            spec[name] = dict(value) if isinstance(value, Mapping) else {"argv": list(value)}
        else:
            spec[name] = value
    return spec


def schedule_of(
    name: str,
    calendar: str | Sequence[str],
    argv: Sequence[str],
    persistent: bool,
    randomized_delay: Seconds,
    overlap: str,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """A NewSchedule for the wire."""
    return {
        "name": name,
        "calendar": [calendar] if isinstance(calendar, str) else list(calendar),
        "persistent": persistent,
        "randomized_delay_usec": usec(randomized_delay),
        "overlap": overlap,
        "spec": spec_of(argv, options),
    }


def request_of(
    method: str,
    path: str,
    app: str | None,
    query: Mapping[str, Any] | None,
    data: Mapping[str, Any] | None,
    json: Any,
    body: bytes | str | None,
    headers: Mapping[str, str] | None,
    cookies: Mapping[str, str] | None,
    as_user: bool,
    merge: bool,
) -> dict[str, Any]:
    """An HttpRequest for the wire. Raises TypeError for more than one of data, json and body."""
    from urllib.parse import quote, urlencode

    if (data is not None) + (json is not None) + (body is not None) > 1:
        raise TypeError("a request has one body: data, json or body")
    plain = "/%:@!$&'()*+,;=~"
    path, _, given_query = path.partition("?")
    queries = [quote(given_query, safe=plain + "?"), urlencode(query or {}, doseq=True)]
    request: dict[str, Any] = {
        "method": method.upper(),
        "path": quote(path, safe=plain),
        "query": "&".join(filter(None, queries)) or None,
        "app": app,
        "headers": {name: str(one) for name, one in (headers or {}).items()} or None,
        "cookies": {name: str(one) for name, one in (cookies or {}).items()} or None,
        "as_user": None if as_user else False,
        "merge": None if merge else False,
        **_body_of(data, json, body),
    }
    for name in request["headers"] or ():
        if name.lower() == "content-type":
            request["body_type"] = request["headers"].pop(name)
            break
    return {key: value for key, value in request.items() if value is not None}


def _body_of(
    data: Mapping[str, Any] | None, json: Any, body: bytes | str | None
) -> dict[str, str | None]:
    if data is not None:
        from urllib.parse import urlencode

        form = urlencode(data, doseq=True)
        return {"body": form, "body_type": "application/x-www-form-urlencoded"}
    if json is not None:
        from json import dumps

        return {"body": dumps(json), "body_type": "application/json"}
    if body is None:
        return {}
    if isinstance(body, str):
        return {"body": body}
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        from base64 import b64encode

        return {"body": b64encode(body).decode(), "encoding": "base64"}
