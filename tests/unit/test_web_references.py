# SPDX-License-Identifier: LGPL-2.1-or-later
"""A reference is good for one user, for a while, for what it says; nothing else is."""

from __future__ import annotations

import base64
import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgtaskd.web import InvalidReference, read_reference, reference
from bgtaskd.web.references import RIGHTS as ALL

KEY = "0123456789abcdef-a-secret"
USERS = st.none() | st.text(max_size=20)
RIGHTS = st.sets(st.sampled_from(ALL))


@given(st.integers(1, 2**62), USERS, RIGHTS)
def test_it_says_what_was_put_in(task_id: int, user: str | None, may: set[str]) -> None:
    token = reference(task_id, key=KEY, user=user, may=may)
    assert set(token) <= set(string.ascii_letters + string.digits + "-_")
    said = read_reference(token, KEY, user)
    assert (said.task_id, said.name, said.may) == (task_id, None, frozenset(may))


@given(st.text(min_size=1, max_size=100))
def test_it_may_name_tasks(name: str) -> None:
    said = read_reference(reference(name=name, key=KEY, user="u"), KEY, "u")
    assert (said.task_id, said.name) == (None, name)


@given(st.integers(1, 10**6), USERS, RIGHTS, st.data())
def test_any_changed_bit_breaks_it(
    task_id: int, user: str | None, may: set[str], data: st.DataObject
) -> None:
    token = reference(task_id, key=KEY, user=user, may=may)
    place = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters(max_codepoint=0x7F).filter(lambda one: one != token[place]))
    with pytest.raises(InvalidReference):
        read_reference(token[:place] + other + token[place + 1 :], KEY, user)


def test_each_of_its_bits_counts() -> None:
    token = reference(7, key=KEY, user="alice", may=("stop",))
    for place in range(len(token)):
        for bit in range(7):
            altered = token[:place] + chr(ord(token[place]) ^ 1 << bit) + token[place + 1 :]
            with pytest.raises(InvalidReference):
                read_reference(altered, KEY, "alice")
    for cut in range(len(token)):
        with pytest.raises(InvalidReference):
            read_reference(token[:cut], KEY, "alice")
    for more in ("=", "A", "\n", "%3D", "é"):
        with pytest.raises(InvalidReference):
            read_reference(token + more, KEY, "alice")


@given(st.text())
def test_a_guess_is_refused(guess: str) -> None:
    with pytest.raises(InvalidReference):
        read_reference(guess, KEY, None)


@given(USERS, USERS)
def test_another_users_is_refused(user: str | None, other: str | None) -> None:
    token = reference(7, key=KEY, user=user)
    if user is None or user == other:
        assert read_reference(token, KEY, other).task_id == 7
    else:
        with pytest.raises(InvalidReference):
            read_reference(token, KEY, other)
        with pytest.raises(InvalidReference):
            read_reference(token, KEY, None)


def test_another_key_and_another_time(monkeypatch: pytest.MonkeyPatch) -> None:
    token = reference(7, key=KEY, user=None, expires=60)
    with pytest.raises(InvalidReference):
        read_reference(token, KEY + "x", None)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 59)
    assert read_reference(token, KEY, None).task_id == 7
    monkeypatch.setattr(time, "time", lambda: now + 61)
    with pytest.raises(InvalidReference):
        read_reference(token, KEY, None)


def test_the_user_is_not_to_be_read_in_it() -> None:
    token = reference(7, key=KEY, user="alice@example.org")
    assert b"alice" not in base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))


def test_what_cannot_be_signed() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        reference(7, key="short", user=None)
    with pytest.raises(ValueError, match="may: 'kill'"):
        reference(7, key=KEY, user=None, may=("kill",))
    with pytest.raises(ValueError, match="task_id or to a name"):
        reference(key=KEY, user=None)
    with pytest.raises(ValueError, match="task_id or to a name"):
        reference(7, name="x", key=KEY, user=None)
    with pytest.raises(TypeError):
        reference("7", key=KEY, user=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="too long"):
        reference(name="x" * 2000, key=KEY, user=None)
    with pytest.raises(ValueError, match="looked at only"):
        reference(name="x", key=KEY, user=None, may=("stop",))
