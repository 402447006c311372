# SPDX-License-Identifier: LGPL-2.1-or-later
"""The supervisors' calls home, and what becomes of attempts whose supervisor does not call."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

from bgtaskd.daemon.engine import Engine, now_usec
from bgtaskd.daemon.hearsay import BadHearsay, check_exit, check_message
from bgtaskd.daemon.launcher_link import LauncherError
from bgtaskd.model import (
    LIVE,
    RECORD,
    Exited,
    Frozen,
    IllegalTransition,
    Reported,
    Result,
    Started,
    State,
    StopReason,
    Task,
    TaskSpec,
    Thawed,
)
from bgtaskd.protocol.peer import peer_of

log = logging.getLogger(__name__)

GRACE_SECONDS: Final = 1.0
BUFFER_MAX: Final = 2 << 20


class Supervisors:
    """All connections of supervisors, by attempt."""

    def __init__(self, engine: Engine, exits: str, uid: int) -> None:
        self.engine = engine
        self._exits = exits
        self._uid = uid
        self.connections: dict[tuple[int, int], Call] = {}
        self.output_waiters: dict[int, set[asyncio.Event]] = {}
        self.on_output: Callable[[int], None] = lambda task_id: None
        engine.on_stuck = self.look_later
        engine.on_stop = self.told_to_stop

    async def serve(self, sock: socket.socket) -> None:
        """Begin to take calls."""
        await asyncio.get_running_loop().create_unix_server(
            lambda: Call(self, self._uid), sock=sock, backlog=4096
        )

    def feed(self, task: Task, progress: Mapping[str, Any]) -> None:
        """A report came by another way: the supervisor's stall clock starts anew."""
        call = self.connections.get((task.id, task.attempt))
        if call is not None:
            call.send({"fed": True, "progress": dict(progress)})

    def told_to_stop(self, task: Task) -> None:
        """The end that is coming was asked for: the supervisor need not wonder why."""
        call = self.connections.get((task.id, task.attempt))
        if call is not None:
            call.send({"stopping": True})

    def told_frozen(self, task: Task, frozen: bool) -> None:
        """Without scopes a supervisor does not see that its task was stopped, or goes on: it is told."""
        call = self.connections.get((task.id, task.attempt))
        if call is not None:
            call.send({"frozen": frozen})

    async def send_text(self, task: Task, text: str, eof: bool) -> bool:
        """Text for the task's standard input; whether it was taken."""
        call = self.connections.get((task.id, task.attempt))
        if call is None:
            return False
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        call.text_answers.append(answer)
        call.send({"stdin": text, "eof": eof})
        return await answer

    # --- what supervisors say -------------------------------------------------------------------

    async def hello(self, call: Call, said: Mapping[str, Any]) -> None:
        """An attempt's supervisor is there: it has just started it, or the daemon has."""
        engine, key = self.engine, (said["id"], said["attempt"])
        self.connections[key] = call
        call.key = key
        task = engine.live.get(key[0])
        if task is None and engine.storage.get(key[0]) is None:
            task = _from_card(said)
            log.warning(
                "Task %d (%s) runs but was not in the database; it is taken over",
                task.id,
                task.spec.name,
            )
            engine.adopt(task)
        if task is None or task.attempt != key[1]:
            return
        if said.get("started"):
            await self.heard(key, {"started": said["started"], "pid": said["pid"]})
        call.pid = said["pid"]
        if said.get("progress"):
            await self.heard(key, {"report": said["progress"]})
        await self.heard(key, {"frozen": bool(said.get("frozen"))})
        for name in ("stalled", "timed_out", "left_over"):
            if said.get(name):
                await self.heard(key, {name: True})
        self.output_grew(key[0])  # it had nobody to tell while it was not connected
        task = engine.live.get(key[0])
        if task is not None and task.stop_reason is not None:
            await engine.tell_unit("stop", task, stop_timeout_usec=engine.stop_timeout(task))

    async def heard(self, key: tuple[int, int], said: Mapping[str, Any]) -> None:
        """Anything else a supervisor says."""
        engine = self.engine
        task = engine.live.get(key[0])
        if task is None or task.attempt != key[1] or task.state not in LIVE:
            if "exited" in said:
                engine.forget(*key)
            return
        try:
            if "started" in said and task.state is State.STARTING:
                call = self.connections.get(key)
                pid = said.get("pid") or (call.pid if call else 0)
                engine.report(task.id, Started(said["started"], pid))
                asked = engine.live.get(task.id)
                if asked is not None and asked.stop_reason is not None:
                    await engine.tell_unit(
                        "stop", asked, stop_timeout_usec=engine.stop_timeout(asked)
                    )
            elif "report" in said:
                engine.report(task.id, _reported(said["report"]))
            elif "output_bytes" in said:
                self.output_grew(task.id)
            elif "frozen" in said:
                await self._frozen(task, bool(said["frozen"]))
            elif "stalled" in said:
                await engine.stop(task.id, StopReason.WATCHDOG)
            elif "timed_out" in said:
                await engine.stop(task.id, StopReason.TIMEOUT)
            elif "left_over" in said:
                await engine.tell_unit("stop", task, stop_timeout_usec=engine.stop_timeout(task))
            elif "exited" in said:
                if said["exited"]["result"] == Result.INTERRUPTED.value:
                    engine.hold()
                await self._exited(task, said["exited"])
        except IllegalTransition as error:
            log.debug("Out of order: %s", error)

    async def _frozen(self, task: Task, frozen: bool) -> None:
        if frozen and task.state is State.RUNNING:
            await self.engine.change(task.id, Frozen(now_usec()))
        elif not frozen and task.state is State.PAUSED:
            await self.engine.change(task.id, Thawed(now_usec()))

    async def _exited(self, task: Task, exit_: Mapping[str, Any]) -> None:
        if exit_["result"] == "not-started":
            await self.engine.put_back(task)
            return
        progress = exit_.get("progress") or None
        last = None if progress is None else _reported(progress)
        await self.engine.ended(task.id, task.attempt, exited_of(exit_), last)
        self.output_grew(task.id)

    def output_grew(self, task_id: int) -> None:
        """Wake those who follow the output."""
        for event in self.output_waiters.get(task_id, ()):
            event.set()
        self.on_output(task_id)

    # --- what they do not say -------------------------------------------------------------------

    def hung_up(self, call: Call) -> None:
        """A connection ended: the supervisor has gone, or was killed."""
        if call.key is None or self.connections.get(call.key) is not call:
            return
        del self.connections[call.key]
        self.look_later(*call.key, delay=0.05)

    def look_later(self, task_id: int, attempt: int, delay: float = GRACE_SECONDS) -> None:
        """See in a while what has become of an attempt."""
        asyncio.get_running_loop().call_later(
            delay, lambda: self.engine.job(self.look(task_id, attempt))
        )

    async def look(self, task_id: int, attempt: int) -> None:
        """What has become of an attempt whose supervisor is not connected."""
        task = self.engine.live.get(task_id)
        if (
            task is None
            or task.attempt != attempt
            or task.state not in LIVE
            or (task_id, attempt) in self.connections
        ):
            return
        record = self.record(task_id, attempt)
        if record and "exit" in record:
            await self._exited(task, record["exit"])
        elif task.boot_id != self.engine.boot_id:
            await self.engine.vanished(task, other_boot=True)
        elif await self._is_alive(task_id, attempt):
            self.look_later(task_id, attempt)
        elif (task_id, attempt) not in self.connections and self.engine.live.get(task_id) is task:
            record = self.record(task_id, attempt)  # it may have been written while we asked
            if record and "exit" in record:
                await self._exited(task, record["exit"])
            elif record is None and task.state is State.STARTING:
                await self.engine.launch(task)
            else:
                await self.engine.vanished(task, other_boot=False)

    async def _is_alive(self, task_id: int, attempt: int) -> bool:
        try:
            answer = await self.engine.launcher.insist("inspect", attempts=[[task_id, attempt]])
        except LauncherError:
            return True
        return any(one["alive"] for one in answer["attempts"])

    def record(self, task_id: int, attempt: int) -> dict[str, Any] | None:
        """The attempt's record; None where there is none."""
        try:
            with open(os.path.join(self._exits, f"{task_id}.{attempt}"), "rb") as file:
                data = json.loads(file.read())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return {}
        if not isinstance(data, dict):
            return {}
        try:
            if "exit" in data:
                check_exit(data["exit"])
        except BadHearsay as error:
            log.warning("The record of %d.%d is not understood: %s", task_id, attempt, error)
            return {}
        return data

    def recover(self) -> None:
        """At start-up: every attempt that was under way is looked at; supervisors that live will call."""
        for task in list(self.engine.live.values()):
            if task.state in LIVE and task.spec.kind != RECORD:
                self.engine.job(self._recover(task))
        stale = [one for one in self._recorded() if not self._is_under_way(*one)]
        if stale:
            self.engine.job(self._forget(stale))

    def _recorded(self) -> list[tuple[int, int]]:
        """The attempts that have a record."""
        try:
            names = [name.split(".") for name in os.listdir(self._exits)]
        except OSError:
            return []
        return [(int(one[0]), int(one[1])) for one in names if len(one) == 2 and one[0].isdigit()]

    def _is_under_way(self, task_id: int, attempt: int) -> bool:
        task = self.engine.live.get(task_id)
        if task is None:
            # A task that the database does not know may run: its supervisor will say so.
            return self.engine.storage.get(task_id) is None
        return task.attempt == attempt

    async def _forget(self, attempts: list[tuple[int, int]]) -> None:
        """The daemon was killed between an end's commit and this."""
        for start in range(0, len(attempts), 1000):
            some = [list(one) for one in attempts[start : start + 1000]]
            await self.engine.launcher.insist("forget", attempts=some, outputs=[])

    async def _recover(self, task: Task) -> None:
        if task.boot_id == self.engine.boot_id:
            await asyncio.sleep(GRACE_SECONDS if task.state is not State.STARTING else 0)
        await self.look(task.id, task.attempt)


class Call(asyncio.Protocol):
    """One supervisor's connection. Messages are handled one after the other."""

    def __init__(self, supervisors: Supervisors, uid: int) -> None:
        self._supervisors = supervisors
        self._uid = uid
        self._buffer = b""
        self._queue: list[Mapping[str, Any]] = []
        self._complained = False
        self._working = False
        self._lost = False
        self.text_answers: list[asyncio.Future[bool]] = []
        self.key: tuple[int, int] | None = None
        self.pid = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Only root's supervisors, or our own, are listened to."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if peer_of(transport.get_extra_info("socket")).uid not in (0, self._uid):
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take whole messages."""
        *whole, self._buffer = (self._buffer + data).split(b"\0")
        if len(self._buffer) > BUFFER_MAX:
            self._transport.abort()
            return
        self._queue.extend(said for one in whole if (said := self._read(one)) is not None)
        if self._queue and not self._working:
            self._working = True
            self._supervisors.engine.job(self._work())

    def _read(self, data: bytes) -> Mapping[str, Any] | None:
        try:
            return check_message(json.loads(data))
        except (BadHearsay, ValueError, RecursionError) as error:
            if not self._complained:
                log.warning("The supervisor of %s said what is not understood: %s", self.key, error)
            self._complained = True
            return None

    async def _work(self) -> None:
        try:
            while self._queue:
                said = self._queue.pop(0)
                if "hello" in said:
                    await self._supervisors.hello(self, said["hello"])
                elif "stdin_taken" in said:
                    if self.text_answers:
                        _settle(self.text_answers.pop(0), said["stdin_taken"])
                elif self.key is not None:
                    await self._supervisors.heard(self.key, said)
        finally:
            self._working = False
            if self._lost:
                self._supervisors.hung_up(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone; but what it said last is heard first."""
        self._lost = True
        for answer in self.text_answers:
            _settle(answer, False)
        if not self._working:
            self._supervisors.hung_up(self)

    def send(self, message: dict[str, Any]) -> None:
        """Tell the supervisor."""
        if not self._transport.is_closing():
            self._transport.write(json.dumps(message).encode() + b"\0")


def _settle(answer: asyncio.Future[bool], taken: bool) -> None:
    if not answer.done():  # whoever asked may have gone
        answer.set_result(taken)


def exited_of(exit_: Mapping[str, Any]) -> Exited:
    """The event that an exit record stands for."""
    return Exited(
        at=exit_.get("ended") or now_usec(),
        result=Result(exit_["result"]),
        exit_status=exit_.get("exit_status"),
        signal=exit_.get("signal"),
        error=exit_.get("error"),
        started=exit_.get("started"),
        cpu_usec=exit_.get("cpu_usec"),
        memory_peak=exit_.get("memory_peak"),
        io_read_bytes=exit_.get("io_read_bytes"),
        io_write_bytes=exit_.get("io_write_bytes"),
    )


def _reported(report: Mapping[str, Any]) -> Reported:
    return Reported(
        now_usec(),
        percent=report.get("percent"),
        total=report.get("total"),
        finished=report.get("finished"),
        message=report.get("message"),
        value=report.get("value"),
        failure=report.get("failure"),
        rewind=report.get("rewind") is True,
    )


def _from_card(said: Mapping[str, Any]) -> Task:
    card, now = said["card"], now_usec()
    spec = TaskSpec(
        kind=card["kind"],
        name=card["name"],
        argv=(card["name"],),
        queue=card["queue"],
        user=card["user"],
    )
    return Task(
        id=said["id"],
        spec=spec,
        uid=card["uid"],
        user=card["user"],
        owner_uid=card["owner_uid"],
        state=State.STARTING,
        created=said.get("started") or now,
        updated=now,
        attempt=said["attempt"],
        boot_id=said["boot_id"],
    )
