# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the launcher and the supervisors are told, by whoever: understood, or refused by name."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgtaskd.launcher.messages import BadMessage, Launch, read_launch
from bgtaskd.launcher.notify import NUMBER_MAX, TEXT_MAX, parse

GOOD: dict[str, Any] = {
    "id": 1,
    "attempt": 1,
    "name": "n",
    "kind": "command",
    "queue": "default",
    "uid": 1000,
    "user": "alice",
    "owner_uid": 1000,
    "argv": ["true"],
    "env": {"A": "b"},
    "cwd": None,
    "properties": {"MemoryMax": "1G"},
    "timeout_usec": None,
    "stall_timeout_usec": 5,
    "stop_timeout_usec": 10,
    "output_cap": 65536,
    "journal_burst": 100,
}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def test_a_good_request_is_understood() -> None:
    assert read_launch(GOOD).argv == ("true",)


@given(st.sampled_from(sorted(GOOD)), ANYTHING)
def test_one_field_of_anything_is_understood_or_refused_by_name(field: str, value: Any) -> None:
    try:
        assert isinstance(read_launch({**GOOD, field: value}), Launch)
    except BadMessage as error:
        assert str(error).startswith(field)


@given(st.dictionaries(st.sampled_from(sorted(GOOD)) | st.text(), ANYTHING))
def test_anything_is_understood_or_refused(message: dict[str, Any]) -> None:
    try:
        read_launch(message)
    except BadMessage as error:
        assert str(error)


@pytest.mark.parametrize("queue", ["a-b", "../x", "", "a.slice", "a/b", "ä", "x" * 65])
def test_no_queue_name_leads_out_of_our_slices(queue: str) -> None:
    with pytest.raises(BadMessage, match="queue"):
        read_launch({**GOOD, "queue": queue})


@given(st.binary(max_size=500))
def test_any_notify_message_is_taken_within_bounds(data: bytes) -> None:
    message = parse(data)
    assert set(message.report) <= {"message", "percent", "finished", "total"}


@given(st.sampled_from(["PROGRESS", "FINISHED", "TOTAL"]), st.text() | st.floats().map(str))
def test_progress_is_a_number_within_bounds_or_nothing(key: str, value: str) -> None:
    report = parse(f"X_BGTASK_{key}={value}".encode()).report
    percent = report.get("percent")
    assert percent is None or (math.isfinite(percent) and 0 <= percent <= 100)
    for name in ("finished", "total"):
        assert 0 <= report.get(name, 0) <= NUMBER_MAX


def test_a_long_status_is_cut() -> None:
    assert len(parse(b"STATUS=" + b"x" * 60000).report["message"]) == TEXT_MAX
