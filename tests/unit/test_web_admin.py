# SPDX-License-Identifier: LGPL-2.1-or-later
"""The administrator's page: who comes in, and that nothing gets into its markup."""

from __future__ import annotations

import html.parser
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgtaskd.web.admin.door import ADMINISTRATOR, COOKIE, Door
from bgtaskd.web.admin.html import el
from bgtaskd.web.admin.pages import size
from bgtaskd.web.page import Request

TOKEN = "the-token-of-this-run"


def who(door: Door, **headers: str) -> str | None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return door.who(Request("GET", "/", headers=named))


def test_a_proxys_word_counts_only_with_the_token_and_where_configured() -> None:
    door = Door(TOKEN, "X-Remote-User")
    bearer = f"Bearer {TOKEN}"
    assert who(door, authorization=bearer, x_remote_user="ann") == "ann"
    assert who(door, authorization=bearer) == ADMINISTRATOR
    assert who(door, authorization=bearer, x_remote_user="a\nb\x1b[2J" + "c" * 200) == (
        "ab[2J" + "c" * 95
    )
    assert who(door, x_remote_user="ann") is None
    assert who(door, authorization="Bearer guess", x_remote_user="ann") is None
    assert who(door, authorization=f"Basic {TOKEN}") is None
    assert who(door, authorization="Bearer ") is None
    assert who(Door(TOKEN), authorization=bearer, x_remote_user="ann") == ADMINISTRATOR


def test_a_cookie_is_this_runs_and_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door(TOKEN)
    cookie = door.cookie().partition(";")[0]
    assert who(door, cookie=f"other=1; {cookie}") == ADMINISTRATOR
    assert who(Door(TOKEN), cookie=cookie) is None
    assert who(door, cookie=f"{cookie}x") is None
    assert who(door, cookie=f"{COOKIE}={TOKEN}") is None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 13 * 3600)
    assert who(door, cookie=cookie) is None


@given(st.text())
def test_whatever_a_cookie_is(text: str) -> None:
    assert who(Door(TOKEN), cookie=text) is None


@given(st.text(), st.text())
def test_text_never_becomes_markup(inside: str, attribute: str) -> None:
    seen: list[tuple[str, str | None]] = []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.append((tag, dict(attrs).get("title")))

    reader = Reader(convert_charrefs=True)
    reader.feed(el("p", inside, [inside, None], title=attribute))
    assert [tag for tag, _ in seen] == ["p"]


@pytest.mark.parametrize(
    ("count", "shown"),
    [(None, None), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 30, "1.0 GiB")],
)
def test_sizes(count: int | None, shown: str | None) -> None:
    assert size(count) == shown
