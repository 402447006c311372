# SPDX-License-Identifier: LGPL-2.1-or-later
"""Our values as D-Bus's, and D-Bus's as ours. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from dbus_next import Variant

from bgtaskd import errors
from bgtaskd.daemon.bus_signals import clean, int64
from bgtaskd.protocol.codec import DEPTH_MAX, MalformedMessage, decode_value
from bgtaskd.protocol.idl import Interface, InvalidParameter, Type
from bgtaskd.protocol.interface import bgtaskd_interface

PAYLOAD_LIMIT: Final = 1024 * 1024
"""Bytes of JSON in a message to a task; as much as fits through the control socket."""
JSON_DEPTH_MAX: Final = DEPTH_MAX - 4
"""So deep may JSON be nested that goes into a message of the control socket, which is around it."""

# How the fields of a task travel. "json": as JSON text, in a string.
TASK_FIELDS: Final[Mapping[str, str]] = {
    "id": "t",
    "name": "s",
    "kind": "s",
    "state": "s",
    "result": "s",
    "exit_status": "i",
    "signal": "s",
    "percent": "d",
    "total": "x",
    "finished": "x",
    "message": "s",
    "queue": "s",
    "user": "s",
    "priority": "i",
    "attempt": "u",
    "unit": "s",
    "settings": "json",
    "value": "json",
    "error": "s",
    "failure": "json",
    "target": "s",
    "argv": "as",
    "cwd": "s",
    "group": "s",
    "after": "at",
    "http": "json",
    "created": "t",
    "started": "t",
    "updated": "t",
    "ended": "t",
    "not_before": "t",
    "cpu_usec": "t",
    "memory_current": "t",
    "memory_peak": "t",
    "io_read_bytes": "t",
    "io_write_bytes": "t",
}

SCHEDULE_FIELDS: Final[Mapping[str, str]] = {
    "name": "s",
    "user": "s",
    "calendar": "as",
    "persistent": "b",
    "randomized_delay_usec": "t",
    "overlap": "s",
    "enabled": "b",
    "file": "s",
    "argv": "as",
    "next": "t",
    "last": "t",
    "last_task": "t",
    "error": "s",
}
STATS_FIELDS: Final[Mapping[str, str]] = {
    "name": "s",
    "runs": "t",
    "failures": "t",
    "p50_usec": "t",
    "p95_usec": "t",
    "memory_peak": "t",
    "cpu_usec": "t",
}

WORKER_FIELDS: Final[Mapping[str, str]] = {
    "name": "s",
    "type": "s",
    "target": "s",
    "user": "s",
    "wanted": "t",
    "waiting": "t",
    "aside": "t",
    "error": "s",
    "processes": "aa{sv}",
}
PROCESS_FIELDS: Final[Mapping[str, str]] = {
    "id": "t",
    "instance": "t",
    "state": "s",
    "started": "t",
    "served": "t",
    "failed": "t",
    "held": "t",
    "memory_current": "t",
    "memory_peak": "t",
    "cpu_usec": "t",
}
ASIDE_FIELDS: Final[Mapping[str, str]] = {
    "id": "t",
    "name": "s",
    "uid": "u",
    "payload": "s",
    "tries": "t",
    "created": "t",
    "reason": "s",
}


def text(value: str | None) -> str:
    """A string that D-Bus takes; empty for None."""
    return "" if value is None else clean(value).decode()


def task_values(task: Mapping[str, Any]) -> dict[str, Variant]:
    """A task as an a{sv}, from the fields that every door shows."""
    return variants(TASK_FIELDS, task)


def variants(fields: Mapping[str, str], record: Mapping[str, Any]) -> dict[str, Variant]:
    """Fields of a record as an a{sv}. What is not known is not there."""
    values = {}
    for name, signature in fields.items():
        value = record.get(name)
        if value is None:
            continue
        if signature == "aa{sv}":
            values[name] = Variant("aa{sv}", [variants(PROCESS_FIELDS, one) for one in value])
        elif signature == "json":
            values[name] = Variant("s", json_text(value))
        elif signature == "s":
            values[name] = Variant("s", text(value))
        elif signature == "at":
            values[name] = Variant("at", list(value))
        elif signature == "as":
            values[name] = Variant("as", [text(one) for one in value])
        elif signature == "d":
            values[name] = Variant("d", float(value))
        elif signature == "b":
            values[name] = Variant("b", value)
        else:
            values[name] = Variant(signature, int64(value))
    return values


def json_text(value: Any) -> str:
    """Any JSON, as a text."""
    return text(json.dumps(value, ensure_ascii=False))


def task_row(task: Mapping[str, Any]) -> list[Any]:
    """A task as a line of List: id, name, state, result, queue, user, unit, percent (-1: not known)."""
    percent = task.get("percent")
    return [
        task["id"],
        text(task["name"]),
        task["state"],
        text(task.get("result")),
        text(task["queue"]),
        text(task["user"]),
        text(task["unit"]),
        -1.0 if percent is None else float(percent),
    ]


def payload_value(payload: str, field: str = "payload") -> Any:
    """The value that a JSON text stands for, as it could come over the control socket; None for "".

    Raises InvalidSpec.
    """
    if not payload:
        return None
    data = clean(payload)
    if len(data) > PAYLOAD_LIMIT:
        raise errors.InvalidSpec(field=field, reason=f"more than {PAYLOAD_LIMIT} bytes")
    try:
        return decode_value(data, JSON_DEPTH_MAX)
    except MalformedMessage as error:
        raise errors.InvalidSpec(field=field, reason=str(error)) from None


def parameters_of(operation: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check an operation's parameters, as they came over the bus, by the Varlink interface.

    Where that has "object", any JSON, the bus has a JSON text. Raises InvalidSpec.
    """
    interface = bgtaskd_interface()
    kind, _ = interface.methods[operation]
    parameters: dict[str, Any] = _plain(interface, kind, given, "")
    try:
        interface.check(operation, parameters)
    except InvalidParameter as error:
        raise errors.InvalidSpec(field=_field(error.parameter), reason=error.reason) from None
    return parameters


def _plain(interface: Interface, kind: Type, value: Any, path: str) -> Any:
    while kind.of is not None and kind.kind == "maybe":
        kind = kind.of
    if kind.name in interface.types:
        kind = interface.types[kind.name]
    if kind.kind == "struct" and isinstance(value, Mapping):
        return {
            key: _plain(interface, kind.fields[key], one, f"{path}.{key}")
            if key in kind.fields
            else one
            for key, one in value.items()
        }
    if kind.kind == "array" and kind.of is not None and isinstance(value, list):
        return [_plain(interface, kind.of, one, path) for one in value]
    if kind.name == "object" and isinstance(value, str):
        return payload_value(value, _field(path))
    if kind.name == "object" and value is not None:
        raise errors.InvalidSpec(field=_field(path), reason="must be a string: JSON text")
    return value


def _field(path: str) -> str:
    """As the other doors call it: a Spec's fields are known by their own names."""
    return path.removeprefix(".").removeprefix("spec.").removeprefix("changes.")
