# SPDX-License-Identifier: LGPL-2.1-or-later
"""The writer: one bad row holds nobody up; what has happened is tried until it is written."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from bgtaskd.daemon import writer as module
from bgtaskd.daemon.writer import Writer
from bgtaskd.storage.interface import Operation, PutFlag, RowRefused, StorageFull
from bgtaskd.storage.memory import MemoryStorage


class Fussy(MemoryStorage):
    """Refuses flags called "bad" for good, and everything while it is full."""

    full = False
    batches = 0

    def apply(self, operations: Sequence[Operation]) -> None:
        if self.full:
            raise StorageFull("no room")
        if any(isinstance(one, PutFlag) and one.name == "bad" for one in operations):
            raise RowRefused("bad")
        type(self).batches += 1
        super().apply(operations)


def flag(name: str) -> list[Operation]:
    return [PutFlag(name, "1")]


@pytest.mark.parametrize("must", [False, True])
def test_a_row_that_cannot_be_stored_holds_nobody_up(must: bool) -> None:
    async def run() -> None:
        storage = Fussy()
        writer = Writer(storage)
        futures = [
            writer.write(flag("a"), must=True),
            writer.write(flag("bad"), must=must),
            writer.write(flag("b"), must=False),
        ]
        results = await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 5)
        assert results[0] is None
        assert isinstance(results[1], RowRefused)
        assert results[2] is None
        assert storage.flags() == {"a": "1", "b": "1"}
        assert writer.failure is None
        writer.close()

    asyncio.run(run())


def test_a_full_disk_refuses_what_is_new_and_keeps_what_happened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.1)

    async def run() -> None:
        storage = Fussy()
        storage.full = True
        writer = Writer(storage)
        happened = writer.write(flag("a"), must=True)
        new = writer.write(flag("b"), must=False)
        with pytest.raises(StorageFull):
            await asyncio.wait_for(new, 5)
        assert not happened.done()
        assert str(writer.failure) == "no room"
        storage.full = False
        await asyncio.wait_for(happened, 5)
        assert storage.flags() == {"a": "1"}
        assert writer.failure is None
        writer.close()

    asyncio.run(run())


def test_what_comes_during_a_commit_shares_the_next_one() -> None:
    async def run() -> None:
        storage = Fussy()
        Fussy.batches = 0
        writer = Writer(storage)
        await asyncio.gather(*(writer.write(flag(str(n)), must=True) for n in range(500)))
        assert len(storage.flags()) == 500
        assert Fussy.batches <= 2
        writer.close()

    asyncio.run(run())
