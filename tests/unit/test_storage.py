# SPDX-License-Identifier: LGPL-2.1-or-later
"""Our storages pass the suite for every Storage; and what only a file can suffer."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from bgtaskd.storage import registry
from bgtaskd.storage.conformance import StorageConformance, task
from bgtaskd.storage.interface import (
    PutTask,
    Storage,
    StorageError,
    StorageFull,
)
from bgtaskd.storage.memory import MemoryStorage
from bgtaskd.storage.sqlite import SqliteStorage, open_storage


class TestSqlite(StorageConformance):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[Storage]:
        made = open_storage(tmp_path / "s.db")[0]
        yield made
        made.close()


class TestMemory(StorageConformance):
    @pytest.fixture
    def storage(self) -> Storage:
        return MemoryStorage()


def test_others_are_found_by_their_entry_point(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    point = EntryPoint("mine", "bgtaskd.storage.memory:in_memory", registry.GROUP)
    monkeypatch.setattr(registry, "_points", lambda: [point])
    assert registry.registered_names() == ("mine",)
    storage, aside = registry.open_backend("mine", tmp_path / "state/state.db")
    assert isinstance(storage, MemoryStorage)
    assert aside is None
    broken = EntryPoint("broken", "bgtaskd.nowhere:nothing", registry.GROUP)
    monkeypatch.setattr(registry, "_points", lambda: [broken])
    with pytest.raises(StorageError, match="broken"):
        registry.open_backend("broken", tmp_path / "state/state.db")


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
