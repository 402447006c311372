# SPDX-License-Identifier: LGPL-2.1-or-later
"""Named tasks: which processes of them there are to be, what each is given, and what came of it.

Each process is a task of kind ``worker``, so it is started, logged, limited, stopped and found again after a
restart of the daemon like any task. What differs is here: there are to be so many of them, they are replaced
when they end, and payloads and calls go to them over a connection of theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pwd
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bgtaskd.daemon.engine import Engine, now_usec
from bgtaskd.daemon.launcher_link import LauncherError
from bgtaskd.daemon.payloads import Payloads
from bgtaskd.daemon.worker_link import WorkerLink
from bgtaskd.errors import CallFailed, QueueFull, TimedOut, WorkerDied
from bgtaskd.model import ENDED, LIVE, WORKER, IllegalTransition, State, StopReason, Task, TaskSpec
from bgtaskd.storage.interface import StorageError
from bgtaskd.storage.payloads import Payload
from bgtaskd.workers import WorkerFile

log = logging.getLogger(__name__)

WINDOW: Final = 512
"""So many payloads a process may have in hand."""
BACKOFF_MIN: Final = 0.2
BACKOFF_MAX: Final = 30.0
GOOD_SECONDS: Final = 10.0
"""A process that has lived so long has not failed to start."""
IDLE: Final = "idle"
ALARM: Final = "SIGALRM"
"""What ends a process that has hung for its watchdog time (bgtaskd.task.serving.Guard)."""


class _NotBegun(Exception):
    """The process has gone before it began with the call: another one is to have it."""


@dataclass(eq=False, slots=True)
class Instance:
    """One process."""

    id: int
    number: int
    digest: str
    link: WorkerLink | None = None
    leaving: bool = False
    alone: bool = False
    """Whether what it has in hand must go alone."""
    served: int = 0
    failed: int = 0
    bye: str | None = None
    calls: dict[int, asyncio.Future[Any]] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Named:
    """One named task."""

    file: WorkerFile
    wanted: bool
    """Whether there are to be processes of it now; otherwise when it is called."""
    instances: dict[int, Instance] = field(default_factory=dict)
    failures: int = 0
    error: str | None = None
    """Why it has no process that is ready, where one has failed."""
    not_before: float = 0.0
    has_socket: bool = False
    awaits_call: bool = False
    ready: asyncio.Event = field(default_factory=asyncio.Event)


class Workers:
    """All named tasks."""

    def __init__(self, engine: Engine, payloads: Payloads, link_path: str) -> None:
        self._engine = engine
        self._payloads = payloads
        self._link_path = link_path
        self._named: dict[str, Named] = {}
        self._names: dict[int, str] = {}
        """Every process's name, also those whose file is gone."""
        self._orphans: dict[int, Instance] = {}
        self._strangers: set[WorkerLink] = set()
        self._merging: dict[tuple[str, int, str], asyncio.Future[Any]] = {}
        self._next_call = 1
        engine.subscribe(self._heard)

    def link(self) -> WorkerLink:
        """One more connection."""
        return WorkerLink(self, self._strangers)

    def get(self, name: str) -> Named | None:
        """A named task."""
        return self._named.get(name)

    def all(self) -> list[Named]:
        """All named tasks, by name."""
        return [self._named[name] for name in sorted(self._named)]

    # --- which are to be --------------------------------------------------------------------------

    def load(self) -> None:
        """Take over the processes there are, at start-up. Payloads of those that are gone wait again."""
        for task in self._engine.live.values():
            if task.spec.kind == WORKER:
                settings = task.spec.settings or {}
                one = Instance(task.id, settings.get("instance", 1), settings.get("digest", ""))
                self._orphans[task.id] = one
                self._names[task.id] = str(settings.get("name"))
        for holder in [one for one in self._payloads.held if one not in self._orphans]:
            self._payloads.died(holder, 1 << 30, "the daemon was away")

    async def configure(self, files: Mapping[str, WorkerFile]) -> None:
        """Have these named tasks, and no others. No job is dropped: who is replaced finishes first."""
        for name in [one for one in self._named if one not in files]:
            named = self._named.pop(name)
            self._orphans.update(named.instances)
            for one in named.instances.values():
                self._send_off(one)
        for name, file in files.items():
            known = self._named.get(name)
            if known is None:
                known = self._named[name] = Named(file, file.start == "boot")
                for one in list(self._orphans.values()):
                    if self._names.get(one.id) == name and not one.leaving:
                        known.instances[one.id] = self._orphans.pop(one.id)
                        known.wanted = True
            elif known.file.start != file.start and file.start == "boot":
                known.wanted = True
            known.file = file
        sync = [name for name, file in files.items() if file.type == "sync"]
        await self._ask("listen_only", keep=sync)
        for named in list(self._named.values()):
            if named.file.type == "sync":
                await self._listen(named)
            self._reconcile(named)
        for one in self._orphans.values():
            self._send_off(one)

    async def _listen(self, named: Named) -> None:
        answer = await self._ask("listen", name=named.file.name)
        named.has_socket = answer is not None
        if answer is not None and answer.get("fresh"):
            for one in named.instances.values():  # they listen on a socket that nobody finds
                self._send_off(one)

    async def _ask(self, op: str, **parameters: Any) -> dict[str, Any] | None:
        try:
            return await self._engine.launcher.insist(op, **parameters)
        except LauncherError as error:
            log.error("Named task %s: %s", parameters.get("name", ""), error)
            return None

    def _reconcile(self, named: Named) -> None:
        """Have as many processes as there are to be, each of the present definition."""
        file, digest = named.file, named.file.digest()
        for one in named.instances.values():
            if one.digest != digest:
                self._send_off(one)
        staying = [one for one in named.instances.values() if not one.leaving]
        if not named.wanted and self._payloads.count(file.name):
            named.wanted = True
        for one in staying[file.instances :]:
            self._send_off(one)
        if not named.wanted:
            self._await_call(named)
            return
        if file.type == "sync" and not named.has_socket:
            return
        missing = file.instances - len(staying)
        wait = named.not_before - time.monotonic()
        if missing > 0 and wait > 0:
            asyncio.get_running_loop().call_later(wait, self._again, file.name)
            return
        taken = {one.number for one in staying}
        free = [one for one in range(1, file.instances + 1) if one not in taken]
        for number in free[: max(0, missing)]:
            self._begin(named, number)

    def _again(self, name: str) -> None:
        named = self._named.get(name)
        if named is not None:
            self._reconcile(named)

    def _send_off(self, one: Instance) -> None:
        """It finishes what it is doing, gives back the rest, and goes."""
        if one.leaving:
            return
        one.leaving = True
        if one.link is not None:
            one.link.send({"go": True})
        else:
            self._engine.job(self._stop(one.id))

    async def _stop(self, task_id: int) -> None:
        with contextlib.suppress(KeyError, IllegalTransition):
            await self._engine.stop(task_id, StopReason.USER)

    def _begin(self, named: Named, number: int) -> None:
        file = named.file
        try:
            entry = pwd.getpwnam(file.user)
        except KeyError:
            named.error = f"there is no user {file.user}"
            log.error("Named task %s: %s", file.name, named.error)
            self._back_off(named)
            return
        task_id, self._engine.next_id = self._engine.next_id, self._engine.next_id + 1
        spec = TaskSpec(
            kind=WORKER,
            name=file.name,
            argv=file.argv,
            user=file.user,
            cwd=file.cwd,
            env=file.env,
            queue=file.queue if file.queue in self._engine.config.queues else "default",
            properties=file.properties,
            stop_timeout_usec=file.stop_timeout_usec,
            target=file.target,
            import_path=file.import_path,
            secrets=("token",),
            settings={
                "name": file.name,
                "instance": number,
                "digest": file.digest(),
                "type": file.type,
                "max_jobs": file.max_jobs,
                "max_memory": file.max_memory,
                "idle_usec": file.idle_stop_usec,
                "watchdog_usec": file.watchdog_usec,
                "link": self._link_path,
            },
        )
        now = now_usec()
        task = Task(
            task_id, spec, entry.pw_uid, entry.pw_name, 0, State.QUEUED, created=now, updated=now
        )
        named.instances[task_id] = Instance(task_id, number, file.digest())
        self._names[task_id] = file.name
        self._engine.job(self._add(named, task))

    async def _add(self, named: Named, task: Task) -> None:
        try:
            self._engine.secrets.put(task.id, {"token": os.urandom(16).hex()})
            await self._engine.add(task)
        except (StorageError, OSError) as error:
            named.error = str(error)
            log.error("Named task %s cannot be started: %s", named.file.name, error)
            named.instances.pop(task.id, None)
            self._names.pop(task.id, None)
            self._back_off(named)

    def _back_off(self, named: Named) -> None:
        """Not again at once."""
        delay = min(BACKOFF_MAX, BACKOFF_MIN * 2 ** min(named.failures, 16))
        named.failures += 1
        named.not_before = time.monotonic() + delay
        self._reconcile(named)

    def _await_call(self, named: Named) -> None:
        """Nobody is there; whoever calls wakes it."""
        if named.has_socket and not named.awaits_call and not named.instances:
            named.awaits_call = True
            self._engine.job(self._awaited(named))

    async def _awaited(self, named: Named) -> None:
        answer = await self._ask("await_call", name=named.file.name)
        named.awaits_call = False
        if answer is not None:
            self._want(named)

    def _want(self, named: Named) -> None:
        if not named.wanted:
            named.wanted = True
            self._reconcile(named)

    # --- what processes do ------------------------------------------------------------------------

    def _heard(self, kind: str, task: Task) -> None:
        """A task has changed."""
        if task.spec.kind != WORKER or task.id not in self._names:
            return
        if task.state in ENDED:
            self._gone(task)

    def _gone(self, task: Task) -> None:
        name = self._names.pop(task.id)
        named = self._named.get(name)
        one = (named.instances if named else self._orphans).pop(task.id, None)
        if one is None:
            one = self._orphans.pop(task.id, None)
        why = _why(task)
        if one is not None:
            if one.link is not None:
                one.link.close()
            for future in one.calls.values():
                if not future.done():
                    future.set_exception(WorkerDied(name=name, reason=why))
        good = task.state is State.FINISHED
        tries = named.file.tries if named else 1 << 30
        for number in self._payloads.died(task.id, tries, why):
            log.warning("Named task %s: payload %d is set aside: %s", name, number, why)
        if named is None:
            return
        self._look_ready(named)
        if good and one is not None and one.bye == IDLE and not named.instances:
            named.wanted = self._payloads.count(name) > 0
        if good or (one is not None and one.leaving) or task.state is State.STOPPED:
            named.failures = 0
            self._reconcile(named)
            return
        ran = (task.ended or 0) - (task.started or task.ended or 0)
        if ran >= GOOD_SECONDS * 1e6:
            named.failures = 0
        named.error = f"process {task.id} ended: {why}"
        log.warning("Named task %s: %s", name, named.error)
        self._back_off(named)

    def _find(self, task_id: int) -> tuple[Named | None, Instance | None]:
        named = self._named.get(self._names.get(task_id, ""))
        if named is not None and task_id in named.instances:
            return named, named.instances[task_id]
        return None, self._orphans.get(task_id)

    def token(self, task_id: int) -> str | None:
        """See Hears."""
        task = self._engine.live.get(task_id)
        if task is None or task.spec.kind != WORKER or task.state not in LIVE:
            return None
        known = self._engine.secrets.get(task_id)
        return None if known is None else known.get("token")

    def connected(self, task_id: int, link: WorkerLink, holds: Sequence[int]) -> None:
        """See Hears."""
        named, one = self._find(task_id)
        if one is None:
            link.send({"go": True})
            return
        if one.link is not None:
            one.link.close()
        one.link = link
        held = self._payloads.held.get(task_id, {})
        known = set(holds)
        # What it was sent and has never had: the connection broke in between. What it has done, and could
        # not say, it says next.
        self._sent_in_vain(task_id, [number for number in held if number not in known])
        if one.leaving:
            link.send({"go": True})
        elif named is not None:
            named.failures, named.error = 0, None
            self._look_ready(named)
            self._pump(named)

    def _sent_in_vain(self, task_id: int, numbers: list[int]) -> None:
        def later() -> None:
            held = self._payloads.held.get(task_id, {})
            self.gave_back(task_id, [one for one in numbers if one in held])

        if numbers:  # its "ends" follow its hello at once
            asyncio.get_running_loop().call_later(0.5, later)

    def ended(
        self, task_id: int, ends: Sequence[Sequence[Any]], confirm: Callable[[], None]
    ) -> None:
        """See Hears."""
        named, one = self._find(task_id)
        done = self._payloads.done(task_id, [end[0] for end in ends if len(end) == 1])
        failed = [(end[0], json.dumps(end[1])) for end in ends if len(end) == 2]
        if failed:
            done = self._payloads.give_up(task_id, failed)
        done.add_done_callback(lambda _: confirm())
        if one is not None and named is not None:
            if not self._payloads.held.get(task_id):
                one.alone = False
            self._pump(named)

    def gave_back(self, task_id: int, ids: Sequence[int]) -> None:
        """See Hears."""
        self._payloads.put_back(task_id, ids)
        named, one = self._find(task_id)
        if named is not None and one is not None:
            if not self._payloads.held.get(task_id):
                one.alone = False
            self._pump(named)

    def answered(self, task_id: int, call: int, good: bool, value: Any) -> None:
        """See Hears."""
        _, one = self._find(task_id)
        future = None if one is None else one.calls.pop(call, None)
        if future is None or future.done():
            return
        if good:
            future.set_result(value)
        else:
            words = {name: value[name] for name in ("type", "message", "traceback")}
            future.set_exception(CallFailed(**words))

    def counted(self, task_id: int, served: int, failed: int, bye: str | None) -> None:
        """See Hears."""
        named, one = self._find(task_id)
        if one is not None:
            one.served, one.failed = served, failed
            if bye is not None:
                one.bye, one.leaving = bye, True
                # It has nothing in hand any more: what it has not answered, it has not begun.
                for future in one.calls.values():
                    if not future.done():
                        future.set_exception(_NotBegun())
                one.calls.clear()
                if named is not None:
                    self._look_ready(named)
                    if bye != IDLE:
                        self._reconcile(named)

    def hung_up(self, task_id: int, link: WorkerLink) -> None:
        """See Hears."""
        named, one = self._find(task_id)
        if one is not None and one.link is link:
            one.link = None
            for future in one.calls.values():
                if not future.done():
                    future.set_exception(WorkerDied(name=self._names[task_id], reason="it hung up"))
            one.calls.clear()
            if named is not None:
                self._look_ready(named)

    def _look_ready(self, named: Named) -> None:
        if any(one.link is not None and not one.leaving for one in named.instances.values()):
            named.ready.set()
        else:
            named.ready.clear()

    # --- payloads ---------------------------------------------------------------------------------

    async def submit(self, named: Named, uid: int, bodies: Sequence[str]) -> list[int]:
        """Accept payloads: on the disk when this returns. Raises QueueFull, StorageError."""
        file = named.file
        if self._payloads.count(file.name) + len(bodies) > file.backlog:
            raise QueueFull(queue=file.name, limit=file.backlog)
        ready = self._ready_for(named, len(bodies))
        if ready is not None:
            new = await self._payloads.add_given(file.name, ready.id, uid, bodies, now_usec())
            self._send(ready, new)
            return [one.id for one in new]
        ids = await self._payloads.add(file.name, uid, bodies, now_usec())
        self._want(named)
        self._pump(named)
        return ids

    def _ready_for(self, named: Named, count: int) -> Instance | None:
        """A process that can take so many more, if nobody waits before them."""
        if self._payloads.count(named.file.name):
            return None
        held = self._payloads.held
        there = [
            one
            for one in named.instances.values()
            if one.link is not None
            and not one.leaving
            and not one.alone
            and len(held.get(one.id, ())) + count <= WINDOW
        ]
        return min(there, key=lambda one: len(held.get(one.id, ())), default=None)

    def pump(self, name: str) -> None:
        """Payloads may wait that did not."""
        named = self._named.get(name)
        if named is not None:
            self._want(named)
            self._pump(named)

    def _pump(self, named: Named) -> None:
        """Give the processes what they can take."""
        name = named.file.name
        if not self._payloads.count(name):
            return
        there = [one for one in named.instances.values() if one.link and not one.leaving]
        there.sort(key=lambda one: len(self._payloads.held.get(one.id, ())))
        for one in there:
            held = len(self._payloads.held.get(one.id, ()))
            if one.alone:
                continue
            if self._payloads.has_suspects(name):
                if held == 0:
                    one.alone = True
                    self._give(named, one, [self._payloads.take_suspect(name)])
                else:  # it is the idlest; once it is done it takes one
                    return
            elif held <= WINDOW // 2:
                some = self._payloads.take(name, WINDOW - held)
                if not some:
                    return
                self._give(named, one, some)

    def _give(self, named: Named, one: Instance, some: Sequence[Payload]) -> None:
        self._engine.job(self._given(named, one, some))

    async def _given(self, named: Named, one: Instance, some: Sequence[Payload]) -> None:
        await self._payloads.give(named.file.name, one.id, some)
        self._send(one, some)

    def _send(self, one: Instance, some: Sequence[Payload]) -> None:
        """Payloads that are the process's, on the disk too."""
        held = self._payloads.held.get(one.id, {})
        if one.link is None or one.leaving:
            if one.id in self._names:
                self.gave_back(one.id, [each.id for each in some])
            return
        sent = [held[each.id] for each in some if each.id in held]
        one.link.send(
            {"payloads": [[each.id, each.tries, each.uid, json.loads(each.body)] for each in sent]}
        )

    # --- calls ------------------------------------------------------------------------------------

    async def call(
        self, named: Named, uid: int, payload: Any, merge_key: str | None, within: float | None
    ) -> Any:
        """A synchronous task's answer. Raises CallFailed, WorkerDied, TimedOut."""
        try:
            async with asyncio.timeout(within):
                if merge_key is None:
                    return await self._call(named, uid, payload)
                return await self._merged(named, uid, payload, merge_key)
        except TimeoutError:
            raise TimedOut(timeout_usec=int((within or 0) * 1e6)) from None

    async def _merged(self, named: Named, uid: int, payload: Any, key: str) -> Any:
        """The answer to the same call that is under way already, or else to this one."""
        whole = (named.file.name, uid, key)
        future = self._merging.get(whole)
        if future is None:
            future = asyncio.ensure_future(self._call(named, uid, payload))
            self._merging[whole] = future
            future.add_done_callback(lambda _: self._merging.pop(whole, None))
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(future)

    async def _call(self, named: Named, uid: int, payload: Any) -> Any:
        while True:
            self._want(named)
            await named.ready.wait()
            there = [one for one in named.instances.values() if one.link and not one.leaving]
            if not there:
                await asyncio.sleep(0)
                continue
            one = min(there, key=lambda one: len(one.calls))
            number, self._next_call = self._next_call, self._next_call + 1
            future = one.calls[number] = asyncio.get_running_loop().create_future()
            assert one.link is not None
            one.link.send({"call": [number, uid, payload]})
            answer: Awaitable[Any] = future
            with contextlib.suppress(_NotBegun):
                return await answer


def _why(task: Task) -> str:
    """How a process ended, in words."""
    if task.signal == ALARM:
        return "it hung for its watchdog time"
    if task.error:
        return task.error
    if task.signal:
        return f"killed by {task.signal}"
    if task.exit_status:
        return f"exit status {task.exit_status}"
    return "stopped" if task.result is None else task.result.value
