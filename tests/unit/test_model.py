# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whatever happens to a task, in whatever order, what it says of itself stays true."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgtaskd.model import (
    ENDED,
    LIVE,
    NEVER_RETRIED,
    CouldNotStart,
    Due,
    Event,
    Exited,
    Frozen,
    IllegalTransition,
    Picked,
    PutBack,
    Reported,
    Result,
    RetryAsked,
    Started,
    State,
    StopAsked,
    StopReason,
    Task,
    TaskSpec,
    Thawed,
    retry_delay,
    transition,
)

EVENTS = st.one_of(
    st.builds(Due, st.just(1)),
    st.builds(Picked, st.just(2), st.just("boot")),
    st.builds(PutBack, st.just(3)),
    st.builds(CouldNotStart, st.just(4), st.just("no")),
    st.builds(Started, st.just(5), st.just(99)),
    st.builds(
        Reported,
        st.just(6),
        percent=st.none() | st.floats(-10, 200),
        total=st.none() | st.integers(0, 10),
        finished=st.none() | st.integers(0, 20),
        rewind=st.booleans(),
    ),
    st.builds(Frozen, st.just(7)),
    st.builds(Thawed, st.just(8)),
    st.builds(StopAsked, st.just(9), st.sampled_from(StopReason)),
    st.builds(Exited, st.just(10), st.sampled_from(Result)),
    st.builds(RetryAsked, st.just(11)),
)


def task(retries: int = 0, kind: str = "command") -> Task:
    spec = TaskSpec(kind=kind, name="t", argv=("true",), retries=retries)
    return Task(1, spec, 1000, "alice", 1000, State.QUEUED, created=0, updated=0)


def follow(start: Task, *events: Event) -> Task:
    for event in events:
        start = transition(start, event)
    return start


def rewinds(event: Event) -> bool:
    return isinstance(event, Reported) and event.rewind


@given(st.lists(EVENTS, max_size=30), st.integers(0, 3))
def test_whatever_happens_the_task_stays_consistent(events: list[Event], retries: int) -> None:
    now = task(retries)
    for event in events:
        before = now
        try:
            now = transition(before, event)
        except IllegalTransition as refusal:
            assert refusal.task is before
            continue
        assert now.percent is None or 0 <= now.percent <= 100
        assert now.retries_used <= retries
        if now.state in ENDED:
            assert now.ended is not None
            assert now.result is not None
        if now.state in LIVE:
            assert now.ended is None
            assert now.attempt >= 1
        if isinstance(event, Reported) and before.percent is not None:
            assert now.percent is not None
            assert now.percent >= before.percent or event.rewind
        if now.attempt == before.attempt and before.percent is not None and not rewinds(event):
            assert now.state is State.QUEUED or (now.percent or 0) >= before.percent
        if before.state in ENDED:
            assert isinstance(event, RetryAsked)
        if isinstance(event, Exited) and before.stop_reason is StopReason.USER:
            assert now.state is State.STOPPED


@pytest.mark.parametrize("result", sorted(NEVER_RETRIED))
def test_success_and_a_stop_are_never_retried(result: Result) -> None:
    spec = replace(task(3).spec, retry_on=tuple(Result))
    assert not spec.is_retried_after(result)


def test_an_oom_kill_is_retried_only_when_asked_for() -> None:
    assert not task().spec.is_retried_after(Result.OOM_KILL)
    assert replace(task().spec, retry_on=(Result.OOM_KILL,)).is_retried_after(Result.OOM_KILL)


def test_a_success_is_at_a_hundred_and_a_failure_where_it_was() -> None:
    running = follow(task(), Picked(1, "b"), Started(2, 7), Reported(3, percent=40.0))
    assert follow(running, Exited(4, Result.SUCCESS)).percent == 100
    assert follow(running, Exited(4, Result.EXIT_CODE, exit_status=1)).percent == 40


def test_a_record_is_told_by_hand_and_nothing_else_is() -> None:
    record = task(kind="record")
    assert follow(record, Started(2, 0)).state is State.RUNNING
    told = follow(record, Reported(3, percent=5.0))
    assert (told.state, told.started, told.percent, told.unit) == (State.RUNNING, 3, 5.0, "")
    for result, state in (
        (Result.SUCCESS, State.FINISHED),
        (Result.EXIT_CODE, State.FAILED),
        (Result.STOPPED, State.STOPPED),
    ):
        for before in (record, told):
            ended = follow(before, Exited(4, result, error="e"))
            assert (ended.state, ended.result, ended.ended) == (state, result, 4)
    for event in (Started(2, 0), Reported(3), Exited(4, Result.SUCCESS)):
        with pytest.raises(IllegalTransition):
            follow(task(), event)


def test_what_a_task_says_of_its_failure_is_its_error() -> None:
    failure = {"type": "ValueError", "message": "no\nsuch", "traceback": "…"}
    told = follow(task(retries=1), Picked(1, "b"), Started(2, 7), Reported(3, failure=failure))
    failed = follow(told, Exited(4, Result.EXIT_CODE, exit_status=1))
    assert (failed.error, failed.failure) == ("ValueError: no", failure)
    again = follow(failed, Due(5), Picked(6, "b"))
    assert (again.error, again.failure) == (None, None)
    assert follow(told, Exited(4, Result.SUCCESS)).failure is None
    assert follow(told, Exited(4, Result.OOM_KILL)).error is None


def test_a_count_and_a_percentage_told_together_are_both_heard() -> None:
    running = follow(task(), Picked(1, "b"), Started(2, 7))
    assert follow(running, Reported(3, percent=20.0, finished=1, total=2)).percent == 50
    assert follow(running, Reported(3, percent=80.0, finished=1, total=2)).percent == 80


def test_a_users_stop_overrules_a_time_limit() -> None:
    stopping = follow(
        task(retries=5),
        Picked(1, "b"),
        Started(2, 7),
        StopAsked(3, StopReason.TIMEOUT),
        StopAsked(4, StopReason.USER),
        StopAsked(5, StopReason.WATCHDOG),
    )
    ended = follow(stopping, Exited(6, Result.SIGNAL, signal="SIGTERM"))
    assert (ended.state, ended.result) == (State.STOPPED, Result.STOPPED)


def test_a_retry_starts_again_at_nothing_with_a_doubled_delay() -> None:
    failed = follow(
        task(retries=2),
        Picked(1, "b"),
        Started(2, 7),
        Reported(3, percent=80.0),
        Exited(4, Result.LOST),
    )
    assert (failed.state, failed.result) == (State.DELAYED, Result.LOST)
    assert failed.not_before == 4 + 1_000_000
    again = follow(failed, Due(5), Picked(6, "b"))
    assert (again.attempt, again.percent, again.result) == (2, None, None)
    assert retry_delay(1_000_000, 1) == 2_000_000
    assert retry_delay(1_000_000, 5000) == 3_600_000_000
