# SPDX-License-Identifier: LGPL-2.1-or-later
"""One suite for every Storage; and what only a file can suffer."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bgtaskd.model import Result, State, StopReason, Task, TaskSpec
from bgtaskd.storage.interface import (
    ClearMessages,
    Message,
    PutConfig,
    PutFlag,
    PutMessage,
    PutTask,
    Query,
    RemoveTask,
    Storage,
    StorageError,
    StorageFull,
)
from bgtaskd.storage.memory import MemoryStorage
from bgtaskd.storage.sqlite import SqliteStorage, open_storage


@pytest.fixture(params=["sqlite", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    made: Storage
    made = MemoryStorage() if request.param == "memory" else open_storage(tmp_path / "s.db")[0]
    yield made
    made.close()


def task(task_id: int, state: State = State.QUEUED, **values: object) -> Task:
    spec = TaskSpec(
        name=str(values.pop("name", "job")),
        argv=("true", "-x"),
        env={"A": "ä"},
        retry_on=(Result.LOST,),
        properties={"MemoryMax": "1G"},
        settings={"w": [1, None]},
        merge_key="k",
    )
    base = Task(task_id, spec, 1000, "alice", 1000, state, created=1, updated=2)
    return replace(base, **values)  # type: ignore[arg-type]


def test_a_task_comes_back_as_it_was(storage: Storage) -> None:
    full = task(
        1,
        State.FAILED,
        attempt=2,
        result=Result.OOM_KILL,
        signal="SIGKILL",
        percent=12.5,
        total=8,
        finished=1,
        message="m\n\x1b",
        value={"a": 1},
        error="e",
        failure={"type": "E", "message": "ä", "traceback": "t\n"},
        started=3,
        ended=4,
        not_before=5,
        cpu_usec=6,
        memory_peak=7,
        io_read_bytes=8,
        io_write_bytes=9,
        stop_reason=StopReason.USER,
        boot_id="b",
        pid=10,
        retries_used=1,
    )
    storage.apply([PutTask(task(1)), PutTask(full)])
    assert storage.get(1) == full
    assert storage.get(2) is None


def test_listing_filters_and_pages(storage: Storage) -> None:
    states = list(State)
    tasks = [
        task(number, states[number % len(states)], name=f"n{number % 3}", owner_uid=number % 2)
        for number in range(1, 41)
    ]
    storage.apply([PutTask(one) for one in tasks])
    assert [one.id for one in storage.list(Query(limit=3))] == [40, 39, 38]
    assert [one.id for one in storage.list(Query(limit=2, before=10))] == [9, 8]
    assert {one.owner_uid for one in storage.list(Query(owner_uid=1))} == {1}
    assert {one.spec.name for one in storage.list(Query(name_glob="n[01]"))} == {"n0", "n1"}
    assert {one.state for one in storage.list(Query(states=[State.FAILED]))} == {State.FAILED}
    assert sum(storage.counts().values()) == 40


def test_counts_follow_every_change(storage: Storage) -> None:
    chance = random.Random(1)
    for _ in range(200):
        number = chance.randrange(1, 20)
        if chance.random() < 0.2:
            storage.apply([RemoveTask(number)])
        else:
            storage.apply([PutTask(task(number, chance.choice(list(State))))])
    everything = storage.list(Query(limit=1000))
    for state, number in storage.counts().items():
        assert number == sum(one.state is state for one in everything)


def test_what_has_not_ended_is_found_a_waiting_retry_too(storage: Storage) -> None:
    retry = task(3, State.DELAYED, result=Result.LOST, ended=9, not_before=10)
    storage.apply([PutTask(task(1, State.FINISHED, ended=5)), PutTask(task(2)), PutTask(retry)])
    assert [one.id for one in storage.unended()] == [2, 3]
    storage.apply([PutTask(replace(retry, state=State.QUEUED))])
    assert [one.id for one in storage.unended()] == [2, 3]


def test_ids_are_never_used_again(storage: Storage) -> None:
    storage.apply([PutTask(task(7)), RemoveTask(7)])
    assert storage.next_task_id() == 8
    storage.raise_next_task_id(100)
    assert storage.next_task_id() == 100


def test_mailbox_configuration_flags(storage: Storage) -> None:
    messages = [Message(1, seq, "reload", {"x": seq}, seq) for seq in (1, 2, 3)]
    storage.apply([PutTask(task(1)), *(PutMessage(one) for one in messages)])
    assert list(storage.messages(1)) == messages
    assert list(storage.messages(1, after=2)) == messages[2:]
    storage.apply([ClearMessages(1, (2,))])
    assert [one.seq for one in storage.messages(1)] == [1, 3]
    storage.apply([ClearMessages(1, None), PutConfig(1, [1]), PutFlag("a", "b")])
    assert storage.last_message_seq(1) == 3
    assert storage.config(1) == [1]
    assert storage.flags() == {"a": "b"}
    storage.apply([PutFlag("a", None), RemoveTask(1)])
    assert storage.flags() == {}
    assert storage.config(1) is None


def test_retention_finds_what_is_old_enough(storage: Storage) -> None:
    storage.apply(
        [
            PutTask(task(1, State.FINISHED, result=Result.SUCCESS, ended=10)),
            PutTask(task(2, State.FAILED, result=Result.SIGNAL, ended=10)),
            PutTask(task(3, State.FINISHED, result=Result.SUCCESS, ended=50)),
            PutTask(task(4, State.DELAYED, result=Result.SIGNAL, ended=1)),
        ]
    )
    assert set(storage.ended_before(20, None, 10)) == {1}
    assert set(storage.ended_before(None, 20, 10)) == {1, 2}
    assert set(storage.ended_before(None, None, 10)) == set()


def overwrite_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\xff" * 200)


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2 + 100)


@pytest.mark.parametrize("damage", [overwrite_header, truncate])
def test_a_corrupt_file_is_moved_aside(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "s.db"
    first, _ = open_storage(path)
    first.apply([PutTask(task(number)) for number in range(1, 500)])
    first.close()
    damage(path)
    fresh, aside = open_storage(path)
    assert aside is not None
    assert aside.exists()
    fresh.apply([PutTask(task(1))])
    assert fresh.get(1) is not None


def test_a_newer_schema_is_refused_not_destroyed(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    storage = SqliteStorage(path)
    storage._writer.execute("PRAGMA user_version = 99")
    storage.close()
    with pytest.raises(StorageError, match="newer"):
        open_storage(path)
    assert path.exists()


def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "s.db")
    storage.apply([PutTask(task(1))])
    pages = storage._writer.execute("PRAGMA page_count").fetchone()[0]
    storage._writer.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageFull):
        storage.apply([PutTask(task(number, message="x" * 4000)) for number in range(2, 50)])
    assert storage.get(1) == task(1)
    assert storage.get(2) is None
    storage._writer.execute("PRAGMA max_page_count = 1000000")
    storage.apply([PutTask(task(2))])
    assert storage.get(2) is not None


WRITER = """
import sys
from pathlib import Path
from bgtaskd.model import State, Task, TaskSpec
from bgtaskd.storage.interface import PutTask
from bgtaskd.storage.sqlite import open_storage
storage, aside = open_storage(Path(sys.argv[1]))
assert aside is None
spec = TaskSpec(name="n", argv=("true",))
while True:
    number = storage.next_task_id()
    storage.apply([PutTask(Task(number, spec, 0, "root", 0, State.QUEUED, 1, 1))])
    print(number, flush=True)
"""


def test_what_was_told_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    told = 0
    for round_ in range(4):
        argv = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(7 * (round_ + 1)):
                told = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            told = max([told, *(int(line) for line in process.stdout.read().split()[:-1])])
    storage, aside = open_storage(path)
    assert aside is None
    ids = {one.id for one in storage.unended()}
    assert set(range(1, told + 1)) <= ids
