# SPDX-License-Identifier: LGPL-2.1-or-later
"""The engine's own promises that need neither launcher nor disk."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from bgtaskd.config import load_config
from bgtaskd.daemon.engine import Engine
from bgtaskd.daemon.launcher_link import LauncherLink
from bgtaskd.daemon.secrets import Secrets
from bgtaskd.model import State, Task, TaskSpec
from bgtaskd.storage.interface import Operation, PutTask, StorageError, StorageFull
from bgtaskd.storage.memory import MemoryStorage

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
