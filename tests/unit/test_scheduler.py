# SPDX-License-Identifier: LGPL-2.1-or-later
"""What may start now: never more than the slots, by priority, then age."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bgtaskd.config import Rate
from bgtaskd.daemon.scheduler import Limits, Scheduler, Wants


def scheduler(**slots: int) -> Scheduler:
    made = Scheduler()
    made.configure({name: Limits(number) for name, number in slots.items()})
    return made


@given(st.lists(st.integers(-3, 3), max_size=40), st.integers(1, 5))
def test_slots_priority_and_age(priorities: list[int], slots: int) -> None:
    one = scheduler(q=slots)
    for number, priority in enumerate(priorities):
        one.add(number, "q", priority)
    order: list[int] = []
    while started := list(one.take(0)):
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
            started = set(one.take(0))
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
    assert one.next_due(0) == 10
    assert one.due(15) == [2]
    assert one.due(30) == [1]
    assert one.next_due(0) is None


def test_a_queue_that_is_gone_starts_nothing() -> None:
    one = scheduler(q=1, old=1)
    one.add(1, "old", 0)
    one.configure({"q": Limits(1)})
    assert list(one.take(0)) == []


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


WANTS = st.builds(
    Wants,
    weight=st.integers(1, 4),
    needs=st.sampled_from([(), (("gpu", 1),), (("gpu", 2),), (("disk", 1), ("gpu", 1))]),
)
RESOURCES = {"gpu": 2, "disk": 1}


@given(
    st.lists(st.tuples(WANTS, st.integers(-2, 2), st.sampled_from("ab")), max_size=30), st.data()
)
def test_nothing_is_overdrawn_and_everything_gets_its_turn(
    tasks: list[tuple[Wants, int, str]], data: st.DataObject
) -> None:
    one = Scheduler()
    one.configure({"a": Limits(4), "b": Limits(3)}, RESOURCES)
    for number, (wants, priority, queue) in enumerate(tasks):
        one.add(number, queue, priority, wants)
    running: set[int] = set()
    order: list[int] = []
    while True:
        started = list(one.take(0))
        running.update(started)
        order += started
        for name, slots in (("a", 4), ("b", 3)):
            weights = [min(tasks[n][0].weight, slots) for n in running if tasks[n][2] == name]
            assert sum(weights) <= slots
        for resource, there in RESOURCES.items():
            assert sum(dict(tasks[n][0].needs).get(resource, 0) for n in running) <= there
        if not running:
            break
        ended = data.draw(st.sampled_from(sorted(running)))
        running.remove(ended)
        one.forget(ended, tasks[ended][2])
    assert sorted(order) == list(range(len(tasks)))


def test_a_heavy_task_at_the_head_is_waited_for() -> None:
    one = scheduler(q=3)
    one.add(1, "q", 0)
    assert list(one.take(0)) == [1]
    one.add(2, "q", 0, Wants(weight=3))
    one.add(3, "q", 0)
    assert list(one.take(0)) == []
    assert not one.take_at_once(4, "q", 0)
    one.forget(1, "q")
    assert list(one.take(0)) == [2]


def test_who_lacks_a_resource_is_passed_but_not_robbed() -> None:
    one = Scheduler()
    one.configure({"q": Limits(9), "r": Limits(9)}, {"gpu": 2})
    one.add(1, "q", 0, Wants(needs=(("gpu", 1),)))
    assert list(one.take(0)) == [1]
    one.add(2, "q", 0, Wants(needs=(("gpu", 2),)))
    one.add(3, "q", 0, Wants(needs=(("gpu", 1),)))
    one.add(4, "q", 0)
    assert list(one.take(0)) == [4]
    assert not one.take_at_once(5, "r", 0, Wants(needs=(("gpu", 1),)))
    one.forget(1, "q")
    assert list(one.take(0)) == [2]


def test_what_no_longer_fits_its_configuration_runs_alone() -> None:
    one = Scheduler()
    one.configure({"q": Limits(2)}, {})
    one.add(1, "q", 0, Wants(weight=5, needs=(("gone", 3),)))
    one.add(2, "q", 0)
    assert list(one.take(0)) == [1]
    assert list(one.take(0)) == []


@given(st.lists(st.integers(0, 40), min_size=1, max_size=40), st.integers(1, 3))
def test_a_rate_holds_in_every_window(arrivals: list[int], count: int) -> None:
    one = Scheduler()
    one.configure({"q": Limits(1000, Rate(count, 10))})
    begun: list[int] = []
    now, waiting = 0, sorted(arrivals)
    for number in range(len(waiting)):
        one.add(number, "q", 0)
    while len(begun) < len(waiting):
        begun += [now for _ in one.take(now)]
        due = one.next_due(now)
        assert len(begun) == len(waiting) or due is not None
        now = due if due is not None else now
    for start in begun:
        assert sum(1 for one_ in begun if start <= one_ < start + 10) <= count
    assert begun[-1] == (len(waiting) - 1) // count * 10


def test_an_edited_task_is_asked_for_once_with_what_it_wants_now() -> None:
    one = Scheduler()
    one.configure({"q": Limits(9)}, {"gpu": 1})
    one.add(1, "q", 0, Wants(needs=(("gpu", 1),)))
    one.forget(1, "q")
    one.add(1, "q", 0)
    one.add(2, "q", 0, Wants(needs=(("gpu", 1),)))
    assert list(one.take(0)) == [1, 2]
    one.hold(3, "q")
    one.hold(3, "q")
    assert one.counts("q") == (2, 1, 0)
    one.add(3, "q", 0)
    assert one.counts("q") == (2, 1, 0)
