# SPDX-License-Identifier: LGPL-2.1-or-later
"""The engine's own promises that need neither launcher nor disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bgtaskd.config import load_config
from bgtaskd.daemon import retention
from bgtaskd.daemon.engine import Engine
from bgtaskd.daemon.launcher_link import LauncherLink
from bgtaskd.daemon.secrets import Secrets
from bgtaskd.model import Result, State, StopReason, Task, TaskSpec
from bgtaskd.storage.interface import Operation, PutTask, StorageError, StorageFull
from bgtaskd.storage.memory import MemoryStorage
from bgtaskd.storage.sqlite import SqliteStorage

SPEC = TaskSpec(kind="command", name="x", argv=("x",), queue="default", user="root")
ENDED = Task(1, SPEC, 0, "root", 0, State.FINISHED, created=1, updated=1)


class Full(MemoryStorage):
    """Refuses everything once it is full."""

    full = False

    def apply(self, operations: Sequence[Operation]) -> None:
        if self.full:
            raise StorageFull("no room")
        super().apply(operations)


@pytest.mark.parametrize("full", [False, True])
def test_what_is_being_removed_cannot_be_retried(tmp_path: Path, full: bool) -> None:
    async def run() -> None:
        storage = Full()
        storage.apply([PutTask(ENDED)])
        storage.full = full
        link = LauncherLink(str(tmp_path / "none.sock"), lambda: None)
        config, secrets = load_config("/nonexistent", "/nonexistent"), Secrets(str(tmp_path))
        engine = Engine(config, storage, link, secrets, "boot")
        removal = asyncio.ensure_future(engine.remove(ENDED))
        await asyncio.sleep(0)
        assert engine.get(1) is None
        try:
            await asyncio.wait_for(removal, 5)
        except StorageError:
            assert full
        assert (engine.get(1) is not None) == full
        engine.writer.close()

    asyncio.run(run())


@asynccontextmanager
async def on_disk(tmp_path: Path, task: Task) -> AsyncIterator[tuple[Engine, SqliteStorage]]:
    """An engine with a real database that knows one task."""
    storage = SqliteStorage(tmp_path / "db")
    storage.apply([PutTask(task)])
    link = LauncherLink(str(tmp_path / "none.sock"), lambda: None)
    config = load_config("/nonexistent", "/nonexistent")
    engine = Engine(config, storage, link, Secrets(str(tmp_path)), "boot")
    engine.scheduler.pause("default", True)
    yield engine, storage
    engine.writer.close()


@pytest.mark.parametrize("retried_first", [False, True])
def test_cleaning_and_a_retry_cannot_cross(tmp_path: Path, retried_first: bool) -> None:
    """Either it is forgotten, and cannot be retried; or it was retried, and is not forgotten."""
    old = replace(ENDED, result=Result.SUCCESS, ended=1)

    async def run() -> None:
        async with on_disk(tmp_path, old) as (engine, storage):
            if retried_first:
                retry = asyncio.ensure_future(engine.retry(old))
                await asyncio.sleep(0)
                assert storage.get(1) == old, "the store has not heard of it"
                assert await asyncio.wait_for(retention.clean(engine), 5) == 0
                await retry
            else:
                cleaning = asyncio.ensure_future(retention.clean(engine))
                await asyncio.sleep(0)
                assert engine.get(1) is None
                while storage.get(1) is not None:
                    await asyncio.sleep(0.01)
                cleaning.cancel()
            assert (storage.get(1) is not None) == (1 in engine.live) == retried_first

    asyncio.run(run())


@pytest.mark.parametrize("stopped", [False, True])
def test_of_two_edits_the_first_stands_and_a_stop_undoes_none(
    tmp_path: Path, stopped: bool
) -> None:
    waiting = replace(ENDED, state=State.QUEUED)
    edits = [replace(waiting, spec=replace(SPEC, name=name)) for name in ("first", "second")]

    async def run() -> None:
        async with on_disk(tmp_path, waiting) as (engine, storage):
            engine.load([waiting])
            won = asyncio.ensure_future(engine.edit(waiting, edits[0]))
            await asyncio.sleep(0)
            if stopped:
                await engine.stop(1, StopReason.USER)
            with pytest.raises(KeyError):
                await engine.edit(waiting, edits[1])
            await won
            now = storage.get(1)
            assert now is not None
            assert now.spec.name == "first"
            assert (1 in engine.live) == (now.state is State.QUEUED) == (not stopped)

    asyncio.run(run())
