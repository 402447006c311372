# SPDX-License-Identifier: LGPL-2.1-or-later
"""Output reaches a log whole, whatever the log does and whenever the daemon dies."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from bgtaskd.config import load_config
from bgtaskd.daemon import logfeed
from bgtaskd.daemon.engine import Engine
from bgtaskd.daemon.launcher_link import LauncherLink
from bgtaskd.daemon.logfeed import LogFeeds
from bgtaskd.daemon.secrets import Secrets
from bgtaskd.logs import registry
from bgtaskd.logs.interface import Entry
from bgtaskd.logs.outputfile import OutputFile
from bgtaskd.model import State, Task, TaskSpec
from bgtaskd.storage.interface import PutTask
from bgtaskd.storage.memory import MemoryStorage

SPEC = TaskSpec(kind="command", name="x", argv=("x",), queue="default", user="root")
CAP = 10 << 20


def running(task_id: int, attempt: int = 1) -> Task:
    task = Task(task_id, SPEC, 0, "root", 0, State.RUNNING, created=1, updated=1)
    return replace(task, attempt=attempt)


class Told:
    """Remembers what it was told; ``trouble`` is raised, or called, first."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int, int]] = []
        self.ended: list[tuple[int, int]] = []
        self.data: dict[tuple[int, int], bytearray] = {}
        self.closed = 0
        self.trouble: Callable[[Entry], None] = lambda entry: None

    def begin(self, entry: Entry, offset: int) -> None:
        self.trouble(entry)
        self.begun.append((entry.task_id, entry.attempt, offset))

    def write(self, entry: Entry, data: bytes, offset: int) -> None:
        self.trouble(entry)
        kept = self.data.setdefault((entry.task_id, entry.attempt), bytearray())
        assert offset <= len(kept), "something was left out"
        kept[offset : offset + len(data)] = data

    def end(self, entry: Entry) -> None:
        self.trouble(entry)
        self.ended.append((entry.task_id, entry.attempt))

    def close(self) -> None:
        self.closed += 1


TOLD = Told()


def open_told(directory: Path) -> Told:
    return TOLD


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told()
    monkeypatch.setattr(f"{__name__}.TOLD", told)
    point = EntryPoint("told", f"{__name__}:open_told", registry.GROUP)
    monkeypatch.setattr(registry, "_points", lambda: [point])
    monkeypatch.setattr(logfeed, "RETRY_SECONDS", (0.01, 0.02))
    monkeypatch.setattr(logfeed, "SAVE_SECONDS", 0.01)
    monkeypatch.setattr(logfeed, "STOP_SECONDS", 0.2)
    return told


class House:
    """An engine with tasks that print; it can be left as a kill leaves it, and entered again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.storage = MemoryStorage()
        self.tasks = directory / "tasks"
        self.tasks.mkdir()
        self.fd = os.open(self.tasks, os.O_RDONLY)
        self.files: dict[tuple[int, int], OutputFile] = {}

    async def enter(self) -> None:
        link = LauncherLink(str(self.directory / "none.sock"), lambda: None)
        conf = self.directory / "bgtaskd.yaml"
        conf.write_text("output: {also: [told]}\n")
        config = load_config(str(conf), "/nonexistent")
        self.engine = Engine(config, self.storage, link, Secrets(str(self.directory)), "boot")
        self.engine.load(self.storage.unended())
        self.feeds = LogFeeds(self.engine, self.directory / "logs", str(self.tasks))
        self.feeds.start()

    async def leave(self) -> None:
        await self.feeds.stop()
        await self.engine.writer.drain()
        self.engine.writer.close()

    async def start(self, task: Task) -> None:
        self.engine.live[task.id] = task
        self.engine.announce("changed", task)
        await self.engine.writer.write([PutTask(task)], must=True)

    def print(self, task: Task, data: bytes) -> None:
        key = (task.id, task.attempt)
        if key not in self.files:
            self.files[key] = OutputFile(self.fd, *key, CAP)
        self.files[key].write(data)
        self.feeds.grew(task.id)

    async def end(self, task: Task, state: State = State.FINISHED) -> None:
        task = replace(task, state=state)
        del self.engine.live[task.id]
        await self.engine.writer.write([PutTask(task)], must=True)
        self.engine.announce("finished", task)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


def test_all_of_several_tasks_arrives(tmp_path: Path, told: Told) -> None:
    async def run() -> None:
        house = House(tmp_path)
        await house.enter()
        tasks = [running(number) for number in (1, 2, 3)]
        for task in tasks:
            await house.start(task)
        for number in range(20):
            for task in tasks:
                house.print(task, b"%d of %d\n" % (number, task.id) * 1000)
            await asyncio.sleep(0)
        for task in tasks:
            await house.end(task)
        await until(lambda: len(told.ended) == 3)
        for task in tasks:
            expected = b"".join(b"%d of %d\n" % (one, task.id) * 1000 for one in range(20))
            assert told.data[task.id, 1] == expected
        await until(lambda: not house.storage.flags())
        await house.leave()
        assert told.closed == 1
        assert sorted(told.begun) == [(1, 1, 0), (2, 1, 0), (3, 1, 0)]

    asyncio.run(run())


def test_much_at_once_takes_several_turns(tmp_path: Path, told: Told) -> None:
    async def run() -> None:
        house = House(tmp_path)
        await house.enter()
        await house.start(running(1))
        data = os.urandom(3 << 20)
        house.print(running(1), data)
        await house.end(running(1))
        await until(lambda: told.ended == [(1, 1)])
        assert told.data[1, 1] == data
        await house.leave()

    asyncio.run(run())


def test_a_log_that_fails_gets_it_later_and_holds_up_no_other_task(
    tmp_path: Path, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        def refuse(entry: Entry) -> None:
            if entry.task_id == 1:
                raise SystemExit("not this one")

        house = House(tmp_path)
        await house.enter()
        told.trouble = refuse
        bad, good = running(1), running(2)
        for task in (bad, good):
            await house.start(task)
            house.print(task, b"text\n")
        await house.end(good)
        await until(lambda: told.ended == [(2, 1)])
        assert told.data[2, 1] == b"text\n"
        await house.end(bad)
        await asyncio.sleep(0.05)  # all that wakes it is over
        assert (1, 1) not in told.data
        told.trouble = lambda entry: None  # and nothing else happens
        await until(lambda: told.ended == [(2, 1), (1, 1)])
        assert told.data[1, 1] == b"text\n"
        await house.leave()
        complaints = [one.message for one in caplog.records if "not this one" in one.message]
        assert complaints[0].startswith("Log told: SystemExit: not this one")

    asyncio.run(run())


def test_one_that_cannot_be_opened_is_tried_again(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        opener = open_told

        def refuse(directory: Path) -> Told:
            raise OSError("nobody listens")

        monkeypatch.setattr(f"{__name__}.open_told", refuse)
        house = House(tmp_path)
        await house.enter()
        await house.start(running(1))
        house.print(running(1), b"text\n")
        await until(lambda: bool(caplog.records))
        await house.end(running(1))
        monkeypatch.setattr(f"{__name__}.open_told", opener)
        await until(lambda: told.ended == [(1, 1)])
        assert told.data[1, 1] == b"text\n"
        await house.leave()

    asyncio.run(run())
    (said, well) = [one.message for one in caplog.records]
    where = f"{__name__}:open_told: OSError('nobody listens')"
    assert said == f"Log told: {where}. It is tried again; tasks go on."
    assert well == "Log told takes output again."


def test_one_that_hangs_does_not_keep_the_daemon_from_stopping(tmp_path: Path, told: Told) -> None:
    async def run() -> None:
        hangs, go_on = threading.Event(), threading.Event()

        def hang(entry: Entry) -> None:
            hangs.set()
            go_on.wait(30)

        house = House(tmp_path)
        await house.enter()
        told.trouble = hang
        await house.start(running(1))
        house.print(running(1), b"x")
        await until(hangs.is_set)
        await house.start(running(2))  # nobody waits
        async with asyncio.timeout(5):
            await house.leave()
        assert set(house.storage.flags()) == {"log:told:1.1", "log:told:2.1"}
        go_on.set()

    asyncio.run(run())


@pytest.mark.parametrize("killed", [False, True])
def test_the_next_daemon_goes_on(tmp_path: Path, told: Told, killed: bool) -> None:
    """Also with a task that ended while the log was down, and one that ended while no daemon was there."""

    async def run() -> None:
        house = House(tmp_path)
        await house.enter()
        long, short = running(1), running(2)
        await house.start(long)
        house.print(long, b"before\n")
        await until(lambda: house.storage.flags().get("log:told:1.1") == "7")

        def refuse(entry: Entry) -> None:
            raise OSError("full")

        told.trouble = refuse
        await house.start(short)
        house.print(short, b"short\n")
        await house.end(short)
        flags = house.storage.flags()
        await house.leave()
        if killed:  # whatever leaving has written, a kill would not have
            house.storage._flags = dict(flags)
        house.print(long, b"between\n")
        told.trouble = lambda entry: None
        await house.enter()
        house.print(long, b"after\n")
        await until(lambda: told.ended == [(2, 1)])
        await house.end(long)
        await until(lambda: len(told.ended) == 2)
        assert told.data[1, 1] == b"before\nbetween\nafter\n"
        assert told.data[2, 1] == b"short\n"
        assert (1, 1, 7) in told.begun
        await house.leave()
        assert house.storage.flags() == {}

    asyncio.run(run())


def test_attempts_follow_each_other(tmp_path: Path, told: Told) -> None:
    """The second is another one; one that was taken back never was."""

    async def run() -> None:
        house = House(tmp_path)
        await house.enter()
        first, second = running(1), running(1, 2)
        await house.start(first)
        house.print(first, b"first\n")
        await house.start(replace(first, state=State.QUEUED))
        await house.start(replace(second, state=State.STARTING))
        await house.start(replace(first, state=State.QUEUED))
        await until(lambda: "log:told:1.2" not in house.storage.flags())
        await house.start(replace(second, state=State.STARTING))
        house.print(second, b"second\n")
        await house.end(second)
        await until(lambda: told.ended == [(1, 1), (1, 2)])
        assert told.begun == [(1, 1, 0), (1, 2, 0)]
        assert told.data == {(1, 1): b"first\n", (1, 2): b"second\n"}
        await house.leave()

    asyncio.run(run())


def test_what_is_named_no_more_is_forgotten(tmp_path: Path, told: Told) -> None:
    async def run() -> None:
        house = House(tmp_path)
        await house.enter()
        await house.start(running(1))
        named = house.engine.config
        house.engine.config = replace(named, output_also=())
        house.feeds.configure()
        await until(lambda: not house.storage.flags())
        await house.start(running(2))
        house.engine.config = named
        house.feeds.configure()
        await until(lambda: (2, 1, 0) in told.begun)
        await house.leave()
        assert told.begun[-2:] == [(1, 1, 0), (2, 1, 0)]
        assert told.closed in (1, 2)  # the first may not have been opened yet

    asyncio.run(run())
