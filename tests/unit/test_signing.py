# SPDX-License-Identifier: LGPL-2.1-or-later
"""A signature vouches for every part of a request, and for nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bgtaskd.signing import Signed, is_signed, sign

KEY = b"k" * 32
LINE = st.binary(max_size=20).filter(lambda one: b"\n" not in one)
WORD = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=8)
NUMBER = st.integers(0, 1 << 53)
PARTS: dict[str, st.SearchStrategy[Any]] = {
    "timestamp": NUMBER,
    "nonce": WORD,
    "id": NUMBER,
    "attempt": NUMBER,
    "method": WORD.filter(lambda one: one == one.upper()),
    "path": LINE,
    "query": LINE,
    "body": st.binary(max_size=40),
}
REQUESTS = st.builds(Signed, **PARTS)


@given(st.binary(min_size=32, max_size=40), REQUESTS)
def test_what_is_signed_is_known_again(key: bytes, request: Signed) -> None:
    assert is_signed(key, request, sign(key, request))


@given(REQUESTS, st.data())
def test_any_change_of_any_part_breaks_it(request: Signed, data: st.DataObject) -> None:
    part = data.draw(st.sampled_from(sorted(PARTS)))
    value = data.draw(PARTS[part])
    assume(value != getattr(request, part))
    assert not is_signed(KEY, replace(request, **{part: value}), sign(KEY, request))


@given(REQUESTS, REQUESTS)
def test_no_two_requests_share_a_signature(one: Signed, other: Signed) -> None:
    assert (one.message() == other.message()) == (one == other)


@given(REQUESTS, st.binary(min_size=32, max_size=40), st.text(max_size=80))
def test_another_key_or_signature_is_refused(request: Signed, key: bytes, text: str) -> None:
    signature = sign(KEY, request)
    assume(key != KEY)
    assume(text != signature)
    assert not is_signed(key, request, signature)
    assert not is_signed(KEY, request, text)


@pytest.mark.parametrize("part", ["path", "query"])
def test_a_line_break_cannot_shift_what_is_signed(part: str) -> None:
    request = Signed(1, "n", 1, 1, "GET", b"/a", b"b", b"")
    broken = replace(request, **{part: b"/a\nb"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="line break"):
        sign(KEY, broken)
    assert not is_signed(KEY, broken, sign(KEY, request))
