# SPDX-License-Identifier: LGPL-2.1-or-later
"""One writer: while a commit runs, what comes next is gathered for the one after it (group commit)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from bgtaskd.storage.interface import RowRefused, StorageError

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 1.0


Op = TypeVar("Op")
Op_contra = TypeVar("Op_contra", contravariant=True)


class Applies(Protocol[Op_contra]):
    """The writing half of a store."""

    def apply(self, operations: Sequence[Op_contra]) -> None:
        """All of the operations, in one transaction, durable on return. Raises StorageError."""


@dataclass(slots=True)
class _Group:
    operations: Sequence[Any]
    done: asyncio.Future[None]
    must: bool


class Writer(Generic[Op]):
    """Commits groups of operations in the order in which they were given."""

    def __init__(self, storage: Applies[Op]) -> None:
        self._storage = storage
        self._thread = ThreadPoolExecutor(1, "writer")
        self._waiting: list[_Group] = []
        self._running: asyncio.Task[None] | None = None
        self.failure: StorageError | None = None
        """Why nothing can be written at present; None while all is well."""

    def write(self, operations: Sequence[Op], *, must: bool) -> asyncio.Future[None]:
        """A future that is done once these are on the disk.

        ``must``: what has happened has happened, so it is tried until it succeeds. Otherwise the future
        gets the StorageError, and nothing was kept.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._waiting.append(_Group(operations, done, must))
        if self._running is None:
            self._running = loop.create_task(self._work())
        return done

    async def drain(self) -> None:
        """Wait until all is written, or cannot be."""
        while self._running is not None and self.failure is None:
            await asyncio.wait([self._running], timeout=0.1)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=True)

    async def _work(self) -> None:
        try:
            while self._waiting:
                groups, self._waiting = self._waiting, []
                if await self._commit(groups):
                    continue
                kept = []
                for group in groups:  # one by one, so that each gets its own answer
                    if not await self._commit([group]):
                        if group.done.done():  # refused for good: it must not hold up the others
                            continue
                        if group.must:
                            kept.append(group)
                        else:
                            self._refuse(group)
                if kept:
                    self._waiting[:0] = kept
                    await self._wait_for_room()
        finally:
            self._running = None

    async def _wait_for_room(self) -> None:
        """Wait a while; but who may be refused is refused at once, not made to wait."""
        loop = asyncio.get_running_loop()
        end = loop.time() + RETRY_SECONDS
        while loop.time() < end:
            await asyncio.sleep(0.05)
            for group in [one for one in self._waiting if not one.must]:
                self._waiting.remove(group)
                self._refuse(group)

    def _refuse(self, group: _Group) -> None:
        if self.failure is not None and not group.done.done():
            group.done.set_exception(self.failure)

    async def _commit(self, groups: Sequence[_Group]) -> bool:
        operations = [one for group in groups for one in group.operations]
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self._storage.apply, operations)
        except RowRefused as error:
            # The disk is well; only these operations are not. Alone, they are given up.
            if len(groups) == 1 and not groups[0].done.done():
                if groups[0].must:
                    log.error("Given up, for it can never be written: %s", error)
                groups[0].done.set_exception(error)
            return False
        except StorageError as error:
            if self.failure is None:
                log.error(
                    "Cannot write the database: %s. Accepted tasks are kept, new ones refused.",
                    error,
                )
            self.failure = error
            return False
        if self.failure is not None:
            log.warning("The database can be written again.")
            self.failure = None
        for group in groups:
            if not group.done.done():
                group.done.set_result(None)
        return True
