# SPDX-License-Identifier: LGPL-2.1-or-later
"""Passes tasks' output on to logs of others' making, from the output files, as far behind as the log is.

How far each attempt has come is kept in a flag of the store, "log:NAME:ID.ATTEMPT" (bytes). It is written when
the attempt is about to start, so before its end is, and removed when the log has been told of the end: what
a daemon that was killed had not passed on, the next one finds. Progress is written once a second: as much may
be told twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from traceback import format_exception_only
from typing import Final, NamedTuple

from bgtaskd.daemon.engine import Engine
from bgtaskd.daemon.hand import Hand
from bgtaskd.logs.interface import Entry, Log, LogError
from bgtaskd.logs.outputreader import OutputReader
from bgtaskd.logs.registry import open_log
from bgtaskd.model import ERROR_MAX, LIVE, RECORD, Task
from bgtaskd.storage.interface import Operation, PutFlag, StorageError
from bgtaskd.units import scope_name

log = logging.getLogger(__name__)

CHUNK: Final = 64 * 1024
CHUNKS_AT_ONCE: Final = 16
"""Of one attempt; then it is the next one's turn."""
SAVE_SECONDS: Final = 1.0
RETRY_SECONDS: Final = (1.0, 30.0)
SLOW_SECONDS: Final = 30.0
STOP_SECONDS: Final = 2.0
PREFIX: Final = "log"

Key = tuple[int, int]


@dataclass(slots=True)
class _Place:
    """How far an attempt has come. ``entry``: None where the store must be asked first."""

    offset: int = 0
    entry: Entry | None = None
    begun: bool = False


class _Step(NamedTuple):
    """What came of an attempt's turn. ``more``: there may be more to read already."""

    offset: int
    begun: bool
    ended: bool
    more: bool
    error: str | None


class LogFeed:
    """One log, and what is still to be passed on to it."""

    def __init__(self, name: str, directory: Path, engine: Engine, tasks_dir: str) -> None:
        """``directory``: the log's own. Needs the running loop; :meth:`start` begins."""
        self._name = name
        self._directory = directory
        self._engine = engine
        self._tasks_dir = tasks_dir
        self._hand: Hand[_Step] = Hand(f"log-{name}")
        self._log: Log | None = None
        self._places: dict[Key, _Place] = {}
        self._ready: dict[Key, None] = {}
        self._some = asyncio.Event()
        self._stopping = asyncio.Event()
        self._unsaved: dict[Key, str | None] = {}
        self._saver: asyncio.TimerHandle | None = None
        self._failing = False
        self._leave: Callable[[], None] = lambda: None
        self._running: asyncio.Task[None] | None = None

    def start(self, flags: Mapping[str, str], after: asyncio.Task[None] | None) -> None:
        """Go on where the last daemon stopped, by the store's flags; take what runs from its beginning.

        ``after``: one with the same name that is being closed.
        """
        for flag, value in flags.items():
            name, key = _meaning(flag)
            if name == self._name:
                self._places[key] = _Place(int(value))
        for task in self._engine.live.values():
            self._note(task)
        self._wake(self._places)
        self._leave = self._engine.subscribe(self._on_change)
        self._running = asyncio.get_running_loop().create_task(self._run(after))

    def grew(self, task_id: int) -> None:
        """A task has printed something."""
        task = self._engine.live.get(task_id)
        if task is not None:
            self._wake([(task_id, task.attempt)])

    def forget(self) -> None:
        """Nothing is to be passed on any more; :meth:`stop` is still to come."""
        self._unsaved.update(dict.fromkeys(self._places))
        self._places.clear()
        self._ready.clear()
        self._save()

    def leave(self) -> None:
        """Take no turn any more."""
        self._leave()
        self._stopping.set()
        self._some.set()

    async def stop(self) -> None:
        """After :meth:`leave`: note how far it has come, and close the log. One that hangs is left alone."""
        hangs = False
        if self._running is not None:
            _, late = await asyncio.wait([self._running], timeout=STOP_SECONDS)
            self._running.cancel()
            hangs = bool(late)
        closed = self._hand.ask(self._close)
        self._hand.close()
        if not hangs:
            await asyncio.wait([closed], timeout=STOP_SECONDS)
        self._save()

    # --- what there is to do ------------------------------------------------------------------------

    def _on_change(self, kind: str, task: Task) -> None:
        if task.state in LIVE and kind != "removed":
            self._note(task)
        else:
            # An attempt that never began is taken back: its number is one more than the task's is now.
            self._wake([(task.id, task.attempt), (task.id, task.attempt + 1)])

    def _note(self, task: Task) -> None:
        key = (task.id, task.attempt)
        if task.state in LIVE and task.spec.kind != RECORD and key not in self._places:
            self._places[key] = _Place(entry=_entry_of(task, task.attempt))
            self._engine.writer.write([self._flag(key, "0")], must=True)

    def _wake(self, keys: Iterable[Key]) -> None:
        for key in keys:
            if key in self._places:
                self._ready[key] = None
                self._some.set()

    async def _run(self, after: asyncio.Task[None] | None) -> None:
        if after is not None:
            await asyncio.wait([after])
        pause = 0.0
        while not self._stopping.is_set():
            if not self._ready:
                self._some.clear()
                await self._some.wait()
                continue
            key = next(iter(self._ready))
            del self._ready[key]
            if await self._take_turn(key):
                pause = 0.0
            else:
                pause = min(max(RETRY_SECONDS[0], pause * 2), RETRY_SECONDS[1])
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), pause)

    async def _take_turn(self, key: Key) -> bool:
        """Pass some of an attempt's output on; whether that went well."""
        place = self._places[key]
        try:
            task = self._engine.get(key[0])
        except StorageError as error:
            self._tell(str(error))
            self._wake([key])
            return False
        over = task is None or task.attempt != key[1] or task.state not in LIVE
        if place.entry is None and task is not None:
            place.entry = _entry_of(task, key[1])
        taken_back = task is not None and task.attempt < key[1]
        if place.entry is None or taken_back:
            self._done(key)
            return True
        entry, cap = place.entry, self._engine.config.output_cap
        reader = OutputReader(self._tasks_dir, *key, cap)
        start = _Step(place.offset, place.begun, False, False, None)
        working = self._hand.ask(lambda: self._pass_on(reader, entry, start, over))
        if not (await asyncio.wait([working], timeout=SLOW_SECONDS))[0]:
            log.warning("Log %s has not answered for %d s; tasks go on", self._name, SLOW_SECONDS)
        step = await working
        if key not in self._places:  # forgotten meanwhile
            return True
        if step.offset != place.offset:
            place.offset = step.offset
            self._keep(key, str(step.offset))
        place.begun = step.begun
        self._tell(step.error)
        if step.ended or (step.error is not None and task is None):
            self._done(key)
        elif step.more or step.error is not None:
            self._wake([key])
        return step.error is None

    def _tell(self, error: str | None) -> None:
        if error is not None and not self._failing:
            log.error("Log %s: %s. It is tried again; tasks go on.", self._name, error)
        elif error is None and self._failing:
            log.warning("Log %s takes output again.", self._name)
        self._failing = error is not None

    # --- how far it has come --------------------------------------------------------------------------

    def _done(self, key: Key) -> None:
        del self._places[key]
        self._ready.pop(key, None)
        self._keep(key, None)

    def _keep(self, key: Key, value: str | None) -> None:
        self._unsaved[key] = value
        if self._saver is None:
            loop = asyncio.get_running_loop()
            self._saver = loop.call_later(SAVE_SECONDS, self._save)

    def _save(self) -> None:
        if self._saver is not None:
            self._saver.cancel()
            self._saver = None
        if not self._unsaved:
            return
        operations: list[Operation] = [self._flag(*one) for one in self._unsaved.items()]
        self._unsaved.clear()
        self._engine.writer.write(operations, must=True)

    def _flag(self, key: Key, value: str | None) -> PutFlag:
        return PutFlag(f"{PREFIX}:{self._name}:{key[0]}.{key[1]}", value)

    # --- in the thread --------------------------------------------------------------------------------

    def _pass_on(self, reader: OutputReader, entry: Entry, start: _Step, over: bool) -> _Step:
        offset, begun = start.offset, start.begun
        try:
            if self._log is None:
                self._log = open_log(self._name, self._directory)
            if not begun:
                self._log.begin(entry, offset)
                begun = True
            for _ in range(CHUNKS_AT_ONCE):
                chunk = reader.read(offset, CHUNK)
                if not chunk.data:
                    if over:
                        self._log.end(entry)
                    return _Step(offset, begun, over, False, None)
                self._log.write(entry, chunk.data, chunk.offset)
                offset = chunk.next_offset
        except BaseException as error:  # noqa: BLE001 - others' code: whatever it is, it costs it its turn
            return _Step(offset, begun, False, False, _said(error))
        return _Step(offset, begun, False, True, None)

    def _close(self) -> _Step:
        error = None
        try:
            if self._log is not None:
                self._log.close()
        except BaseException as wrong:  # noqa: BLE001 - others' code
            error = _said(wrong)
            log.warning("Log %s could not be closed: %s", self._name, error)
        return _Step(0, False, True, False, error)


def _said(error: BaseException) -> str:
    """Its last line; also where it cannot say itself."""
    if isinstance(error, LogError):
        return str(error)
    return "".join(format_exception_only(error)).strip()[-ERROR_MAX:]


def _entry_of(task: Task, attempt: int) -> Entry:
    spec = task.spec
    unit = scope_name(task.id, attempt)
    return Entry(task.id, attempt, spec.name, spec.queue, task.user, task.uid, unit)


class LogFeeds:
    """All that the configuration names."""

    def __init__(self, engine: Engine, directory: Path, tasks_dir: str) -> None:
        """``directory``: in it, each log has one of its own."""
        self._engine = engine
        self._directory = directory
        self._tasks_dir = tasks_dir
        self._feeds: dict[str, LogFeed] = {}
        self._closing: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Go on where the last daemon stopped."""
        flags = self._engine.storage.flags()
        wanted = (None, *self._engine.config.output_also)
        stale = [PutFlag(one, None) for one in flags if _meaning(one)[0] not in wanted]
        if stale:
            self._engine.writer.write(stale, must=True)
        self.configure(flags)

    def configure(self, flags: Mapping[str, str] | None = None) -> None:
        """Pass on to what is named now; close what is not any more, and forget how far it has come."""
        wanted = self._engine.config.output_also
        for name in [one for one in self._feeds if one not in wanted]:
            feed = self._feeds.pop(name)
            feed.leave()
            feed.forget()
            self._close(name, feed)
        for name in [one for one in wanted if one not in self._feeds]:
            feed = LogFeed(name, self._directory / name, self._engine, self._tasks_dir)
            self._feeds[name] = feed
            feed.start(flags or {}, self._closing.get(name))

    def _close(self, name: str, feed: LogFeed) -> None:
        done = asyncio.get_running_loop().create_task(feed.stop())
        self._closing[name] = done
        done.add_done_callback(lambda _: self._closing.pop(name, None))

    def grew(self, task_id: int) -> None:
        """A task has printed something."""
        for feed in self._feeds.values():
            feed.grew(task_id)

    async def stop(self) -> None:
        """Close all, at once."""
        for feed in self._feeds.values():
            feed.leave()
        stops = [feed.stop() for feed in self._feeds.values()]
        self._feeds = {}
        await asyncio.gather(*stops, *self._closing.values())


def _meaning(flag: str) -> tuple[str | None, Key]:
    """The name of the log, and the attempt; None where it is another kind of flag."""
    kind, _, rest = flag.partition(":")
    name, _, attempt = rest.rpartition(":")
    task_id, _, number = attempt.partition(".")
    return (name, (int(task_id), int(number))) if kind == PREFIX else (None, (0, 0))
