# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which process a task is forked from, and when there is to be one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bgtaskd.daemon.templates import AGAIN_USEC, Templates
from bgtaskd.model import TEMPLATE, Result, State, Task, TaskSpec
from bgtaskd.units import ANONYMOUS_USER

SPEC = TaskSpec(kind="python", name="x", argv=("python3",), target="a:b", preload=("a",))
IDLE = 1_000_000


def task(spec: TaskSpec = SPEC, uid: int = 1000, user: str = "alice") -> Task:
    return Task(99, spec, uid, user, uid, State.STARTING, created=1, updated=1)


class Some:
    """Templates, and what they have asked for."""

    def __init__(self) -> None:
        self.begun: list[Task] = []
        self.stopped: list[int] = []
        self.templates = Templates(self._begin, self.stopped.append)

    def _begin(self, like: Task, spec: TaskSpec) -> int:
        self.begun.append(replace(like, id=len(self.begun) + 1, spec=spec))
        return self.begun[-1].id

    def ask(self, one: Task | None = None, now: int = 0, per_user: int = 2) -> int | None:
        return self.templates.for_task(one or task(), IDLE, per_user, now)

    def tell(self, number: int, **changes: Any) -> None:
        self.begun[number - 1] = replace(self.begun[number - 1], **changes)
        self.templates.heard(self.begun[number - 1])


READY = {"state": State.RUNNING, "percent": 100.0}


def test_one_is_begun_and_used_once_it_is_ready() -> None:
    some = Some()
    assert some.ask() is some.ask() is None
    assert [one.spec.kind for one in some.begun] == [TEMPLATE]
    assert some.begun[0].spec.settings == {"idle_usec": IDLE}
    some.tell(1, state=State.RUNNING)
    assert some.ask() is None
    some.tell(1, **READY)
    assert some.ask() == 1
    some.tell(1, state=State.PAUSED)
    assert some.ask() is None
    some.tell(1, **READY)
    assert some.ask() == 1
    assert len(some.begun) == 1


def test_what_differs_has_another() -> None:
    some = Some()
    for one in (
        task(),
        task(uid=1001),
        task(replace(SPEC, argv=("/venv/bin/python3",))),
        task(replace(SPEC, env={"A": "1"})),
        task(replace(SPEC, cwd="/srv")),
        task(replace(SPEC, import_path=("/srv",))),
        task(replace(SPEC, preload=("a", "b"))),
        replace(task(), owner_uid=1001),
    ):
        some.ask(one, per_user=100)
    assert len(some.begun) == 8
    some.ask(task(replace(SPEC, name="y", settings=1, properties={"TasksMax": "9"}, target="a:c")))
    assert len(some.begun) == 8


def test_who_has_none() -> None:
    some = Some()
    assert some.ask(task(replace(SPEC, preload=()))) is None
    assert some.ask(task(user=ANONYMOUS_USER)) is None
    assert some.ask(per_user=0) is None
    assert some.begun == []


def test_one_that_takes_no_more_is_replaced_at_once() -> None:
    some = Some()
    some.ask()
    some.tell(1, **READY)
    some.tell(1, percent=0.0)
    assert some.ask() is None
    some.tell(1, message="its last child has ended")
    some.tell(2, **READY)
    assert some.ask() == 2
    some.tell(1, state=State.FINISHED, result=Result.SUCCESS)
    assert some.ask() == 2


def test_after_a_failure_it_is_left_alone_for_a_while() -> None:
    some = Some()
    some.ask()
    some.tell(1, state=State.FAILED, result=Result.EXIT_CODE, ended=10)
    assert some.ask(now=10 + AGAIN_USEC - 1) is None
    assert some.ask(now=10 + AGAIN_USEC - 1) is None
    assert len(some.begun) == 1
    some.ask(now=10 + AGAIN_USEC)
    assert len(some.begun) == 2


def test_the_one_that_was_not_needed_for_longest_gives_way() -> None:
    some = Some()
    tasks = [task(replace(SPEC, preload=(name,))) for name in "abc"]
    some.ask(tasks[0], now=1)
    some.ask(tasks[1], now=2)
    some.ask(tasks[0], now=3)
    some.ask(task(uid=7), now=4)
    assert some.stopped == []
    some.ask(tasks[2], now=5)
    assert some.stopped == [2]
