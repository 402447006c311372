# SPDX-License-Identifier: LGPL-2.1-or-later
"""Output as text holds nothing that a page or a log could stumble over, and all that could be read."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgtaskd.client.plain import Plain, plain


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b[38;2;1;2;3mé\x1b[K\n", "é\n"),
        ("\x1b]0;title\x07a\x1b]8;;http://x\x1b\\b", "ab"),
        ("\x1b(Bx\x1b=y\x1bM", "xy"),
        ("\x1bPq#0\x1b\\after", "after"),
        ("\x9b31mc1\x9d0;t\x9c.", "c1."),
        (" 10%\r 20%\r100%\ndone\r\n", "100%\ndone\n"),
        ("typo\x08\x08ed", "tyed"),
        ("\x08\x08a", "a"),
        ("bell\x07 nul\0 tab\t.", "bell nul tab\t."),
        ("cut off \x1b[3", "cut off "),
        ("\x1b]never ended\nnext line", "\nnext line"),
    ],
)
def test_what_is_left(raw: str, text: str) -> None:
    assert plain(raw) == text


@given(st.text())
def test_nothing_that_controls_a_terminal_is_left(raw: str) -> None:
    assert not any(
        (one < " " and one not in "\t\n") or "\x7f" <= one <= "\x9f" for one in plain(raw)
    )


@given(st.text(st.sampled_from("ab\n\r\t\x1b[]0;m\x07é€")), st.lists(st.integers(0, 40)))
def test_in_pieces_it_is_the_same(raw: str, cuts: list[int]) -> None:
    data = raw.encode()
    places = sorted(min(cut, len(data)) for cut in [0, *cuts, len(data)])
    one = Plain()
    out = "".join(
        one.feed(data[a:b]) for a, b in zip(places, [*places[1:], len(data)], strict=True)
    )
    assert out + one.finish() == plain(raw)


@pytest.mark.parametrize("piece", ["\x1b]", "\x1b[1", "\x1bP", "\x08", "\r", "\x1b"])
def test_garbage_takes_no_time(piece: str) -> None:
    began = time.monotonic()
    plain(piece * 500_000)
    assert time.monotonic() - began < 5


def test_an_endless_line_is_not_kept() -> None:
    one = Plain()
    assert sum(len(one.feed(b"x" * 65536)) for _ in range(64)) > 3_000_000
