# SPDX-License-Identifier: LGPL-2.1-or-later
"""Progress costs next to nothing, the last of it always arrives, and it never goes back unasked."""

from __future__ import annotations

import io
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bgtaskd
from bgtaskd.errors import NotInTask
from bgtaskd.launcher.notify import parse
from bgtaskd.model import Picked, Reported, Started, State, Task, TaskSpec, transition
from bgtaskd.task import own
from bgtaskd.task.own import OwnStatus
from bgtaskd.task.prints import KEPT, Prints
from bgtaskd.task.report import Reporter


class Supervisor:
    """The other end of the notify socket."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(5)
        self.datagrams = 0
        self.said: dict[str, Any] = {}

    def take(self) -> dict[str, Any]:
        self.said.update(parse(self.socket.recv(65536)).report)
        self.datagrams += 1
        return self.said

    def take_until(self, key: str, value: object) -> None:
        while self.said.get(key) != value:
            self.take()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    one = Supervisor(tmp_path / "notify")
    yield one
    one.socket.close()


def test_a_rare_report_is_sent_at_once(supervisor: Supervisor) -> None:
    OwnStatus(1, notify=supervisor.path).update(12.5, "Chugging\nalong")
    assert supervisor.take() == {"percent": 12.5, "message": "Chugging along"}


def test_a_flood_is_folded_and_its_last_word_arrives_unasked(supervisor: Supervisor) -> None:
    status = OwnStatus(1, notify=supervisor.path)
    status.operations(100_000)
    began = time.monotonic()
    for _ in range(100_000):
        status.increment()
    took = time.monotonic() - began
    supervisor.take_until("finished", 100_000)
    assert supervisor.datagrams < 20 + took / 0.04
    assert status.percentage == 100


def test_a_full_socket_holds_nobody_up_and_loses_nothing(supervisor: Supervisor) -> None:
    senders = [Reporter(supervisor.path) for _ in range(300)]
    began = time.monotonic()
    for number, one in enumerate(senders):
        one.report(finished=number)
    assert time.monotonic() - began < 4
    seen: set[int] = set()
    while len(seen) < len(senders):
        seen.add(supervisor.take()["finished"])


def test_a_supervisor_that_is_gone_ends_no_task(tmp_path: Path) -> None:
    status = OwnStatus(1, notify=str(tmp_path / "nobody"))
    status.update(50, "x")
    status.flush()
    assert (status.percentage, status.message) == (50, "x")


def test_a_fork_reports_too(supervisor: Supervisor) -> None:
    status = OwnStatus(1, notify=supervisor.path)
    status.update(1)
    status.update(2)  # held back: a thread is at work
    pid = os.fork()
    if pid == 0:
        status.update(message="child")
        status.flush()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    supervisor.take_until("message", "child")
    supervisor.take_until("percent", 2.0)


def test_progress_goes_back_when_told_to(supervisor: Supervisor) -> None:
    status = OwnStatus(1, notify=supervisor.path)
    status.update(80)
    status.update(10, rewind=True)
    status.update(5)
    supervisor.take_until("percent", 10.0)
    assert supervisor.said["rewind"] is True
    assert status.percentage == 10


STEPS = st.one_of(
    st.tuples(st.just("update"), st.floats(-10, 200)),
    st.tuples(st.just("operations"), st.integers(0, 20), st.integers(0, 20)),
    st.tuples(st.just("increment"), st.integers(0, 5)),
    st.tuples(st.just("finish")),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=25))
def test_progress_never_goes_back_whatever_a_task_calls(steps: list[tuple[Any, ...]]) -> None:
    spec = TaskSpec(name="t", argv=("t",))
    task = Task(1, spec, 1, "a", 1, State.QUEUED, created=0, updated=0)
    task = transition(transition(task, Picked(1, "b")), Started(2, 7))
    sent: list[dict[str, Any]] = []
    status = OwnStatus(1, notify="/nonexistent")
    status._reporter.report = lambda **said: sent.append(said)  # type: ignore[union-attr, method-assign]
    for name, *values in steps:
        getattr(status, name)(*values)
        before = (task.percent or 0.0, status.percentage)
        said = {key: value for key, value in sent[-1].items() if value is not None}
        task = transition(task, Reported(3, **said))
        assert before[0] <= (task.percent or 0.0) <= 100
        assert (task.percent or 0.0) == pytest.approx(status.percentage)


def test_outside_of_a_task_there_is_no_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BGTASK_ID", raising=False)
    monkeypatch.setattr(own, "_process", None)
    with pytest.raises(NotInTask, match="BGTASK_ID"):
        bgtaskd.current()
    monkeypatch.setenv("BGTASK_ID", "42")
    assert bgtaskd.current().id == 42
    request = OwnStatus(7)
    token = own.set_current(request)
    assert bgtaskd.current() is request
    own.reset_current(token)
    assert bgtaskd.current().id == 42


def test_only_the_newest_prints_are_kept() -> None:
    prints = Prints()
    for number in range(20):
        prints.add(str(number % 10) * (KEPT // 10))
    assert prints.text()[0] == "0"
    assert len(prints.text()) == KEPT // 10 * 10


def test_tqdm_reports_inside_of_a_task_and_only_there(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "_process", OwnStatus(1, notify=supervisor.path))
    sink = io.StringIO()
    assert sum(bgtaskd.tqdm(range(500), desc="sum", file=sink)) == 124750
    supervisor.take_until("finished", 500)
    assert supervisor.said == {"finished": 500, "total": 500, "message": "sum"}
    monkeypatch.setattr(own, "_process", None)
    monkeypatch.delenv("BGTASK_ID", raising=False)
    assert list(bgtaskd.tqdm(range(3), file=sink)) == [0, 1, 2]


def test_without_tqdm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.std", None)
    monkeypatch.delitem(sys.modules, "bgtaskd.task.bar", raising=False)
    with pytest.raises(ImportError, match="python3-tqdm"):
        bgtaskd.tqdm  # noqa: B018 - the import is what is tried
