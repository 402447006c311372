# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the hardened reader makes of messages: plain ones decoded, others left alone or skipped, none lost."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("dbus_next")

from dbus_next import Message, MessageType, Variant
from hypothesis import given
from hypothesis import strategies as st

from bgtaskd.daemon import bus_connection
from bgtaskd.daemon.bus_connection import _Unmarshaller
from bgtaskd.daemon.bus_reader import BODY_MAX, RawBody


class Stream:
    """A socket's stream: gives what is there, then None ("not yet"), then more."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = list(parts)

    def read(self, size: int) -> bytes | None:
        if not self.parts:
            return None
        part = self.parts.pop(0)
        if not part:
            return None
        if len(part) > size:
            self.parts.insert(0, part[size:])
        return part[:size]


def read_all(stream: Stream) -> list[Any]:
    messages: list[Any] = []
    while stream.parts:
        reader = _Unmarshaller(stream)
        while not reader.unmarshall():
            if not stream.parts:
                return messages
        messages.append(reader.message)
    return messages


def raw(signature: str, body: list[Any], kind: MessageType = MessageType.METHOD_CALL) -> bytes:
    names: dict[str, Any] = {"path": "/a", "interface": "a.b", "member": "C"}
    if kind in (MessageType.METHOD_RETURN, MessageType.ERROR):
        names = {"reply_serial": 3}
    if kind is MessageType.ERROR:
        names["error_name"] = "a.b.C"
    message = Message(message_type=kind, signature=signature, body=body, serial=5, **names)
    return bytes(message._marshall())


@given(st.text().filter(lambda text: "\0" not in text), st.integers(0, 2**64 - 1), st.data())
def test_plain_messages_are_what_dbus_next_makes_of_them(
    text: str, number: int, data: st.DataObject
) -> None:
    whole = raw("ts", [number, text])
    cut = data.draw(st.integers(1, len(whole) - 1))
    [message] = read_all(Stream(whole[:cut], b"", whole[cut:]))
    assert message.body == [number, text]
    assert (message.path, message.interface, message.member) == ("/a", "a.b", "C")
    assert (message.signature, message.serial) == ("ts", 5)


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        ("ab", [[True] * 10]),
        ("v", [Variant("s", "a")]),
        ("(s)", [["a"]]),
        ("a{sv}", [{"a": Variant("s", "b")}]),
        ("s" * 9, ["a"] * 9),
        ("as", [["a" * BODY_MAX]]),
    ],
    ids=["ab", "v", "(s)", "a{sv}", "9s", "large"],
)
def test_what_strangers_nest_is_left_alone(signature: str, body: list[Any]) -> None:
    for kind in (MessageType.METHOD_CALL, MessageType.SIGNAL):
        nested, plain = read_all(Stream(raw(signature, body, kind) + raw("s", ["next"])))
        assert nested.signature == signature
        assert plain.body == ["next"]
        if kind is MessageType.SIGNAL or signature in ("as", "s" * 9):
            assert nested.body is None
        else:
            assert isinstance(nested.body, RawBody)


def test_answers_are_decoded() -> None:
    for kind in (MessageType.METHOD_RETURN, MessageType.ERROR):
        [message] = read_all(Stream(raw("(bba{ss})", [[True, False, {"a": "b"}]], kind)))
        assert message.body == [[True, False, {"a": "b"}]]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:1] + b"\x09" + data[2:],  # a type of message of the future
        lambda data: data.replace(b"\x03\x01s\0", b"\x4d\x01s\0"),  # a header field of the future
        lambda data: data.replace(b"next", b"\xff\xfe\xfd\xfc"),  # no UTF-8
    ],
    ids=["type", "field", "text"],
)
def test_what_cannot_be_read_is_skipped(spoil: Any) -> None:
    whole = raw("s", ["next"])
    assert spoil(whole) != whole
    bad, good = read_all(Stream(spoil(whole) + whole))
    assert bad is bus_connection._UNREADABLE
    assert good.body == ["next"]


def test_what_is_no_dbus_at_all_ends_the_connection() -> None:
    with pytest.raises(bus_connection.BusError):
        read_all(Stream(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"))
