# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a supervisor may say, and that nothing else is believed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgtaskd.daemon.hearsay import BadHearsay, check_exit, check_message
from bgtaskd.daemon.supervisors import _from_card, _reported, exited_of

CARD = {"name": "n", "kind": "command", "queue": "default", "user": "me", "uid": 1, "owner_uid": 1}
HELLO = {
    "id": 7,
    "attempt": 1,
    "unit": "bgtask-7.scope",
    "boot_id": "b",
    "card": CARD,
    "pid": 12,
    "supervisor": 11,
    "started": 1_700_000_000_000_000,
    "frozen": False,
    "progress": {"percent": 4.5, "message": "half"},
    "output_bytes": 3,
    "stalled": False,
    "timed_out": False,
    "left_over": False,
}
EXIT = {
    "result": "exit-code",
    "exit_status": 3,
    "signal": None,
    "cpu_usec": 5,
    "memory_peak": 6,
    "io_read_bytes": None,
    "io_write_bytes": 0,
    "error": None,
    "started": 1,
    "ended": 2,
    "progress": {},
    "output_bytes": 0,
    "output_dropped": 0,
}
GOOD = [
    {"hello": HELLO},
    {"report": {"percent": 100, "total": 3, "finished": 3, "message": "done"}},
    {"output_bytes": 12},
    {"frozen": True},
    {"stalled": True},
    {"timed_out": True},
    {"left_over": 3},
    {"exited": EXIT},
    {"a word of a later version": [1, 2]},
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=10,
)


@pytest.mark.parametrize("said", GOOD, ids=lambda said: next(iter(said)))
def test_what_supervisors_say_is_believed(said: dict[str, Any]) -> None:
    assert check_message(json.loads(json.dumps(said))) == said


def paths(value: Any, here: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(value, dict):
        return [here]
    return [here] + [path for key, one in value.items() for path in paths(one, (*here, key))]


def use(said: dict[str, Any]) -> None:
    """What the daemon makes of a message that it believes: none of it may fail."""
    if "hello" in said:
        _from_card(said["hello"])
    if "report" in said:
        _reported(said["report"])
    if "exited" in said and said["exited"]["result"] != "not-started":
        exited_of(said["exited"])


@given(st.sampled_from(GOOD), st.data())
def test_one_wrong_field_is_named_or_harmless(good: dict[str, Any], data: st.DataObject) -> None:
    said = json.loads(json.dumps(good))
    path = data.draw(st.sampled_from(paths(said)[1:]))
    place = said
    for key in path[:-1]:
        place = place[key]
    if data.draw(st.booleans()):
        del place[path[-1]]
    else:
        place[path[-1]] = data.draw(JSON)
    try:
        use(dict(check_message(said)))
    except BadHearsay as error:
        assert str(error).startswith(path[0])


@given(JSON)
def test_anything_at_all(said: Any) -> None:
    try:
        use(dict(check_message(said)))
    except BadHearsay:
        pass


@pytest.mark.parametrize(
    ("exit_", "named"),
    [
        (None, "exit: is not an object"),
        ({}, "exit.result: is missing"),
        ({"result": "well"}, "exit.result: is not a result"),
        ({"result": ["success"]}, "exit.result: is not a result"),
        ({"result": "success", "ended": -1}, "exit.ended: is not a whole number"),
        ({"result": "success", "progress": {"percent": True}}, "exit.progress.percent"),
        ({"result": "success", "progress": {"percent": 101}}, "exit.progress.percent"),
    ],
)
def test_a_bad_end_names_its_field(exit_: Any, named: str) -> None:
    with pytest.raises(BadHearsay) as caught:
        check_exit(exit_)
    assert str(caught.value).startswith(named)
