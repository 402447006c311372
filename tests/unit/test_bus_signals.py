# SPDX-License-Identifier: LGPL-2.1-or-later
"""Signals marshalled by hand are byte for byte what dbus-next makes of them; the outbox keeps order."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import pytest

pytest.importorskip("dbus_next")

from dbus_next import Message
from hypothesis import example, given
from hypothesis import strategies as st

from bgtaskd.daemon import bus_signals
from bgtaskd.daemon.bus_signals import INTERFACE, PATH, SIGNALS, Outbox, OutboxFull, Pace, clean
from bgtaskd.model import State, Task, TaskSpec

IDS = st.integers(1, 2**63 - 1)
TEXT = st.text(max_size=40)
INT64 = st.integers(-(2**63), 2**63 - 1)


def by_dbus_next(member: str, body: list[Any], serial: int) -> bytes:
    signature = "".join(one for _, one in SIGNALS[member][0])
    message = Message.new_signal(PATH, INTERFACE, member, signature, body)
    message.serial = serial
    return bytes(message._marshall())


def a_task(task_id: int = 42, **fields: Any) -> Task:
    return Task(
        id=task_id,
        spec=TaskSpec(name="a name", argv=("true",)),
        uid=1000,
        user="alice",
        owner_uid=1000,
        state=fields.pop("state", State.RUNNING),
        created=1,
        updated=2,
        **fields,
    )


@given(IDS, st.integers(1, 2**32 - 1))
def test_added(task_id: int, serial: int) -> None:
    ours = bus_signals.message("TaskAdded", bus_signals.added_body(task_id), serial)
    assert ours == by_dbus_next("TaskAdded", [task_id], serial)


@given(IDS, TEXT, TEXT)
@example(1, "a\0b", "\ud800")
def test_finished_and_signaled(task_id: int, first: str, second: str) -> None:
    for member in ("TaskFinished", "TaskSignaled"):
        ours = bus_signals.message(member, bus_signals.two_strings_body(task_id, first, second), 7)
        words = [clean(first).decode(), clean(second).decode()]
        assert ours == by_dbus_next(member, [task_id, *words], 7)


@given(
    st.builds(
        a_task,
        IDS,
        state=st.sampled_from(State),
        percent=st.none() | st.floats(0, 100),
        total=st.none() | INT64,
        finished=st.none() | INT64,
        message=st.none() | TEXT,
    ),
    st.booleans(),
)
@example(a_task(message="nul \0 and surrogate \udc80"), True)
@example(a_task(total=2**70, finished=-(2**70)), False)
def test_changed(task: Task, with_message: bool) -> None:
    ours = bus_signals.message("TaskChanged", bus_signals.changed_body(task, with_message), 9)
    values = bus_signals.changed_values(task, with_message)
    assert ours == by_dbus_next("TaskChanged", [task.id, values], 9)


def test_a_starting_task_is_queued_to_the_world_and_its_message_stays_at_home() -> None:
    body = bus_signals.changed_body(a_task(state=State.STARTING, message="private"), False)
    assert b"queued" in body
    assert b"starting" not in body
    assert b"private" not in body


def members(data: bytes) -> list[tuple[str, int]]:
    """The members of several messages, with their serials."""
    found = []
    while data:
        body, serial, fields = (int.from_bytes(data[at : at + 4], "little") for at in (4, 8, 12))
        header = 16 + fields + -fields % 8
        [member] = [one for one in SIGNALS if one.encode() + b"\0" in data[:header]]
        found.append((member, serial))
        data = data[header + body :]
    return found


def test_the_outbox_folds_changes_but_never_across_an_end() -> None:
    outbox = Outbox()
    outbox.put(1, "TaskAdded", bus_signals.added_body(1))
    for percent in range(50):
        for task_id in (1, 2):
            task = a_task(task_id, percent=float(percent))
            outbox.put(task_id, "TaskChanged", bus_signals.changed_body(task, False))
    outbox.put(1, "TaskFinished", bus_signals.two_strings_body(1, "finished", "success"))
    outbox.put(1, "TaskChanged", bus_signals.changed_body(a_task(1, percent=99.0), False))
    outbox.put(2, "TaskChanged", bus_signals.changed_body(a_task(2, percent=60.0), False))
    sent = outbox.take(count(5).__next__)
    assert members(sent) == [
        ("TaskAdded", 5),
        ("TaskChanged", 6),
        ("TaskChanged", 7),
        ("TaskFinished", 8),
        ("TaskChanged", 9),
    ]
    for body in (
        bus_signals.changed_body(a_task(1, percent=49.0), False),
        bus_signals.changed_body(a_task(2, percent=60.0), False),
    ):
        assert sent.count(body) == 1
    assert bus_signals.changed_body(a_task(1, percent=48.0), False) not in sent
    assert not outbox
    assert outbox.take(count(1).__next__) == b""


def test_the_outbox_goes_out_in_chunks_and_still_folds_what_is_left() -> None:
    outbox = Outbox()
    last = 2000
    for task_id in range(1, last + 1):
        body = bus_signals.changed_body(a_task(task_id, percent=1.0), False)
        outbox.put(task_id, "TaskChanged", body)
    serial = count(1).__next__
    parts = [outbox.take(serial)]
    assert bus_signals.CHUNK <= len(parts[0]) < bus_signals.CHUNK + 1000
    final = bus_signals.changed_body(a_task(last, percent=2.0), False)
    outbox.put(last, "TaskChanged", final)
    while outbox:
        parts.append(outbox.take(serial))
    sent = b"".join(parts)
    assert [serial for _, serial in members(sent)] == list(range(1, last + 1))
    assert sent.endswith(final)
    assert outbox._bytes == 0


def test_the_outbox_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_signals, "OUTBOX_LIMIT", 2000)
    outbox = Outbox()
    with pytest.raises(OutboxFull):
        for task_id in range(100):
            outbox.put(task_id, "TaskAdded", bus_signals.added_body(task_id))
    assert not outbox
    outbox.put(1, "TaskAdded", bus_signals.added_body(1))


def test_a_change_of_state_never_waits() -> None:
    async def main() -> None:
        told: list[Task] = []
        pace = Pace(told.append)
        pace.knows(a_task(state=State.QUEUED))
        pace.changed(a_task(state=State.STARTING))
        assert told == []
        steps = [a_task(), a_task(state=State.PAUSED), a_task()]
        for step in steps:
            pace.changed(step)
        assert told == steps
        pace.changed(a_task(percent=1.0))
        pace.changed(a_task(percent=2.0))
        assert told == steps
        pace.forget(42)
        assert told == [*steps, a_task(percent=2.0)]
        await asyncio.sleep(1.5 * bus_signals.PACE)
        assert len(told) == 4

    asyncio.run(main())
