# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whatever bytes come, in whatever pieces: messages, or one clear refusal."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgtaskd.protocol.codec import Decoder, MalformedMessage, encode
from bgtaskd.protocol.idl import InvalidParameter
from bgtaskd.protocol.interface import bgtaskd_interface

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
MESSAGES = st.dictionaries(st.text(max_size=8), VALUES, max_size=5)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


@given(st.lists(MESSAGES, max_size=4), st.lists(st.integers(0, 40), max_size=20))
def test_messages_come_out_as_they_went_in(
    messages: list[dict[str, Any]], sizes: list[int]
) -> None:
    decoder = Decoder()
    data = b"".join(encode(one) for one in messages)
    out = [one for piece in cut(data, sizes) for one in decoder.feed(piece)]
    assert out == messages
    assert len(decoder) == 0


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_any_bytes_give_messages_or_a_refusal(pieces: list[bytes]) -> None:
    decoder = Decoder(limit=300)
    try:
        for piece in pieces:
            assert all(isinstance(one, dict) for one in decoder.feed(piece))
            assert len(decoder) < 300
    except MalformedMessage as error:
        assert str(error)


@pytest.mark.parametrize(
    "data",
    [
        b"[]\0",
        b"1\0",
        b"\0",
        b"{\0",
        b"\xff\0",
        b'{"a": NaN}\0',
        b'{"a": 1' + b"0" * 5000 + b"}\0",
        b'{"a":' * 100_000 + b"\0",
        b'{"a":' + b"[" * 64 + b"]" * 64 + b"}\0",
        b'{"a": 1e999}\0',
        b'{"a": -1e999}\0',
        b'{"a": "\\ud800"}\0',
        b'{"\\uDFFF": 1}\0',
        '{"a": 1}'.encode("utf-16") + b"\0",
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        Decoder().feed(data)


def test_a_message_beyond_the_limit_is_refused_before_it_is_whole() -> None:
    decoder = Decoder()
    with pytest.raises(MalformedMessage):
        for _ in range(100):
            decoder.feed(b"x" * 65536)
    assert len(decoder) == 0


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":' + b"[" * 63 + b"]" * 63 + b"}\0",
        b'{"a": [' + b"[]," * 1000 + b"[]]}\0",
        b'{"a": "' + b"[" * 1000 + b'"}\0',
        b'{"a": "\\ud83d\\ude00"}\0',
        b'{"a": 9223372036854775807, "b": 1e308}\0',
    ],
)
def test_what_comes_in_can_go_out_and_be_kept(data: bytes) -> None:
    (message,) = Decoder().feed(data)
    assert Decoder().feed(encode(message)) == [message]
    json.dumps(message, ensure_ascii=False).encode()


def test_frames_before_one_that_is_too_long_are_not_lost() -> None:
    with pytest.raises(MalformedMessage) as refused:
        Decoder(limit=10).frames(b"{}\0[]\0" + b"x" * 20 + b"\0{}\0")
    assert refused.value.before == [b"{}", b"[]"]


def test_what_json_cannot_say_is_not_sent() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode({"a": float("nan")})


def test_our_interface_documents_each_method() -> None:
    lines = bgtaskd_interface().text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("method "):
            assert lines[number - 1].startswith("# "), line


@given(st.sampled_from(sorted(bgtaskd_interface().methods)), MESSAGES)
def test_any_parameters_pass_or_are_refused_by_name(method: str, given_: dict[str, Any]) -> None:
    try:
        bgtaskd_interface().check(method, given_)
    except InvalidParameter as error:
        assert error.reason
    else:
        json.dumps(given_)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({}, "spec"),
        ({"spec": {}}, "spec.argv"),
        ({"spec": {"argv": "true"}}, "spec.argv"),
        ({"spec": {"argv": ["a", 1]}}, "spec.argv[1]"),
        ({"spec": {"argv": ["a"], "colour": "red"}}, "spec.colour"),
        ({"spec": {"argv": ["a"], "priority": 1.5}}, "spec.priority"),
        ({"spec": {"argv": ["a"], "priority": True}}, "spec.priority"),
        ({"spec": {"argv": ["a"], "env": {"A": 1}}}, "spec.env.A"),
        ({"spec": {"argv": ["a"]}, "more": 1}, "more"),
    ],
)
def test_a_refusal_names_the_parameter(parameters: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        bgtaskd_interface().check("Start", parameters)
    assert refused.value.parameter == named
