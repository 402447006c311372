# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tasks that have not ended, and every change of theirs: transition, commit, announce, in this order.

Why a start is done once, whoever is killed when. The attempt's number is committed (``starting``) before
the launcher is asked; the launcher makes the attempt's record exclusively, and refuses a second launch of
the same attempt. So

* killed before the commit: the caller got no id, or the task is still ``queued``: it is picked again;
* after the commit, before the launcher has the request: the same attempt is asked for again at start-up;
* after the launcher has it: the repeated request gets AlreadyLaunched, and the supervisor calls home;
* the launcher killed before the gate opened: the record says ``not-started``, the attempt is launched anew;
* the supervisor killed: its record has no end and nobody lives who could write one: ``lost``, or
  ``interrupted`` where the boot is another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bgtaskd.config import Config
from bgtaskd.daemon.dependencies import Dependencies
from bgtaskd.daemon.handover import handover_of
from bgtaskd.daemon.hooks import hook_of
from bgtaskd.daemon.launcher_link import (
    RETRY_SECONDS,
    LauncherError,
    LauncherGone,
    LauncherLink,
)
from bgtaskd.daemon.requests import Requests
from bgtaskd.daemon.scheduler import Limits, Scheduler, Wants
from bgtaskd.daemon.secrets import Secrets
from bgtaskd.daemon.templates import Templates
from bgtaskd.daemon.writer import Writer
from bgtaskd.model import (
    ENDED,
    ERROR_MAX,
    LIVE,
    RECORD,
    RESIDENT,
    TEMPLATE,
    WAITING,
    WORKER,
    CouldNotStart,
    DependencyFailed,
    Due,
    Event,
    Exited,
    IllegalTransition,
    Picked,
    PutBack,
    Reported,
    Result,
    RetryAsked,
    Started,
    State,
    StopAsked,
    StopReason,
    Task,
    TaskSpec,
    transition,
)
from bgtaskd.storage.interface import (
    Message,
    Operation,
    PutSpec,
    PutTask,
    RemoveTask,
    Storage,
    StorageError,
)

log = logging.getLogger(__name__)

PROGRESS_COMMIT_SECONDS = 1.0
HOLD_SECONDS = 120.0
FORGET_SECONDS = 0.05
Subscriber = Callable[[str, Task], None]


def now_usec() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


def wants_of(spec: TaskSpec) -> Wants:
    """What a task takes while it runs."""
    return Wants(spec.weight, tuple(sorted(spec.needs.items())))


class Engine:
    """Live tasks, the scheduler, and the way to the disk and the launcher."""

    def __init__(
        self,
        config: Config,
        storage: Storage,
        launcher: LauncherLink,
        secrets: Secrets,
        boot_id: str,
        requests: Requests | None = None,
    ) -> None:
        self.config = config
        self.storage = storage
        self.writer: Writer[Operation] = Writer(storage)
        self.launcher = launcher
        self.secrets = secrets
        self.requests = requests or Requests()
        self.boot_id = boot_id
        self.scheduler = Scheduler()
        self.live: dict[int, Task] = {}
        self.merge_keys: dict[tuple[int, str], int] = {}
        self.merging: dict[tuple[int, str | None], asyncio.Future[None]] = {}
        """Tasks with a merge key that are on their way to the disk."""
        self._removing: set[int] = set()
        self.next_id = storage.next_task_id()
        self.on_stop: Callable[[Task], None] = lambda task: None
        self.on_stuck: Callable[[int, int], None] = lambda task_id, attempt: None
        self.records: Counter[int] = Counter()
        """Records that have not ended, by owner."""
        self.waiting: Counter[int] = Counter()
        """Tasks that wait for a time or a turn, by owner."""
        self.users: Counter[int] = Counter()
        """Tasks that have not ended, by the user they run as."""
        self.message_seqs: dict[int, int] = {}
        self.signal_subscribers: list[Callable[[Task, Message], None]] = []
        self.config_subscribers: list[Callable[[Task, Any], None]] = []
        self.templates = Templates(self._begin_template, lambda one: self.job(self._let_go(one)))
        self._subscribers: list[Subscriber] = []
        self._timer: asyncio.TimerHandle | None = None
        self._held_until = 0.0
        self._dependencies = Dependencies(
            lambda number: self.live.get(number) or storage.get(number)
        )
        self._unsaved: set[int] = set()
        self._forgotten: list[list[int]] = []
        self._saver: asyncio.TimerHandle | None = None
        self._jobs: set[asyncio.Task[Any]] = set()
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Take a configuration over; queues' limits are sent to the launcher."""
        self.config = config
        queues = {name: Limits(one.slots, one.rate) for name, one in config.queues.items()}
        self.scheduler.configure(queues, config.resources)
        flags = self.storage.flags()
        for name, queue in config.queues.items():
            self.scheduler.pause(name, flags.get(f"paused:{name}", "") == "1" or queue.paused)

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Be told of every change ("added", "changed", "finished", "removed"); returns the way out."""
        self._subscribers.append(subscriber)
        return lambda: self._subscribers.remove(subscriber)

    def announce(self, kind: str, task: Task) -> None:
        """Tell the subscribers."""
        if task.spec.kind == TEMPLATE:
            self.templates.heard(task)
        for subscriber in tuple(self._subscribers):
            subscriber(kind, task)

    def job(self, work: Any) -> None:
        """Run a coroutine beside; its failure is logged, never lost."""
        task = asyncio.get_running_loop().create_task(work)
        self._jobs.add(task)
        task.add_done_callback(self._job_done)

    def _job_done(self, task: asyncio.Task[Any]) -> None:
        self._jobs.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("An inner job failed", exc_info=task.exception())

    def get(self, task_id: int) -> Task | None:
        """One task, live or ended. One that is being removed is gone: a retry would bring it back."""
        if task_id in self._removing:
            return None
        return self.live.get(task_id) or self.storage.get(task_id)

    # --- coming and going -----------------------------------------------------------------------

    def load(self, tasks: Iterable[Task]) -> None:
        """Take tasks over from the store, at start-up."""
        for task in tasks:
            self._index(task)
            if task.spec.kind == TEMPLATE:
                self.templates.heard(task)
        self.secrets.keep_only(self.live.keys())

    async def add(self, task: Task, *more: Operation) -> None:
        """Accept a task: on the disk when this returns. Raises StorageError; then there is no task.

        Where a slot is free, it is accepted as ``starting``: one commit, and one wait, less.
        """
        queue = task.spec.queue
        starts = (
            task.state is State.QUEUED
            and task.spec.kind != RECORD
            and not task.spec.after
            and not self._is_held()
            and (
                task.spec.kind in RESIDENT
                or self.scheduler.take_at_once(task.id, queue, now_usec(), wants_of(task.spec))
            )
        )
        if starts:
            task = transition(task, Picked(task.updated, self.boot_id))
        key = (task.owner_uid, task.spec.merge_key)
        done = self.writer.write([PutTask(task), *more], must=False)
        if key[1] is not None:
            self.merging[key] = done
        try:
            await done
        except StorageError:
            self.scheduler.forget(task.id, queue)
            raise
        finally:
            self.merging.pop(key, None)
        self._index(task)
        self.announce("added", task)
        if starts:
            self.job(self.launch(task))
        else:
            self.schedule()

    def adopt(self, task: Task) -> None:
        """Take over a task that runs but that the store does not know (its database was lost)."""
        self._index(task)
        self.next_id = max(self.next_id, task.id + 1)
        self.job(self._commit("added", task))

    async def remove(self, task: Task) -> None:
        """Forget an ended task. Raises StorageError."""
        await self._remove([task.id])
        self.announce("removed", task)
        self.job(self.launcher.insist("forget", attempts=[], outputs=[task.id]))

    async def clean(self, task_ids: Sequence[int]) -> int:
        """Forget old tasks, but those that somebody is retrying; how many. Raises StorageError."""
        ids = [one for one in task_ids if one not in self.live]
        if ids:
            await self._remove(ids)
            await self.launcher.insist("forget", attempts=[], outputs=ids)
        return len(ids)

    async def _remove(self, task_ids: Sequence[int]) -> None:
        self._removing.update(task_ids)
        try:
            await self.writer.write([RemoveTask(one) for one in task_ids], must=False)
        finally:
            self._removing.difference_update(task_ids)
        for one in task_ids:
            self.message_seqs.pop(one, None)

    def _index(self, task: Task) -> None:
        self.live[task.id] = task
        self.users[task.uid] += 1
        if task.spec.merge_key is not None:
            self.merge_keys[task.owner_uid, task.spec.merge_key] = task.id
        queue = task.spec.queue
        if task.spec.kind == RECORD:
            self.records[task.owner_uid] += 1
        elif task.state is State.DELAYED:
            self.waiting[task.owner_uid] += 1
            self.scheduler.delay(task.id, queue, task.not_before or 0)
        elif task.state is State.QUEUED:
            self.waiting[task.owner_uid] += 1
            if task.spec.kind in RESIDENT:
                self.job(self._start(task.id))
            else:
                self._queue_up(task)
        elif task.state in LIVE and task.spec.kind not in RESIDENT:
            self.scheduler.occupy(task.id, queue, wants_of(task.spec))

    def _queue_up(self, task: Task) -> None:
        """It waits for its turn; or for others to end first."""
        waits, failed = self._dependencies.look(task)
        if failed is not None:
            self.job(self._fail_dependent(task.id, failed))
        if waits or failed is not None:
            self.scheduler.hold(task.id, task.spec.queue)
        else:
            self.scheduler.add(task.id, task.spec.queue, task.spec.priority, wants_of(task.spec))

    async def _fail_dependent(self, task_id: int, failed: Task) -> None:
        if self._is_in(task_id, State.QUEUED):
            how = failed.state.value if failed.result is None else failed.result.value
            why = f"task {failed.id} ({failed.spec.name}) did not succeed first: {how}"
            await self.change(task_id, DependencyFailed(now_usec(), why[:ERROR_MAX]))

    def _unindex(self, task: Task) -> None:
        if self.live.pop(task.id, None) is not None:
            self.users[task.uid] -= 1
            if task.spec.kind == RECORD:
                self.records[task.owner_uid] -= 1
            elif task.state in WAITING:
                self.waiting[task.owner_uid] -= 1
        self.scheduler.forget(task.id, task.spec.queue)
        if (
            task.spec.merge_key is not None
            and self.merge_keys.get((task.owner_uid, task.spec.merge_key)) == task.id
        ):
            del self.merge_keys[task.owner_uid, task.spec.merge_key]

    # --- changes --------------------------------------------------------------------------------

    async def change(
        self, task_id: int, event: Event, *more: Operation, before: Task | None = None
    ) -> Task:
        """One event. Committed when this returns, announced after that. Raises IllegalTransition, KeyError.

        ``before``: for a task that has ended, and so is not among the live ones.
        """
        task = before if before is not None else self.live[task_id]
        after = transition(task, event)
        if after.state is not task.state or before is not None:
            self._unindex(task)
            if after.state not in ENDED:
                self._index(after)
        else:
            self.live[task_id] = after
        self._unsaved.discard(task_id)
        self.schedule()  # a slot that is free is used while the disk turns
        if after.state not in ENDED:
            await self._commit("changed", after, *more)
        elif task.state not in ENDED:
            await self._commit_end(after, *more)
        return after

    async def _commit_end(self, task: Task, *more: Operation) -> None:
        """The end, and what it sets off."""
        hook = hook_of(task, self.next_id, now_usec())
        if hook is not None:
            self.next_id += 1
            more = (*more, PutTask(hook))
        await self._commit("finished", task, *more)
        if task.spec.secrets:
            self.secrets.drop(task.id)
        if hook is not None:
            self._index(hook)
            self.announce("added", hook)
        for number in self._dependencies.released_by(task.id):
            if self._is_in(number, State.QUEUED):
                self._queue_up(self.live[number])
        self.schedule()

    async def retry(self, task: Task) -> None:
        """Run an ended task, perhaps with another spec than it had, again. Raises IllegalTransition."""
        await self.change(task.id, RetryAsked(now_usec()), PutSpec(task), before=task)

    async def edit(self, before: Task, after: Task) -> None:
        """Put another spec in a waiting task's place. Raises StorageError; KeyError where it waits no more."""
        if self.live.get(before.id) is not before:
            raise KeyError(before.id)
        self._unindex(before)
        self._index(after)
        self.scheduler.forget(after.id, after.spec.queue)  # it must not start meanwhile
        kept = after
        try:
            await self.writer.write([PutTask(after), PutSpec(after)], must=False)
        except StorageError:
            kept = before
            raise
        finally:
            if self.live.get(after.id) is after:
                self._unindex(after)
                self._index(kept)
        self.announce("changed", after)
        self.schedule()

    async def _commit(self, kind: str, task: Task, *more: Operation) -> None:
        await self.writer.write([PutTask(task), *more], must=True)
        self.announce(kind, task)

    def report(self, task_id: int, event: Reported | Started) -> Task:
        """What a supervisor could tell again: announced at once, on the disk within a second, or
        with the next change that must not be lost."""
        after = transition(self.live[task_id], event)
        self.live[task_id] = after
        self._unsaved.add(task_id)
        if self._saver is None:
            loop = asyncio.get_running_loop()
            self._saver = loop.call_later(PROGRESS_COMMIT_SECONDS, self._save_progress)
        self.announce("changed", after)
        return after

    async def save(self) -> None:
        """Write what has not been written yet, now: the store is as new as the memory."""
        if self._saver is not None:
            self._saver.cancel()
            await asyncio.shield(self._save_progress())

    def _save_progress(self) -> asyncio.Future[None]:
        self._saver = None
        operations = [PutTask(self.live[one]) for one in self._unsaved if one in self.live]
        self._unsaved.clear()
        return self.writer.write(operations, must=True)

    # --- the scheduler --------------------------------------------------------------------------

    def schedule(self) -> None:
        """Start what may start; set the clock for what is delayed."""
        for task_id in self.scheduler.due(now_usec()):
            self.job(self._due(task_id))
        if not self._is_held():
            for task_id in list(self.scheduler.take(now_usec())):
                self.job(self._start(task_id))
        due = self.scheduler.next_due(now_usec())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None:
            wait = min(max(0.0, (due - now_usec()) / 1e6), 3600.0)
            self._timer = asyncio.get_running_loop().call_later(wait, self.schedule)

    def _is_held(self) -> bool:
        return asyncio.get_running_loop().time() < self._held_until

    def hold(self) -> None:
        """The machine is going down: what is started now would only be interrupted too.

        Should it stay up after all, things go on in a while.
        """
        if not self._is_held():
            loop = asyncio.get_running_loop()
            log.warning("The machine is going down: no further task is started")
            self._held_until = loop.time() + HOLD_SECONDS
            loop.call_later(HOLD_SECONDS, self.schedule)

    async def _start(self, task_id: int) -> None:
        if self._is_in(task_id, State.QUEUED):  # nobody has stopped it meanwhile
            task = await self.change(task_id, Picked(now_usec(), self.boot_id))
            await self.launch(task)

    async def _due(self, task_id: int) -> None:
        if self._is_in(task_id, State.DELAYED):
            await self.change(task_id, Due(now_usec()))

    def _is_in(self, task_id: int, state: State) -> bool:
        task = self.live.get(task_id)
        return task is not None and task.state is state

    async def launch(self, task: Task) -> None:
        """Ask the launcher for the task's present attempt, until it answers or the attempt is known to run.

        Never once the attempt has left ``starting``: it may have ended, and its record, which would
        refuse a second launch, may be forgotten.
        """
        secrets = self.secrets.get(task.id) if task.spec.secrets else {}
        if secrets is None:
            why = "its secrets did not survive the reboot; start it anew"
            await self.change(task.id, CouldNotStart(now_usec(), why))
            return
        try:
            request = self._launch_request(task, secrets)
        except KeyError as app:
            why = f"app {app} is not in apps.d any more, or its file has a mistake: bgtaskctl check-config"
            await self.change(task.id, CouldNotStart(now_usec(), why))
            return
        try:
            while self._is_starting(task):
                if not self.launcher.connected.is_set():
                    await self.launcher.connected.wait()
                    continue
                try:
                    await self.launcher.ask("launch", **request)
                    return
                except LauncherGone:
                    await asyncio.sleep(RETRY_SECONDS[0])
        except LauncherError as error:
            if not self._is_starting(task):
                return
            if error.name == "AlreadyLaunched":
                self.on_stuck(task.id, task.attempt)
            else:
                await self.change(task.id, CouldNotStart(now_usec(), str(error)))

    def _is_starting(self, task: Task) -> bool:
        now = self.live.get(task.id)
        return now is not None and (now.state, now.attempt) == (State.STARTING, task.attempt)

    def _launch_request(self, task: Task, secrets: Mapping[str, str]) -> dict[str, Any]:
        spec = task.spec
        return {
            "id": task.id,
            "attempt": task.attempt,
            "name": spec.name,
            "kind": spec.kind,
            "queue": spec.queue,
            "uid": task.uid,
            "user": task.user,
            "owner_uid": task.owner_uid,
            "argv": list(spec.argv if spec.http is None else self.requests.argv),
            "env": dict(spec.env),
            "stdin": spec.stdin,
            "worker": spec.settings["name"] if spec.kind == WORKER else None,
            "template": self.templates.for_task(
                task if spec.http is None else self.requests.forked(task),
                self.config.template_idle_usec,
                self.config.templates_per_user,
                now_usec(),
            ),
            "handover": handover_of(task, secrets, self.requests),
            "secrets": {} if spec.kind != "command" else dict(secrets),
            "cwd": spec.cwd,
            "properties": dict(spec.properties),
            "timeout_usec": spec.timeout_usec,
            "stall_timeout_usec": spec.stall_timeout_usec,
            "stop_timeout_usec": self.stop_timeout(task),
            "output_to": self.config.output_to,
            "output_cap": self.config.output_cap,
            "journal_burst": self.config.journal_burst,
        }

    def _begin_template(self, like: Task, spec: TaskSpec) -> int:
        task_id, self.next_id = self.next_id, self.next_id + 1
        now = now_usec()
        who = (like.uid, like.user, like.owner_uid)
        task = Task(task_id, spec, *who, State.QUEUED, created=now, updated=now)
        self.job(self._add_template(task))
        return task_id

    async def _add_template(self, task: Task) -> None:
        try:
            await self.add(task)
        except StorageError as error:
            self.templates.forget(task)
            log.warning("No process to fork tasks from: %s", error)

    async def _let_go(self, task_id: int) -> None:
        with contextlib.suppress(KeyError, IllegalTransition):
            await self.stop(task_id, StopReason.USER)

    def stop_timeout(self, task: Task) -> int:
        """Microseconds between SIGTERM and SIGKILL."""
        given = task.spec.stop_timeout_usec
        return self.config.stop_timeout_usec if given is None else given

    async def put_back(self, task: Task) -> None:
        """The attempt never began: it is launched anew, when its turn comes."""
        await self.change(task.id, PutBack(now_usec()))

    # --- stopping -------------------------------------------------------------------------------

    async def stop(self, task_id: int, reason: StopReason, kill: bool = False) -> Task:
        """End a task: the wish is on the disk first, then systemd is told. Raises IllegalTransition."""
        before = self.live[task_id]
        task = await self.change(task_id, StopAsked(now_usec(), reason))
        if before.state in (State.RUNNING, State.PAUSED):
            self.on_stop(task)
            self.job(self._stop_unit(task, kill))
        return task

    async def _stop_unit(self, task: Task, kill: bool) -> None:
        if task.state is State.PAUSED:
            # systemd 252 thaws what it stops by itself; 257 refuses to stop what is frozen.
            await self.tell_unit("thaw", task)
        if kill:
            await self.tell_unit("kill", task, signal=9, whom="all")
        else:
            await self.tell_unit("stop", task, stop_timeout_usec=self.stop_timeout(task))

    async def tell_unit(self, op: str, task: Task, **parameters: Any) -> None:
        """An operation on the task's unit. One that is gone already needs no stopping."""
        try:
            await self.launcher.insist(op, id=task.id, attempt=task.attempt, **parameters)
        except LauncherError as error:
            if error.name != "NoSuchUnit":
                log.warning("Task %d: the launcher could not %s it: %s", task.id, op, error)

    async def ended(
        self, task_id: int, attempt: int, exited: Exited, last: Reported | None
    ) -> None:
        """The attempt's end: committed, then its record is forgotten."""
        task = self.live.get(task_id)
        if task is not None and task.attempt == attempt and task.state in LIVE:
            if last is not None:
                self.live[task_id] = transition(task, last)
            await self.change(task_id, exited)
        self.forget(task_id, attempt)

    def forget(self, task_id: int, attempt: int) -> None:
        """Have an attempt's record removed, now that its end is on the disk: soon, and many at a time."""
        if not self._forgotten:
            asyncio.get_running_loop().call_later(FORGET_SECONDS, self._forget)
        self._forgotten.append([task_id, attempt])

    def _forget(self) -> None:
        attempts, self._forgotten = self._forgotten, []
        self.job(self.launcher.insist("forget", attempts=attempts, outputs=[]))

    async def vanished(self, task: Task, other_boot: bool) -> None:
        """The attempt's supervisor is gone without a word: what may be left of the task is stopped."""
        result = Result.INTERRUPTED if other_boot else Result.LOST
        if not other_boot:
            log.warning("Task %d: its supervisor was killed; nobody can know how it ended", task.id)
            self.job(self.tell_unit("kill", task, signal=9, whom="all"))
        await self.ended(task.id, task.attempt, Exited(now_usec(), result), None)

    def queue_limits(self) -> Sequence[tuple[str, dict[str, str]]]:
        """The queues' resource properties, for their slices."""
        return [
            (name, dict(one.properties))
            for name, one in self.config.queues.items()
            if one.properties
        ]
