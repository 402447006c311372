# SPDX-License-Identifier: LGPL-2.1-or-later
"""The D-Bus signals of org.bgtaskd1.Manager as bytes, and the queue in which they wait for the bus.

dbus-next takes 44 µs to send a TaskChanged, this 7: at a thousand tasks a second with three signals each,
the difference is a tenth of a processor. Only four kinds of message are sent that often, so these four are
put together from parts that were marshalled once. A test compares every byte with dbus-next's.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

from dbus_next import Message, Variant

from bgtaskd.model import State, Task

PATH: Final = "/org/bgtaskd1"
INTERFACE: Final = "org.bgtaskd1.Manager"

# The bus daemon's own answer to a peer that does not read is to cut it off, at 127 MiB. Ours comes earlier.
OUTBOX_LIMIT: Final = 16 * 1024 * 1024
"""Bytes of signals that may wait for the bus."""
CHUNK: Final = 64 * 1024
"""Bytes handed to the socket at a time."""
PACE: Final = 0.1
"""Seconds between two TaskChanged of one task that tell of nothing but progress."""

# member: its arguments (name, signature), and a body to take a sample of.
SIGNALS: Final[Mapping[str, tuple[tuple[tuple[str, str], ...], list[Any]]]] = {
    "TaskAdded": ((("id", "t"),), [0]),
    "TaskChanged": ((("id", "t"), ("changes", "a{sv}")), [0, {}]),
    "TaskFinished": ((("id", "t"), ("state", "s"), ("result", "s")), [0, "", ""]),
    "TaskSignaled": ((("id", "t"), ("name", "s"), ("payload", "s")), [0, "", ""]),
}

_HEADER: Final = struct.Struct("<4sIII")  # byte order, type, flags, version; body, serial, fields
_SIGNAL: Final = b"l\x04\x00\x01"
_U64: Final = struct.Struct("<Q")
_I64: Final = struct.Struct("<q")
_DOUBLE: Final = struct.Struct("<d")
_U32: Final = struct.Struct("<I")
_INT64: Final = 2**63


def clean(text: str) -> bytes:
    """The text as D-Bus allows it: UTF-8 with no NUL. (Who sends anything else is disconnected.)"""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace")


def _string(text: str) -> bytes:
    data = clean(text)
    return _U32.pack(len(data)) + data + b"\0"


def _padded(data: bytes, alignment: int) -> bytes:
    return data + bytes(-len(data) % alignment)


def _header_fields(member: str) -> tuple[int, bytes]:
    """The length of the array of header fields, and its bytes with the padding before the body."""
    arguments, sample = SIGNALS[member]
    signature = "".join(one for _, one in arguments)
    message = Message.new_signal(PATH, INTERFACE, member, signature, sample)
    raw = bytes(message._marshall())  # noqa: SLF001 - the only way to dbus-next's own bytes
    _, body_length, _, length = _HEADER.unpack_from(raw)
    return length, raw[_HEADER.size : len(raw) - body_length]


def _key(name: str, signature: str) -> bytes:
    """The start of an entry of an a{sv}, which begins at a multiple of 8, up to its value."""
    key = _string(name) + bytes([len(signature)]) + signature.encode() + b"\0"
    return _padded(key, {"s": 4, "d": 8, "x": 8}[signature])


_FIELDS: Final = {member: _header_fields(member) for member in SIGNALS}
_STATE: Final = _key("state", "s")
_PERCENT: Final = _key("percent", "d")
_TOTAL: Final = _key("total", "x")
_FINISHED: Final = _key("finished", "x")
_MESSAGE: Final = _key("message", "s")


def int64(value: int) -> int:
    """The nearest number that fits into a D-Bus "x"."""
    return max(-_INT64, min(_INT64 - 1, value))


def added_body(task_id: int) -> bytes:
    """TaskAdded(t id)."""
    return _U64.pack(task_id)


def changed_body(task: Task, with_message: bool) -> bytes:
    """TaskChanged(t id, a{sv}): state, percent, total, finished and message, without what is not known."""
    # Entries begin at multiples of 8, in the body as in the array: the array's first is at offset 16.
    entries = _STATE + _string(task.public_state().value)
    if task.percent is not None:
        entries = _padded(entries, 8) + _PERCENT + _DOUBLE.pack(task.percent)
    if task.total is not None:
        entries = _padded(entries, 8) + _TOTAL + _I64.pack(int64(task.total))
    if task.finished is not None:
        entries = _padded(entries, 8) + _FINISHED + _I64.pack(int64(task.finished))
    if with_message and task.message is not None:
        entries = _padded(entries, 8) + _MESSAGE + _string(task.message)
    return _U64.pack(task.id) + _U32.pack(len(entries)) + bytes(4) + entries


def two_strings_body(task_id: int, first: str, second: str) -> bytes:
    """TaskFinished(t id, s state, s result) and TaskSignaled(t id, s name, s payload)."""
    return _U64.pack(task_id) + _padded(_string(first), 4) + _string(second)


def changed_values(task: Task, with_message: bool) -> dict[str, Variant]:
    """What changed_body says, as dbus-next's values: for its tests."""
    values = {
        "state": Variant("s", task.public_state().value),
        "percent": None if task.percent is None else Variant("d", task.percent),
        "total": None if task.total is None else Variant("x", int64(task.total)),
        "finished": None if task.finished is None else Variant("x", int64(task.finished)),
    }
    if with_message and task.message is not None:
        values["message"] = Variant("s", clean(task.message).decode())
    return {key: value for key, value in values.items() if value is not None}


def message(member: str, body: bytes, serial: int) -> bytes:
    """The whole message."""
    fields_length, fields = _FIELDS[member]
    return _HEADER.pack(_SIGNAL, len(body), serial, fields_length) + fields + body


class Pace:
    """Lets ten TaskChanged a second through for each task.

    A change of state never waits. Of progress the last word is never dropped, and comes before the end.
    """

    def __init__(self, tell: Callable[[Task], None]) -> None:
        self._tell = tell
        self._told: dict[int, tuple[float, State]] = {}
        self._waiting: dict[int, tuple[Task, asyncio.TimerHandle]] = {}

    def changed(self, task: Task) -> None:
        """Tell of the task, now or when it is time."""
        loop = asyncio.get_running_loop()
        told, state = self._told.get(task.id, (0.0, None))
        if state is not task.public_state() or told + PACE <= loop.time():
            self._drop(task.id)
            self.knows(task)
            self._tell(task)
        elif task.id in self._waiting:
            self._waiting[task.id] = (task, self._waiting[task.id][1])
        else:
            timer = loop.call_at(told + PACE, self.catch_up, task.id)
            self._waiting[task.id] = (task, timer)

    def knows(self, task: Task) -> None:
        """Listeners know the task's state now, from another signal."""
        self._told[task.id] = (asyncio.get_running_loop().time(), task.public_state())

    def catch_up(self, task_id: int) -> None:
        """Tell what waits, if anything does."""
        waiting = self._drop(task_id)
        if waiting is not None:
            self.knows(waiting)
            self._tell(waiting)

    def forget(self, task_id: int) -> None:
        """The task has ended: tell what waits, and remember nothing."""
        self.catch_up(task_id)
        self._told.pop(task_id, None)

    def _drop(self, task_id: int) -> Task | None:
        waiting = self._waiting.pop(task_id, None)
        if waiting is None:
            return None
        waiting[1].cancel()
        return waiting[0]


class OutboxFull(Exception):
    """So much waits for the bus that it cannot be reading any more. Everything that waited is gone."""


class Outbox:
    """Signals that wait for the bus, in order.

    A TaskChanged that has not gone out yet takes in the next one of the same task (each tells the whole
    progress), so a bus that is slow, or not there yet, costs a task's listeners detail and not the end.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[str, bytes]] = []
        self._changed_at: dict[int, int] = {}
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._entries)

    def put(self, task_id: int, member: str, body: bytes) -> None:
        """Add a signal. Raises OutboxFull."""
        at = self._changed_at.get(task_id) if member == "TaskChanged" else None
        if at is not None:
            self._bytes += len(body) - len(self._entries[at][1])
            self._entries[at] = (member, body)
            return
        if member == "TaskChanged":
            self._changed_at[task_id] = len(self._entries)
        else:
            # What changes after this must be told after this.
            self._changed_at.pop(task_id, None)
        self._entries.append((member, body))
        self._bytes += len(body) + len(_FIELDS[member][1]) + _HEADER.size
        if self._bytes > OUTBOX_LIMIT:
            self.clear()
            raise OutboxFull

    def take(self, next_serial: Callable[[], int]) -> bytes:
        """The next messages, about CHUNK bytes of them; empty when nothing waits."""
        size = taken = 0
        parts = []
        for member, body in self._entries:
            part = message(member, body, next_serial())
            parts.append(part)
            size += len(part)
            taken += 1
            if size >= CHUNK:
                break
        if taken == len(self._entries):
            self.clear()
        else:
            del self._entries[:taken]
            self._bytes -= size
            moved = {one: at - taken for one, at in self._changed_at.items() if at >= taken}
            self._changed_at = moved
        return b"".join(parts)

    def clear(self) -> None:
        """Forget everything that waits."""
        self._entries.clear()
        self._changed_at.clear()
        self._bytes = 0
