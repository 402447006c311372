# SPDX-License-Identifier: LGPL-2.1-or-later
"""Operations that go on: Watch, Wait, Output. A slow reader sees folded changes, and holds nobody up."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any, Final

from bgtaskd.daemon.engine import Engine
from bgtaskd.errors import InvalidSpec, RemoteError, TimedOut
from bgtaskd.launcher.accounting import Cgroup
from bgtaskd.logs.outputreader import OutputReader
from bgtaskd.model import ENDED, Task
from bgtaskd.units import slice_name

if TYPE_CHECKING:
    from bgtaskd.daemon.api import Api
    from bgtaskd.protocol.server import Call, Streamed

EXPECTED_MORE: Final = "org.varlink.service.ExpectedMore"
IDS_MAX: Final = 100_000
CHUNK: Final = 64 * 1024
CHUNK_MAX: Final = 256 * 1024
FOLLOW_INTERVAL: Final = 0.05


class Changes:
    """The changes of some tasks, the newest of each only: what is not fetched in time is folded."""

    def __init__(self, engine: Engine, wanted: Callable[[Task], bool]) -> None:
        self._wanted = wanted
        self._pending: dict[int, tuple[str, Task]] = {}
        self._some = asyncio.Event()
        self._leave = engine.subscribe(self._on_change)

    def _on_change(self, kind: str, task: Task) -> None:
        if self._wanted(task):
            before = self._pending.pop(task.id, None)
            if before is not None and before[0] == "added" and kind == "changed":
                kind = "added"
            self._pending[task.id] = (kind, task)
            self._some.set()

    async def next(self, within: float | None = None) -> tuple[str, Task] | None:
        """The oldest change not yet fetched; None when none came in time."""
        if not self._pending:
            self._some.clear()
            try:
                await asyncio.wait_for(self._some.wait(), within)
            except TimeoutError:
                return None
        task_id = next(iter(self._pending))
        return self._pending.pop(task_id)

    def close(self) -> None:
        """Want no more."""
        self._leave()


async def watch(api: Api, call: Call) -> AsyncGenerator[Streamed, None]:
    """See Watch in org.bgtaskd.varlink."""
    if not call.more:
        raise RemoteError(EXPECTED_MORE, {})
    ids = call.parameters.get("ids")
    if ids is None:
        changes = Changes(
            api.engine,
            lambda task: not task.is_resident() and api.policy.may_see(call.peer, task),
        )
        try:
            while True:
                change = await changes.next()
                if change is not None:
                    yield {"event": change[0], "task": api.shown(change[1])}, True
        finally:
            changes.close()
    wanted = _ids(ids)
    changes = Changes(api.engine, lambda task: task.id in wanted)
    try:
        left = set(wanted)
        for task_id in ids:
            task = api.task(call, _see(), task_id)
            if task.state in ENDED:
                left.discard(task_id)
            yield (
                {
                    "event": "finished" if task.state in ENDED else "changed",
                    "task": api.shown(task),
                },
                bool(left),
            )
            if not left:
                return
        while left:
            change = await changes.next()
            if change is None:
                continue
            kind, task = change
            if kind in ("finished", "removed"):
                if task.id not in left:
                    continue
                left.discard(task.id)
            yield {"event": kind, "task": api.shown(task)}, bool(left)
    finally:
        changes.close()


async def wait(api: Api, call: Call) -> AsyncGenerator[Streamed, None]:
    """See Wait in org.bgtaskd.varlink."""
    ids = call.parameters["ids"]
    left = _ids(ids)
    if not ids or (len(left) > 1 and not call.more):
        raise InvalidSpec(field="ids", reason="must name a task; several need a call with more")
    timeout = call.parameters.get("timeout_usec")
    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else loop.time() + timeout / 1e6
    changes = Changes(api.engine, lambda task: task.id in left and task.state in ENDED)
    try:
        for task_id in ids:
            task = api.task(call, _see(), task_id)
            if task.state in ENDED and task_id in left:
                left.discard(task_id)
                yield {"task": api.shown(task)}, bool(left)
        while left:
            change = await changes.next(
                None if deadline is None else max(0.0, deadline - loop.time())
            )
            if change is None:
                raise TimedOut(timeout_usec=timeout)
            task = change[1]
            if task.id in left:
                left.discard(task.id)
                yield {"task": api.shown(task)}, bool(left)
    finally:
        changes.close()


class Bell:
    """Rings when one of these things happens to a task, and when it has ended or is gone."""

    def __init__(
        self, engine: Engine, task_id: int, listeners: list[Callable[[Task, Any], None]]
    ) -> None:
        self._rung = asyncio.Event()
        self._listeners = listeners
        self._task_id = task_id
        self._leave = engine.subscribe(self._on_change)
        listeners.append(self._on_event)

    def _on_change(self, kind: str, task: Task) -> None:
        if kind in ("finished", "removed"):
            self._on_event(task, None)

    def _on_event(self, task: Task, _: object) -> None:
        if task.id == self._task_id:
            self._rung.set()

    async def wait(self, within: float | None = None) -> bool:
        """Until it rings; whether it did in time."""
        try:
            await asyncio.wait_for(self._rung.wait(), within)
        except TimeoutError:
            return False
        self._rung.clear()
        return True

    def close(self) -> None:
        """Listen no more."""
        self._leave()
        self._listeners.remove(self._on_event)


async def signals(api: Api, call: Call) -> AsyncGenerator[Streamed, None]:
    """See Signals in org.bgtaskd.varlink."""
    task = api.task(call, _see())
    seen = min(max(call.parameters.get("after") or 0, 0), 1 << 62)
    timeout = call.parameters.get("timeout_usec")
    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else loop.time() + timeout / 1e6
    bell = Bell(api.engine, task.id, api.engine.signal_subscribers)
    try:
        while True:
            more = call.more and task.id in api.engine.live
            fresh = api.engine.storage.messages(task.id, seen)
            shown = [
                {"seq": one.seq, "name": one.name, "payload": one.payload, "created": one.created}
                for one in fresh
            ]
            if not more:
                yield {"signals": shown}, False
                return
            for one in shown:  # all at once might be too much for one message
                yield {"signals": [one]}, True
            seen = max([seen, *(one.seq for one in fresh)])
            left = None if deadline is None else max(0.0, deadline - loop.time())
            if not await bell.wait(left):
                raise TimedOut(timeout_usec=timeout)
    finally:
        bell.close()


async def config(api: Api, call: Call) -> AsyncGenerator[Streamed, None]:
    """See GetConfig in org.bgtaskd.varlink."""
    task = api.task(call, _see())
    bell = Bell(api.engine, task.id, api.engine.config_subscribers)
    try:
        while True:
            more = call.more and task.id in api.engine.live
            yield {"config": api.engine.storage.config(task.id)}, more
            if not more:
                return
            await bell.wait()
    finally:
        bell.close()


async def output(api: Api, call: Call) -> AsyncGenerator[Streamed, None]:
    """See Output in org.bgtaskd.varlink."""
    given = call.parameters
    task = api.task(call, _see())
    encoding = given.get("encoding") or "utf-8"
    if encoding not in ("utf-8", "base64"):
        raise InvalidSpec(field="encoding", reason="must be utf-8 or base64")
    limit = given.get("limit") or CHUNK
    if not 4 <= limit <= CHUNK_MAX:
        raise InvalidSpec(field="limit", reason=f"must be from 4 to {CHUNK_MAX}")
    attempt = given.get("attempt") or max(task.attempt, 1)
    if not 1 <= attempt <= max(task.attempt, 1):
        raise InvalidSpec(field="attempt", reason=f"there were {task.attempt} attempts")
    reader = OutputReader(api.tasks_dir, task.id, attempt, api.engine.config.output_cap)
    offset = given.get("offset") or 0
    grew = asyncio.Event()
    waiters = api.supervisors.output_waiters.setdefault(task.id, set())
    waiters.add(grew)
    leave = api.engine.subscribe(
        lambda kind, one: grew.set() if one.id == task.id and kind != "changed" else None
    )
    try:
        while True:
            grew.clear()
            now = api.engine.live.get(task.id)
            over = now is None or now.attempt != attempt
            chunk = reader.read(offset, limit)
            data, next_offset = chunk.data, chunk.next_offset
            if encoding == "utf-8" and not (over and next_offset >= chunk.total):
                data = _whole_characters(data)
                next_offset = chunk.offset + len(data)
            eof = next_offset >= chunk.total
            more = call.more and (not eof or bool(given.get("follow") and not over))
            if data or not more:
                text = (
                    data.decode("utf-8", "replace")
                    if encoding == "utf-8"
                    else base64.b64encode(data).decode()
                )
                place = {
                    "offset": chunk.offset,
                    "next_offset": next_offset,
                    "dropped": chunk.dropped,
                }
                yield {"data": text, **place, "eof": eof and over}, more
            if not more:
                return
            offset = next_offset
            if eof or not data:
                await grew.wait()
                await asyncio.sleep(FOLLOW_INTERVAL)
    finally:
        leave()
        waiters.discard(grew)
        if not waiters:
            api.supervisors.output_waiters.pop(task.id, None)


def _whole_characters(data: bytes) -> bytes:
    """The data without a last character that is not whole yet."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        need = (
            1
            if byte < 0x80
            else 2
            if byte >> 5 == 6
            else 3
            if byte >> 4 == 14
            else 4
            if byte >> 3 == 30
            else 1
        )
        return data if need <= back else data[:-back]
    return data


def usage_now(task: Task) -> dict[str, Any]:
    """What a running task's cgroup says at this moment; what is not known is left out."""
    path = f"/sys/fs/cgroup/bgtask.slice/{slice_name(task.spec.queue)}/{task.unit}"
    usage = Cgroup.read_once(path)
    return {key: value for key, value in usage.items() if value is not None}


def _ids(ids: list[int]) -> set[int]:
    if len(ids) > IDS_MAX:
        raise InvalidSpec(field="ids", reason=f"at most {IDS_MAX}")
    return set(ids)


def _see() -> Any:
    from bgtaskd.daemon.api import Access

    return Access.SEE
