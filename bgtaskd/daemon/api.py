# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every operation, who may call it, and its handler: one table, for all doors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

import bgtaskd
from bgtaskd.daemon import byhand, changes, retention, schedules, streams, worker_api
from bgtaskd.daemon.engine import Engine, now_usec
from bgtaskd.daemon.launcher_link import LauncherError
from bgtaskd.daemon.payloads import Payloads
from bgtaskd.daemon.policy import Policy
from bgtaskd.daemon.spec import KINDS, check_failure, plain_json, plain_text, read_spec
from bgtaskd.daemon.stats import stats_by_name
from bgtaskd.daemon.supervisors import Supervisors
from bgtaskd.daemon.workers import Workers
from bgtaskd.errors import (
    InvalidSpec,
    LauncherFailed,
    NoSuchQueue,
    NoSuchTask,
    NotPossible,
    PermissionDenied,
    StorageFailed,
)
from bgtaskd.model import (
    ENDED,
    NAME_MAX,
    RECORD,
    WAITING,
    Exited,
    IllegalTransition,
    Reported,
    Result,
    State,
    StopReason,
    Task,
    TaskSpec,
    canonical_json,
)
from bgtaskd.protocol.peer import Peer
from bgtaskd.protocol.server import Call, Handler, Reply, Streamed
from bgtaskd.storage.interface import (
    ClearMessages,
    Message,
    PutConfig,
    PutFlag,
    PutMessage,
    Query,
    StorageError,
)
from bgtaskd.storage.interface import Operation as StorageOperation
from bgtaskd.units import HTTP

LIST_MAX: Final = 1000
KINDS_MAX: Final = 100
SEND_MAX: Final = 64 * 1024
STATS_MAX: Final = 1000
LIST_WEIGHT: Final = 512 * 1024
"""Characters of JSON in a reply's settings and values; escaped, they may be six times as many bytes."""
# What a task may ask of itself, whoever it runs as. All of them pass only whoever may see the task.
FOR_TASKS: Final = frozenset(
    "Get Watch Wait Output Signal Signals ClearSignals Report GetConfig".split()
)
# What makes something run. A task's own user (anonymous, say) may steer it, but have nothing started.
FOR_MEMBERS: Final = frozenset(
    "Start Edit Retry Send AddSchedule EnableSchedule FireSchedule".split()
)
MESSAGES_MAX: Final = 10_000


class Access(Enum):
    """Who passes. What belongs to a task is asked of the policy with the task in hand."""

    ANYONE = "whoever may connect"
    SEE = "the task's owner, the user it runs as, the app it requests, administrators"
    STEER = "the task's owner, the app it requests, administrators"
    ADMIN = "administrators"


@dataclass(frozen=True, slots=True)
class Operation:
    """A row of the table."""

    handler: Callable[[Api, Call], Awaitable[Reply] | AsyncGenerator[Streamed, None]]
    access: Access


class Api:
    """The operations' common ground."""

    def __init__(
        self,
        engine: Engine,
        supervisors: Supervisors,
        policy: Policy,
        launcher_mode: str,
        payloads: Payloads,
        workers: Workers,
    ) -> None:
        self.engine = engine
        self.supervisors = supervisors
        self.policy = policy
        self.launcher_mode = launcher_mode
        self.payloads = payloads
        self.workers = workers
        self.tasks_dir = ""
        self.reload: Callable[[], Awaitable[list[str]]]
        """The daemon's: takes its files over, and tells their mistakes."""
        self.since = now_usec()
        self.schedules = schedules.Schedules(self)

    def is_self(self, peer: Peer) -> bool:
        """Whether it is one of our own units that calls, as timers do."""
        return peer.uid in (0, os.geteuid())

    def handlers(
        self,
    ) -> dict[str, Callable[[Call], Awaitable[Reply] | AsyncGenerator[Streamed, None]]]:
        """The table, bound to this daemon."""
        return {name: self._bind(name, one) for name, one in OPERATIONS.items()}

    def handlers_for_tasks(self) -> dict[str, Handler]:
        """What may be asked on the socket that any task may connect to, by whoever has one."""
        handlers = self.handlers()

        def handle(call: Call) -> Awaitable[Reply] | AsyncGenerator[Streamed, None]:
            name = call.method.rpartition(".")[2]
            if name not in FOR_TASKS:
                raise PermissionDenied(
                    reason=f"{name} is for the group bgtask; here tasks read and report of themselves only"
                )
            if not self.engine.users[call.peer.uid] and not self.policy.apps_of(call.peer):
                raise PermissionDenied(reason="here only tasks are served, and none runs as you")
            return handlers[name](call)

        return dict.fromkeys(OPERATIONS, handle)

    def _bind(
        self, name: str, one: Operation
    ) -> Callable[[Call], Awaitable[Reply] | AsyncGenerator[Streamed, None]]:
        def handle(call: Call) -> Awaitable[Reply] | AsyncGenerator[Streamed, None]:
            if one.access is Access.ADMIN and not self.policy.is_admin(call.peer):
                raise PermissionDenied(
                    reason=f"{name} is for root and members of the administrators' group"
                )
            for field, value in call.parameters.items():
                plain_text(field, value)
            result = one.handler(self, call)
            return result if isinstance(result, AsyncGenerator) else self._guard(result)

        return handle

    async def _guard(self, result: Awaitable[Reply]) -> Reply:
        """The inner errors that any operation may meet, in the callers' words."""
        try:
            return await result
        except IllegalTransition as error:
            state = error.task.public_state().value
            raise NotPossible(id=error.task.id, state=state, reason=error.event.what) from None
        except StorageError as error:
            raise StorageFailed(reason=str(error)) from None
        except LauncherError as error:
            raise LauncherFailed(reason=str(error)) from None

    async def call(self, peer: Peer, operation: str, parameters: Mapping[str, Any]) -> Reply:
        """The same operations for another door (D-Bus): the first reply, where there are several.

        Who may connect to the control socket is the file system's business; to that door everybody may come.
        """
        if operation in FOR_MEMBERS and not self.policy.may_start(peer):
            raise PermissionDenied(reason=f"{operation} is for the group bgtask")
        result = self.handlers()[operation](Call(operation, parameters, peer, False))
        if not isinstance(result, AsyncGenerator):
            return await result
        async with contextlib.aclosing(result):
            return (await anext(result))[0]

    def task(self, call: Call, access: Access, task_id: int | None = None) -> Task:
        """The task a call is about. Raises NoSuchTask, PermissionDenied."""
        number = call.parameters["id"] if task_id is None else task_id
        task = self.engine.get(number) if 0 < number < 1 << 62 else None
        if task is None:
            raise NoSuchTask(id=number)
        passes = self.policy.may_see if access is Access.SEE else self.policy.may_steer
        if not passes(call.peer, task):
            raise PermissionDenied(reason=f"task {number} belongs to another user")
        return task

    def live(self, task: Task, why: str) -> Task:
        """The task, if it has not ended. Raises NotPossible."""
        if task.id not in self.engine.live:
            raise NotPossible(id=task.id, state=task.public_state().value, reason=why)
        return self.engine.live[task.id]

    def shown(self, task: Task) -> dict[str, Any]:
        """The task as the doors show it, with what its cgroup says at this moment."""
        if task.state in (State.RUNNING, State.PAUSED) and task.unit:
            task = replace(task, **streams.usage_now(task))
        return task.to_json()


async def start(api: Api, call: Call) -> Reply:
    """Accept a task."""
    engine, config = api.engine, api.engine.config
    given: Mapping[str, Any] = call.parameters["spec"]
    secrets: Mapping[str, str] = given.get("secrets") or {}
    if given.get("kind") == HTTP:
        given, secrets = engine.requests.prepare(api.policy, call.peer, given)
        user = api.policy.http_user()
    else:
        user = api.policy.run_as(call.peer, given.get("user"))
    spec = read_spec(given, config, user.pw_name)
    if spec.merge_key is not None:
        pending = engine.merging.get((call.peer.uid, spec.merge_key))
        if pending is not None:
            await asyncio.wait([pending])  # no id is given out before it is on the disk
        known = engine.merge_keys.get((call.peer.uid, spec.merge_key))
        if known is not None:
            return {"id": known, "merged": True}
    changes.make_room(api, call.peer.uid, spec)
    changes.check_after(api, call.peer, spec)
    task = new_task(engine, call.peer.uid, user, spec)
    await accept(api, task, secrets)
    return {"id": task.id, "merged": False}


def new_task(engine: Engine, owner_uid: int, user: pwd.struct_passwd, spec: TaskSpec) -> Task:
    """A task with an id of its own, not yet accepted."""
    now = now_usec()
    task_id, engine.next_id = engine.next_id, engine.next_id + 1
    return Task(
        id=task_id,
        spec=spec,
        uid=user.pw_uid,
        user=user.pw_name,
        owner_uid=owner_uid,
        state=State.DELAYED if spec.delay_usec else State.QUEUED,
        created=now,
        updated=now,
        not_before=now + spec.delay_usec if spec.delay_usec else None,
    )


async def accept(api: Api, task: Task, secrets: Mapping[str, str], *more: StorageOperation) -> None:
    """Put it on the disk; its secrets are there before it is. Raises StorageFailed, StorageError."""
    engine = api.engine
    if engine.writer.failure is not None:
        raise StorageFailed(reason=str(engine.writer.failure))
    if not secrets:
        await engine.add(task, *more)
        return
    try:
        engine.secrets.put(task.id, secrets)
    except OSError as error:
        raise StorageFailed(reason=f"the secrets cannot be kept: {error.strerror}") from None
    try:
        await engine.add(task, *more)
    except BaseException:
        engine.secrets.drop(task.id)
        raise


async def get(api: Api, call: Call) -> Reply:
    """One task."""
    return {"task": api.shown(api.task(call, Access.SEE))}


async def list_(api: Api, call: Call) -> AsyncGenerator[Streamed, None]:
    """Tasks, newest first; the live ones as they are in memory."""
    given = call.parameters
    limit = given.get("limit") or 100
    if not 1 <= limit <= LIST_MAX * 1000:
        raise InvalidSpec(field="limit", reason=f"must be from 1 to {LIST_MAX * 1000}")
    before = given.get("before")
    states = given.get("states")
    wanted = None if states is None else _inner_states(states)
    kinds = KINDS if given.get("kinds") is None else given["kinds"][:KINDS_MAX]
    owner = None if api.policy.is_admin(call.peer) else call.peer.uid
    if wanted is not None and api.engine.writer.failure is None:
        await api.engine.save()
    while True:
        query = Query(
            wanted,
            kinds,
            given.get("queue"),
            given.get("name"),
            given.get("group"),
            given.get("user"),
            owner,
            before,
            min(limit, LIST_MAX),
            api.policy.apps_of(call.peer),
        )
        rows = [api.engine.live.get(task.id, task) for task in api.engine.storage.list(query)]
        page = _page([api.shown(task) for task in rows])
        limit -= len(page)
        there_are_more = len(page) < len(rows) or len(rows) == query.limit
        more = call.more and limit > 0 and there_are_more
        yield {"tasks": page}, more
        if not more:
            return
        before = page[-1]["id"]


def _page(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """So many of the tasks, as List has them, as fit into one reply; one at least."""
    weight = 0
    for number, task in enumerate(tasks):
        task["argv"] = []
        if task["http"]:
            task["http"] = {**task["http"], "body": None}
        if task["failure"]:
            task["failure"] = {**task["failure"], "traceback": ""}
        large = [task[name] for name in ("settings", "value") if task[name] is not None]
        weight += sum(len(canonical_json(one)) for one in large)
        if number and weight > LIST_WEIGHT:
            return tasks[:number]
    return tasks


def _inner_states(names: list[str]) -> list[State]:
    states = [State(name) for name in names]
    return [*states, State.STARTING] if State.QUEUED in states else states


async def signal_(api: Api, call: Call) -> Reply:
    """Leave a message in a task's mailbox."""
    task = api.live(api.task(call, Access.SEE), "only a task that has not ended takes messages")
    name, payload = call.parameters["name"], call.parameters.get("payload")
    if not 1 <= len(name) <= NAME_MAX:
        raise InvalidSpec(field="name", reason=f"must have 1 to {NAME_MAX} characters")
    plain_json("payload", payload)
    if len(api.engine.storage.messages(task.id)) >= MESSAGES_MAX:
        raise InvalidSpec(field="id", reason=f"{MESSAGES_MAX} messages wait in its mailbox already")
    seqs = api.engine.message_seqs
    seq = max(seqs.get(task.id, 0), api.engine.storage.last_message_seq(task.id)) + 1
    seqs[task.id] = seq
    message = Message(task.id, seq, name, payload, now_usec())
    await api.engine.writer.write([PutMessage(message)], must=False)
    for subscriber in tuple(api.engine.signal_subscribers):
        subscriber(task, message)
    return {"seq": seq}


async def clear_signals(api: Api, call: Call) -> Reply:
    """Clear messages."""
    task = api.task(call, Access.SEE)
    given = call.parameters.get("seqs")
    there = {one.seq for one in api.engine.storage.messages(task.id)}
    cleared = there if given is None else there & set(given)
    await api.engine.writer.write([ClearMessages(task.id, tuple(sorted(cleared)))], must=False)
    return {"cleared": len(cleared)}


async def report(api: Api, call: Call) -> Reply:
    """Progress, told from outside the notify socket."""
    task = api.live(api.task(call, Access.SEE), "only a running task makes progress")
    given = {
        key: value for key, value in call.parameters.items() if key != "id" and value is not None
    }
    attempt = given.pop("attempt", task.attempt)
    if attempt != task.attempt:
        raise NotPossible(
            id=task.id,
            state=task.public_state().value,
            reason=f"this is attempt {task.attempt}, and attempt {attempt} is over",
        )
    for field in ("finished", "total"):
        if given.get(field, 0) < 0:
            raise InvalidSpec(field=field, reason="must not be negative")
    if len(given.get("message", "")) > 4096:
        raise InvalidSpec(field="message", reason="must have at most 4096 characters")
    plain_json("value", given.get("value"))
    check_failure(given.get("failure", {}))
    api.engine.report(task.id, Reported(now_usec(), **given))
    api.supervisors.feed(task, {key: value for key, value in given.items() if key != "rewind"})
    if "value" in given or "failure" in given:
        await (
            api.engine.save()
        )  # what a task came to is never lost; how far it got may be, for a second
    return {}


async def set_config(api: Api, call: Call) -> Reply:
    """Replace a task's configuration."""
    task = api.live(api.task(call, Access.STEER), "only a task that has not ended has use for it")
    plain_json("config", call.parameters["config"])
    await api.engine.writer.write([PutConfig(task.id, call.parameters["config"])], must=False)
    for subscriber in tuple(api.engine.config_subscribers):
        subscriber(task, call.parameters["config"])
    return {}


async def pause(api: Api, call: Call) -> Reply:
    """Freeze a task."""
    return await _freeze(api, call, "freeze", State.RUNNING, "only a running task can be paused")


async def resume(api: Api, call: Call) -> Reply:
    """Thaw a task."""
    return await _freeze(api, call, "thaw", State.PAUSED, "only a paused task can be resumed")


async def _freeze(api: Api, call: Call, op: str, state: State, why: str) -> Reply:
    task = api.task(call, Access.STEER)
    byhand.refuse_record(task)
    if task.state is not state:
        raise NotPossible(id=task.id, state=task.public_state().value, reason=why)
    changed = streams.Changes(api.engine, lambda one: one.id == task.id)
    try:
        await api.engine.launcher.insist(op, id=task.id, attempt=task.attempt)
        if api.launcher_mode == "process":
            api.supervisors.told_frozen(task, op == "freeze")
        if api.engine.live.get(task.id, task).state is state:
            await changed.next(within=5.0)
    finally:
        changed.close()
    return {}


async def stop(api: Api, call: Call) -> Reply:
    """End a task in good order."""
    task = api.live(api.task(call, Access.STEER), "it has ended already")
    if task.spec.kind == RECORD:
        await api.engine.change(task.id, Exited(now_usec(), Result.STOPPED))
    else:
        await api.engine.stop(task.id, StopReason.USER)
    return {}


async def kill(api: Api, call: Call) -> Reply:
    """Send a Unix signal."""
    task = api.live(api.task(call, Access.STEER), "it has ended already")
    byhand.refuse_record(task)
    number = _signal_number(call.parameters.get("signal") or "SIGKILL")
    whom = call.parameters.get("whom") or "all"
    if whom not in ("all", "main"):
        raise InvalidSpec(field="whom", reason="must be all or main")
    if task.state in WAITING:
        raise NotPossible(
            id=task.id,
            state=task.public_state().value,
            reason="it does not run yet; stop takes it off",
        )
    if number == signal.SIGKILL and whom == "all":
        await api.engine.stop(task.id, StopReason.USER, kill=True)
    else:
        await api.engine.launcher.insist(
            "kill", id=task.id, attempt=task.attempt, signal=number, whom=whom
        )
    return {}


def _signal_number(text: str) -> int:
    if text.isdigit() and 1 <= int(text) < signal.NSIG:
        return int(text)
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    try:
        return signal.Signals[name].value
    except KeyError:
        raise InvalidSpec(field="signal", reason=f"there is no signal {text[:32]!r}") from None


async def send(api: Api, call: Call) -> Reply:
    """Text for a running task's standard input."""
    task = api.live(api.task(call, Access.STEER), "only a running task can be sent text")
    text = call.parameters["text"]
    if len(text.encode()) > SEND_MAX:
        raise InvalidSpec(field="text", reason=f"must be at most {SEND_MAX} bytes at a time")
    refused = NotPossible(
        id=task.id,
        state=task.public_state().value,
        reason="its standard input is no pipe (it was not started with stdin), is closed, or full",
    )
    if not task.spec.stdin:
        raise refused
    if not await api.supervisors.send_text(task, text, call.parameters.get("eof") or False):
        raise refused
    return {}


async def stats(api: Api, call: Call) -> Reply:
    """What came of the last tasks, by name."""
    owner = None if api.policy.is_admin(call.peer) else call.peer.uid
    found = api.engine.storage.lately_ended(owner, call.parameters.get("name"))
    return {"names": stats_by_name(found)[:STATS_MAX]}


async def clean(api: Api, call: Call) -> Reply:
    """Forget now what is old enough."""
    return {"removed": await retention.clean(api.engine)}


async def remove(api: Api, call: Call) -> Reply:
    """Forget an ended task."""
    task = api.task(call, Access.STEER)
    if task.state not in ENDED:
        raise NotPossible(
            id=task.id, state=task.public_state().value, reason="only an ended task can be removed"
        )
    await api.engine.remove(task)
    return {}


async def queues(api: Api, call: Call) -> Reply:
    """All queues."""
    out = []
    for name, one in api.engine.config.queues.items():
        running, waiting, delayed = api.engine.scheduler.counts(name)
        paused = api.engine.scheduler.is_paused(name)
        out.append(
            {
                "name": name,
                "slots": one.slots,
                "running": running,
                "waiting": waiting,
                "delayed": delayed,
                "paused": paused,
            }
        )
    return {"queues": out}


async def pause_queue(api: Api, call: Call) -> Reply:
    """Start no further task of a queue."""
    return await _pause_queue(api, call, True)


async def resume_queue(api: Api, call: Call) -> Reply:
    """Start tasks of a queue again."""
    return await _pause_queue(api, call, False)


async def _pause_queue(api: Api, call: Call, paused: bool) -> Reply:
    name = call.parameters["queue"]
    if name not in api.engine.config.queues:
        raise NoSuchQueue(queue=name[:NAME_MAX])
    await api.engine.writer.write([PutFlag(f"paused:{name}", "1" if paused else "0")], must=False)
    api.engine.scheduler.pause(name, paused)
    api.engine.schedule()
    return {}


async def reload(api: Api, call: Call) -> Reply:
    """Take the configuration files over."""
    return {"mistakes": await api.reload()}


async def status(api: Api, call: Call) -> Reply:
    """How the daemon is."""
    counts: dict[str, int] = {}
    for state, number in api.engine.storage.counts().items():
        name = "queued" if state is State.STARTING else state.value
        counts[name] = counts.get(name, 0) + number
    return {
        "version": bgtaskd.__version__,
        "since": api.since,
        "launcher": api.launcher_mode,
        "tasks": counts,
        "tasks_in_memory": len(api.engine.live),
    }


OPERATIONS: Final[Mapping[str, Operation]] = {
    "Start": Operation(start, Access.ANYONE),
    "Get": Operation(get, Access.SEE),
    "List": Operation(list_, Access.ANYONE),
    "Watch": Operation(streams.watch, Access.SEE),
    "Wait": Operation(streams.wait, Access.SEE),
    "Output": Operation(streams.output, Access.SEE),
    "Signal": Operation(signal_, Access.SEE),
    "Signals": Operation(streams.signals, Access.SEE),
    "ClearSignals": Operation(clear_signals, Access.SEE),
    "Report": Operation(report, Access.SEE),
    "Record": Operation(byhand.record, Access.STEER),
    "SetConfig": Operation(set_config, Access.STEER),
    "GetConfig": Operation(streams.config, Access.SEE),
    "Pause": Operation(pause, Access.STEER),
    "Resume": Operation(resume, Access.STEER),
    "Stop": Operation(stop, Access.STEER),
    "Kill": Operation(kill, Access.STEER),
    "Retry": Operation(changes.retry, Access.STEER),
    "Edit": Operation(changes.edit, Access.STEER),
    "Send": Operation(send, Access.STEER),
    "Stats": Operation(stats, Access.ANYONE),
    "Clean": Operation(clean, Access.ADMIN),
    "Schedules": Operation(schedules.schedules, Access.ANYONE),
    "AddSchedule": Operation(schedules.add_schedule, Access.ANYONE),
    "RemoveSchedule": Operation(schedules.remove_schedule, Access.STEER),
    "EnableSchedule": Operation(schedules.enable_schedule, Access.STEER),
    "FireSchedule": Operation(schedules.fire_schedule, Access.STEER),
    "Remove": Operation(remove, Access.STEER),
    "Queues": Operation(queues, Access.ANYONE),
    "PauseQueue": Operation(pause_queue, Access.ADMIN),
    "ResumeQueue": Operation(resume_queue, Access.ADMIN),
    "Reload": Operation(reload, Access.ADMIN),
    "Status": Operation(status, Access.ANYONE),
    "Call": Operation(worker_api.call, Access.ANYONE),
    "Submit": Operation(worker_api.submit, Access.ANYONE),
    "Workers": Operation(worker_api.workers, Access.ANYONE),
    "AsidePayloads": Operation(worker_api.aside, Access.ADMIN),
    "RetryPayloads": Operation(worker_api.forgive, Access.ADMIN),
    "DropPayloads": Operation(worker_api.drop, Access.ADMIN),
}
