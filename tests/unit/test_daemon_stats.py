# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sums by name, and what runs when a task has ended."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from bgtaskd.daemon.hooks import hook_of
from bgtaskd.daemon.stats import percentile, stats_by_name
from bgtaskd.model import NAME_MAX, Result, State, Task, TaskSpec
from bgtaskd.storage.interface import Ended


@given(st.lists(st.integers(0, 1000), min_size=1), st.integers(1, 100))
def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed(
    values: list[int], percent: int
) -> None:
    found = percentile(sorted(values), percent)
    assert found is not None
    assert found in values
    enough = math.ceil(len(values) * percent / 100)
    assert sum(value <= found for value in values) >= enough
    assert sum(value < found for value in values) < enough


def test_sums_by_name() -> None:
    rows = stats_by_name(
        [
            Ended("a", "success", 10, 1, 5),
            Ended("a", "exit-code", 30, 2, 9),
            Ended("a", "stopped", None, None, None),
            Ended("b", "lost", None, None, None),
        ]
    )
    nothing = {"p50_usec": None, "p95_usec": None, "memory_peak": None, "cpu_usec": 0}
    assert rows == [
        {"name": "a", "runs": 3, "failures": 1}
        | {"p50_usec": 10, "p95_usec": 30, "memory_peak": 9, "cpu_usec": 3},
        {"name": "b", "runs": 1, "failures": 1} | nothing,
    ]
    assert percentile([], 50) is None


def ended(result: Result, on: str | None) -> Task:
    hook = {"argv": ["mail", "me"], **({} if on is None else {"on": on})}
    spec = TaskSpec(
        name="n" * NAME_MAX, argv=("true",), env={"A": "1"}, on_end=hook, secrets=("s",)
    )
    state = State.FINISHED if result is Result.SUCCESS else State.FAILED
    return Task(
        id=7,
        spec=spec,
        uid=1,
        user="me",
        owner_uid=2,
        state=state,
        created=0,
        updated=0,
        result=result,
    )


def test_a_hook_is_a_task_of_its_own() -> None:
    hook = hook_of(ended(Result.TIMEOUT, None), 8, 99)
    assert hook is not None
    assert (hook.id, hook.uid, hook.owner_uid, hook.state) == (8, 1, 2, State.QUEUED)
    assert hook.spec.argv == ("mail", "me")
    assert len(hook.spec.name) == NAME_MAX
    assert hook.spec.env["A"] == "1"
    assert hook.spec.env["BGTASK_ENDED_RESULT"] == "timeout"
    assert hook.spec.on_end is None
    assert hook.spec.secrets == ()


def test_a_hook_may_be_for_one_end_only() -> None:
    assert hook_of(ended(Result.TIMEOUT, "success"), 8, 0) is None
    assert hook_of(ended(Result.SUCCESS, "failure"), 8, 0) is None
    assert hook_of(ended(Result.SUCCESS, "success"), 8, 0) is not None
    assert hook_of(ended(Result.LOST, "failure"), 8, 0) is not None
