# SPDX-License-Identifier: LGPL-2.1-or-later
"""What may start now: never more than the slots, by priority, then age."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bgtaskd.daemon.scheduler import Scheduler


def scheduler(**slots: int) -> Scheduler:
    made = Scheduler()
    made.configure(slots)
    return made


@given(st.lists(st.integers(-3, 3), max_size=40), st.integers(1, 5))
def test_slots_priority_and_age(priorities: list[int], slots: int) -> None:
    one = scheduler(q=slots)
    for number, priority in enumerate(priorities):
        one.add(number, "q", priority)
    order: list[int] = []
    while started := list(one.take()):
        assert len(started) <= slots
        for number in started:
            one.forget(number, "q")
        order += started
    expected = sorted(range(len(priorities)), key=lambda number: (-priorities[number], number))
    assert order == expected


@given(st.lists(st.tuples(st.sampled_from("atfp"), st.integers(0, 9)), max_size=60))
def test_whatever_happens_no_more_run_than_slots(steps: list[tuple[str, int]]) -> None:
    one = scheduler(q=2)
    running: set[int] = set()
    waiting: set[int] = set()
    for step, number in steps:
        if step == "a" and number not in running | waiting:
            one.add(number, "q", 0)
            waiting.add(number)
        elif step == "f":
            one.forget(number, "q")
            running.discard(number)
            waiting.discard(number)
        elif step == "p":
            one.pause("q", number % 2 == 0)
        else:
            started = set(one.take())
            assert started <= waiting
            assert not (started and one.is_paused("q"))
            running |= started
            waiting -= started
        assert len(running) <= 2
        assert one.counts("q")[:2] == (len(running), len(waiting))


def test_what_is_delayed_is_due_in_its_order() -> None:
    one = scheduler(q=1)
    for number, when in ((1, 30), (2, 10), (3, 20)):
        one.delay(number, "q", when)
    one.forget(3, "q")
    assert one.next_due() == 10
    assert one.due(15) == [2]
    assert one.due(30) == [1]
    assert one.next_due() is None


def test_a_queue_that_is_gone_starts_nothing() -> None:
    one = scheduler(q=1, old=1)
    one.add(1, "old", 0)
    one.configure({"q": 1})
    assert list(one.take()) == []


@given(st.lists(st.tuples(st.sampled_from("dfu"), st.integers(0, 9)), max_size=60))
def test_the_delayed_are_counted_and_wait_too(steps: list[tuple[str, int]]) -> None:
    one = scheduler(q=0)
    delayed: dict[int, int] = {}
    for step, number in steps:
        if step == "d":
            one.delay(number, "q", number * 10)
            delayed[number] = number * 10
        elif step == "f":
            one.forget(number, "q")
            delayed.pop(number, None)
        else:
            due = one.due(number * 10)
            assert set(due) == {task for task, when in delayed.items() if when <= number * 10}
            for task in due:
                del delayed[task]
        assert one.counts("q") == (0, 0, len(delayed))
        assert one.waiting("q") == len(delayed)
