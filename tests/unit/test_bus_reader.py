# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bodies of strangers' messages: read as dbus-next would, but bounded, and no surprises."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

pytest.importorskip("dbus_next")

from dbus_next import Message, MessageType, Variant
from hypothesis import given, settings
from hypothesis import strategies as st

from bgtaskd.daemon.bus_connection import _Unmarshaller
from bgtaskd.daemon.bus_reader import BODY_MAX, VALUES_MAX, RawBody, Unreadable, read_body
from tests.unit.test_bus_connection import Stream

TEXT = st.text().filter(lambda text: "\0" not in text)
BASIC = st.one_of(
    st.tuples(st.just("s"), TEXT),
    st.tuples(st.just("b"), st.booleans()),
    st.tuples(st.just("y"), st.integers(0, 2**8 - 1)),
    st.tuples(st.just("n"), st.integers(-(2**15), 2**15 - 1)),
    st.tuples(st.just("q"), st.integers(0, 2**16 - 1)),
    st.tuples(st.just("i"), st.integers(-(2**31), 2**31 - 1)),
    st.tuples(st.just("u"), st.integers(0, 2**32 - 1)),
    st.tuples(st.just("x"), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just("t"), st.integers(0, 2**63 - 1)),
    st.tuples(st.just("d"), st.floats(allow_nan=False, allow_infinity=False)),
    st.tuples(st.just("as"), st.lists(TEXT)),
    st.tuples(st.just("at"), st.lists(st.integers(0, 2**63 - 1))),
    st.tuples(st.just("a{ss}"), st.dictionaries(TEXT, TEXT)),
    st.tuples(st.just("a{sx}"), st.dictionaries(TEXT, st.integers(-5, 5))),
    st.tuples(st.just("aas"), st.lists(st.lists(TEXT))),
    st.tuples(st.just("aa{ss}"), st.lists(st.dictionaries(TEXT, TEXT))),
)
VALUES = st.recursive(
    BASIC,
    lambda inner: st.one_of(
        st.tuples(st.just("v"), inner),
        st.tuples(st.just("a{sv}"), st.dictionaries(TEXT, inner, max_size=3)),
        st.tuples(st.just("av"), st.lists(inner, max_size=3)),
    ),
    max_leaves=6,
)


def wire(signature: str, value: Any) -> Any:
    """The value for dbus-next, variants as its Variants."""
    if signature == "v":
        return Variant(value[0], wire(*value))
    if signature == "a{sv}":
        return {key: Variant(one[0], wire(*one)) for key, one in value.items()}
    if signature == "av":
        return [Variant(one[0], wire(*one)) for one in value]
    return value


def plain(signature: str, value: Any) -> Any:
    """The value as it is to come out."""
    if signature == "v":
        return plain(*value)
    if signature == "a{sv}":
        return {key: plain(*one) for key, one in value.items()}
    return [plain(*one) for one in value] if signature == "av" else value


def body_of(signature: str, values: list[Any], member: str = "C") -> RawBody:
    message = Message(
        message_type=MessageType.METHOD_CALL,
        path="/a",
        interface="a.b",
        member=member,
        signature=signature,
        body=values,
        serial=1,
    )
    reader = _Unmarshaller(Stream(bytes(message._marshall())))
    assert reader.unmarshall()
    body = reader.message.body
    assert isinstance(body, RawBody)
    return body


@settings(deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=4), st.text("abcdefghijk", min_size=1))
def test_what_dbus_next_writes_is_read(values: list[Any], member: str) -> None:
    values.append(("at", [1]))  # something that is not flat
    signature = "".join(one for one, _ in values)
    body = body_of(signature, [wire(*one) for one in values], member)
    assert read_body(body, signature) == [plain(*one) for one in values]


@settings(deadline=None)
@given(
    st.binary(),
    st.sampled_from(["a{sv}", "ta{sv}", "tat", "aas", "av", "a{sa{sv}}"]),
    st.booleans(),
)
def test_anything_else_is_refused_in_words(data: bytes, signature: str, little: bool) -> None:
    try:
        read_body(RawBody(data, "<" if little else ">"), signature)
    except Unreadable as error:
        assert str(error)


@settings(deadline=None)
@given(st.data())
def test_a_spoilt_body_is_refused_in_words(data: st.DataObject) -> None:
    spec = {
        "argv": Variant("as", ["a", "b"]),
        "env": Variant("a{ss}", {"a": "b"}),
        "n": Variant("x", 7),
    }
    body = bytearray(body_of("ta{sv}", [1, spec]).data)
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] = data.draw(st.integers(0, 255))
    try:
        read_body(RawBody(bytes(body[: data.draw(st.integers(0, len(body)))]), "<"), "ta{sv}")
    except Unreadable as error:
        assert str(error)


@pytest.mark.parametrize(
    ("signature", "value", "words"),
    [
        ("a(s)", [["a"]], "arrays of"),
        ("v", Variant("(s)", ["a"]), '"("'),
        ("v", Variant("d", math.nan), "nan is no number"),
        ("v", Variant("t", 2**63), "63 bits"),
        ("a{us}", {1: "a"}, "keys"),
        ("at", list(range(VALUES_MAX)), "more than"),
        ("aaaaaaaaau", [[[[[[[[[1]]]]]]]]], "deeper"),
    ],
)
def test_refused(signature: str, value: Any, words: str) -> None:
    with pytest.raises(Unreadable, match=words.replace("(", r"\(")):
        read_body(body_of(signature, [value]), signature)


def test_a_variant_is_of_one_type() -> None:
    for inner in (b"ss", b"", b"a", b"a{", b"{sv}", b"a{s", b"a{v}"):
        body = bytes([len(inner)]) + inner + b"\0" * 60
        with pytest.raises(Unreadable):
            read_body(RawBody(body, "<"), "v")


def test_the_worst_takes_no_time() -> None:
    """Variants in variants, small values by the hundred thousand: dbus-next would take seconds."""
    nested = b"\x01v\0" * (BODY_MAX // 3)
    many = (BODY_MAX - 8).to_bytes(4, "little") + b"\x01y\0\x07" * (BODY_MAX // 4 - 2)
    began = time.process_time()
    for data, signature in ((nested, "v"), (many, "av")):
        with pytest.raises(Unreadable):
            read_body(RawBody(data, "<"), signature)
    assert time.process_time() - began < 0.5
