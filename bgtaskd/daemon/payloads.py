# SPDX-License-Identifier: LGPL-2.1-or-later
"""The payloads that wait for named tasks: accepted, given, done, put back, given up. Each change is on the disk
before anybody acts on it; what may be lost by a kill is only that something was done, never that it is to be.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from bgtaskd.daemon.writer import Writer
from bgtaskd.storage import payloads as stored
from bgtaskd.storage.payloads import ASIDE, WAITING, Aside, Payload, PayloadStore

LOADED: Final = 1000
"""So many of a worker's payloads are held in memory; the others wait on the disk."""
ASIDE_KEPT: Final = 10_000
"""So many that were given up are kept of each worker, the newest."""
BATCH_BYTES: Final = 1 << 20
DONE_SECONDS: Final = 0.02


@dataclass(slots=True)
class _Backlog:
    """What of a worker's payloads is in memory."""

    suspects: deque[Payload] = field(default_factory=deque)
    """They were in a process's hands when it died: each of them goes alone from now on."""
    fresh: deque[Payload] = field(default_factory=deque)
    last: int = 0
    """The highest id that was loaded."""
    more: bool = False
    """Whether there are higher ones on the disk."""
    skip: set[int] = field(default_factory=set)
    """Higher ids that are in memory nevertheless."""
    count: int = 0


class Payloads:
    """All workers' payloads."""

    def __init__(self, store: PayloadStore) -> None:
        self.writer: Writer[stored.Operation] = Writer(store)
        self._store = store
        self._next_id = store.next_id()
        self._backlogs: dict[str, _Backlog] = {}
        self._asides: Counter[str] = Counter()
        for (worker, state), number in store.counts().items():
            if state == WAITING:
                self._backlogs[worker] = _Backlog(more=True, count=number)
            elif state == ASIDE:
                self._asides[worker] = number
        self.held: dict[int, dict[int, Payload]] = {}
        """Given to a process, by its task's id."""
        self._done: list[int] = []
        self._told: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self.worker_of: dict[int, str] = {}
        for worker, holder, payload in store.given():
            self.held.setdefault(holder, {})[payload.id] = payload
            self.worker_of[holder] = worker

    def count(self, worker: str) -> int:
        """How many wait."""
        one = self._backlogs.get(worker)
        return 0 if one is None else one.count

    def aside_count(self, worker: str) -> int:
        """How many were given up."""
        return self._asides[worker]

    async def add(self, worker: str, uid: int, bodies: Sequence[str], now: int) -> list[int]:
        """Accept payloads; their ids, once they are on the disk. Raises StorageError."""
        new = self._new(uid, bodies, 0, now)
        backlog = self._backlog(worker)
        backlog.count += len(new)
        self._flush()
        try:
            await self.writer.write([stored.Add(worker, new)], must=False)
        except BaseException:
            backlog.count -= len(new)
            raise
        self._queue(backlog, new)
        return [one.id for one in new]

    async def add_given(
        self, worker: str, holder: int, uid: int, bodies: Sequence[str], now: int
    ) -> list[Payload]:
        """Accept payloads that go to a process at once: one commit, and one wait, less. Raises StorageError."""
        new = self._new(uid, bodies, 1, now)
        self.worker_of[holder] = worker
        held = self.held.setdefault(holder, {})
        held.update((one.id, one) for one in new)
        self._flush()
        try:
            await self.writer.write([stored.Add(worker, new, holder)], must=False)
        except BaseException:
            for one in new:
                held.pop(one.id, None)
            raise
        return new

    def _new(self, uid: int, bodies: Sequence[str], tries: int, now: int) -> list[Payload]:
        first = self._next_id
        self._next_id += len(bodies)
        return [Payload(first + at, uid, body, tries, now) for at, body in enumerate(bodies)]

    def _queue(self, backlog: _Backlog, new: Sequence[Payload]) -> None:
        if backlog.more or len(backlog.fresh) >= LOADED:
            backlog.more = True
            return
        backlog.fresh.extend(one for one in new if one.id > backlog.last)
        backlog.last = max(backlog.last, new[-1].id)

    def has_suspects(self, worker: str) -> bool:
        """Whether some must go alone; they go first."""
        backlog = self._loaded(worker)
        return bool(backlog.suspects)

    def take_suspect(self, worker: str) -> Payload:
        """The first of those that must go alone. It waits no more, so give it, or put it back."""
        backlog = self._loaded(worker)
        backlog.count -= 1
        return backlog.suspects.popleft()

    def take(self, worker: str, most: int) -> list[Payload]:
        """So many of those that may go together, oldest first. They wait no more."""
        backlog = self._loaded(worker)
        out: list[Payload] = []
        size = 0
        while backlog.fresh and len(out) < most and size < BATCH_BYTES:
            out.append(backlog.fresh.popleft())
            size += len(out[-1].body)
        backlog.count -= len(out)
        return out

    async def give(self, worker: str, holder: int, payloads: Sequence[Payload]) -> None:
        """They are a process's now; on the disk when this returns."""
        given = [one._replace(tries=one.tries + 1) for one in payloads]
        self.worker_of[holder] = worker
        self.held.setdefault(holder, {}).update((one.id, one) for one in given)
        await self.writer.write([stored.Give(holder, [one.id for one in given])], must=True)

    def done(self, holder: int, ids: Iterable[int]) -> asyncio.Future[None]:
        """They are done. On the disk a little later, with what else is written; the process says it again if
        we are killed before that."""
        held = self.held.get(holder, {})
        self._done += [one for one in ids if held.pop(one, None) is not None]
        loop = asyncio.get_running_loop()
        told: asyncio.Future[None] = loop.create_future()
        self._told.append(told)
        if self._timer is None:
            self._timer = loop.call_later(DONE_SECONDS, self._flush)
        return told

    def _flush(self) -> None:
        """What is done is written now."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        done, self._done = self._done, []
        told, self._told = self._told, []

        def tell(_: object) -> None:
            for one in told:
                if not one.done():
                    one.set_result(None)

        self.writer.write([stored.Remove(done)], must=True).add_done_callback(tell)

    def give_up(self, holder: int, reasons: Sequence[tuple[int, str]]) -> asyncio.Future[None]:
        """They failed."""
        held = self.held.get(holder, {})
        self._flush()
        known = [(one, why) for one, why in reasons if held.pop(one, None) is not None]
        worker = self.worker_of.get(holder, "")
        self._asides[worker] += len(known)
        done = self.writer.write([stored.SetAside(known)], must=True)
        if self._asides[worker] > ASIDE_KEPT:
            done.add_done_callback(lambda _: self._forget_oldest(worker))
        return done

    def _forget_oldest(self, worker: str) -> None:
        old = self._store.oldest_aside(worker, ASIDE_KEPT)
        self._asides[worker] -= len(old)
        self.writer.write([stored.Remove(old)], must=True)

    def put_back(self, holder: int, ids: Iterable[int]) -> None:
        """The process never began with them."""
        held = self.held.get(holder, {})
        back = [held.pop(one) for one in ids if one in held]
        if not back:
            return
        worker = self.worker_of[holder]
        self.writer.write([stored.PutBack([one.id for one in back], untried=True)], must=True)
        self._wait_again(worker, [one._replace(tries=one.tries - 1) for one in back])

    def died(self, holder: int, tries: int, reason: str) -> list[int]:
        """The process is gone with whatever it held. Those that were given up; the others go alone."""
        held = sorted(self.held.pop(holder, {}).values())
        worker = self.worker_of.pop(holder, None)
        if worker is None or not held:
            return []
        lost = [one for one in held if one.tries >= tries]
        back = [one for one in held if one.tries < tries]
        times = "once" if tries == 1 else f"{tries} times"
        why = f"its process died {times} with it in hand, at last: {reason}"
        operations = (
            stored.PutBack([one.id for one in back], untried=False),
            stored.SetAside([(one.id, why) for one in lost]),
        )
        self.writer.write(operations, must=True)
        self._asides[worker] += len(lost)
        self._wait_again(worker, back)
        return [one.id for one in lost]

    def _wait_again(self, worker: str, back: Sequence[Payload]) -> None:
        backlog = self._backlog(worker)
        backlog.count += len(back)
        backlog.skip.update(one.id for one in back if one.id > backlog.last)
        backlog.suspects.extendleft(reversed([one for one in back if one.tries]))
        backlog.fresh.extendleft(reversed([one for one in back if not one.tries]))

    # --- those that were given up -----------------------------------------------------------------

    def aside(self, worker: str | None, before: int | None, limit: int) -> list[Aside]:
        """Those that were given up, newest first."""
        return self._store.aside(worker, before, limit)

    def find_aside(self, ids: Sequence[int]) -> list[Aside]:
        """Those of these that were given up."""
        return self._store.find_aside(ids)

    async def drop(self, some: Sequence[Aside]) -> None:
        """Forget them. Raises StorageError."""
        await self.writer.write([stored.Remove([one.id for one in some])], must=False)
        self._asides.subtract(Counter(one.worker for one in some))

    async def forgive(self, some: Sequence[Aside]) -> None:
        """Have them wait again. Raises StorageError."""
        await self.writer.write([stored.Forgive([one.id for one in some])], must=False)
        for one in some:
            self._asides[one.worker] -= 1
            back = Payload(one.id, one.uid, one.body, 0, one.created)
            self._wait_again(one.worker, [back])

    def _backlog(self, worker: str) -> _Backlog:
        return self._backlogs.setdefault(worker, _Backlog())

    def _loaded(self, worker: str) -> _Backlog:
        """With as much in memory as is needed for now."""
        backlog = self._backlog(worker)
        while backlog.more and not backlog.fresh:
            found = self._store.waiting(worker, backlog.last, LOADED)
            backlog.more = len(found) == LOADED
            if found:
                backlog.last = found[-1].id
            new = [one for one in found if one.id not in backlog.skip]
            backlog.skip = {one for one in backlog.skip if one > backlog.last}
            backlog.suspects.extend(one for one in new if one.tries)
            backlog.fresh.extend(one for one in new if not one.tries)
        return backlog
