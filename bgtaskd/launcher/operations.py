# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the daemon may ask of the launcher: one method an operation, each named in one table."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import bgtaskd
from bgtaskd.launcher import credentials, records
from bgtaskd.launcher.messages import (
    ATTEMPT_MAX,
    ID_MAX,
    QUEUE,
    BadMessage,
    SystemdError,
    attempt_of,
    integer,
    mapping,
    parsed,
    read_launch,
    text,
)
from bgtaskd.launcher.places import Places
from bgtaskd.launcher.policy import UidPolicy
from bgtaskd.launcher.proc import boot_id, start_time
from bgtaskd.launcher.processes import Processes
from bgtaskd.launcher.request import build
from bgtaskd.launcher.starts import Answer, Starts
from bgtaskd.launcher.supervision import ForkServer
from bgtaskd.launcher.users import Users
from bgtaskd.launcher.workers import Workers
from bgtaskd.model import WORKER
from bgtaskd.units import scope_name, slice_name

NO_SUCH_UNIT: Final = "org.freedesktop.systemd1.NoSuchUnit"


class Refused(Exception):
    """The operation cannot be done. ``name`` is the error's name on the wire."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        super().__init__(reason)


class Operations:
    """The launcher's verbs, and the launches under way."""

    def __init__(self, mode: str, places: Places, policy: UidPolicy, workers: Workers) -> None:
        """``mode``: "scope", "user" (systemd --user) or "process"."""
        self._mode = mode
        self._places = places
        self._policy = policy
        self._workers = workers
        self._users = Users()
        self._boot_id = boot_id()
        self._systemd = self._connect()
        self._starts = Starts(self._systemd, self._fork_server)
        self._table: dict[str, Callable[[Mapping[str, Any], Answer], None]] = {
            "hello": self._hello,
            "launch": self._launch,
            "stop": self._stop,
            "kill": self._kill,
            "freeze": self._freeze,
            "thaw": self._thaw,
            "slice": self._slice,
            "set_properties": self._set_properties,
            "inspect": self._inspect,
            "forget": self._forget,
            "highest": self._highest,
            "timer": self._timer,
            "untimer": self._untimer,
            "timers": self._timers,
            "listen": self._listen,
            "listen_only": self._workers.drop,
            "await_call": self._workers.await_call,
        }

    def _connect(self) -> Any:
        if self._mode == "process":
            return Processes(self._leader_of)
        from bgtaskd.launcher.scopes import Scopes

        return Scopes(user_mode=self._mode == "user")

    def _fork_server(self) -> ForkServer:
        """A fork server in a scope of its own: restarts of both services leave it alone."""
        server = ForkServer(self._places)
        if self._mode == "process":
            return server
        properties: list[tuple[str, str, Any]] = [
            ("PIDs", "au", [server.pid]),
            ("Description", "s", "Supervisors of background tasks"),
            ("TasksMax", "t", (1 << 64) - 1),
            ("CollectMode", "s", "inactive-or-failed"),
        ]
        if self._mode == "scope":
            properties.append(("Slice", "s", "system.slice"))
        results: list[str] = []
        unit = f"bgtaskd-supervisors-{server.pid}.scope"
        self._systemd.start_scope(unit, properties, results.append)
        while not results:
            self._systemd.wait()
        if results[0] != "done":
            raise RuntimeError(f"the fork server's scope could not be made: {results[0]}")
        return server

    # --- the loop's side ------------------------------------------------------------------------

    def watched(self) -> dict[int, Callable[[], None]]:
        """Descriptors to poll, and what to call when they are readable."""
        out = {**self._starts.watched(), **self._workers.watched()}
        if self._systemd.fileno() >= 0:
            out[self._systemd.fileno()] = self._systemd.process
        return out

    def timeout_ms(self) -> int | None:
        """How long poll() may sleep."""
        due = [one for one in (self._starts.next_due(), self._systemd.tick()) if one is not None]
        return max(0, int((min(due) - time.monotonic()) * 1000) + 1) if due else None

    def tick(self) -> None:
        """Whatever is due."""
        self._systemd.process()
        self._starts.tick()

    def perform(self, message: Mapping[str, Any], answer: Answer) -> None:
        """One request. Raises BadMessage, NotAllowed, Refused; otherwise ``answer`` is called, now or later."""
        name = message.get("op")
        operation = self._table.get(name) if isinstance(name, str) else None
        if operation is None:
            raise BadMessage("op", f"must be one of {', '.join(self._table)}")
        operation(message, answer)

    # --- launch ---------------------------------------------------------------------------------

    def _launch(self, message: Mapping[str, Any], answer: Answer) -> None:
        launch = read_launch(message)
        if self._starts.is_under_way(launch.id, launch.attempt):
            raise Refused("AlreadyLaunched", "the attempt is being launched")
        if records.is_taken(self._places.exits, launch.id, launch.attempt):
            raise Refused("AlreadyLaunched", "the attempt has a record")
        user = self._users.get(launch.uid)
        if user is None:
            raise Refused("Resources", f"no user has the uid {launch.uid}")
        self._workers.check(launch)
        if launch.kind != WORKER:
            self._policy.check(user, launch)
        fd = self._workers.socket_of(launch)
        request = build(launch, user, self._places, self._boot_id, has_socket=fd is not None)
        try:
            self._starts.begin(launch, request, answer, fd)
        except OSError as error:
            raise Refused("Resources", f"cannot fork a supervisor: {error.strerror}") from None

    def _listen(self, message: Mapping[str, Any], answer: Answer) -> None:
        try:
            self._workers.ensure(message, answer)
        except OSError as error:
            raise Refused("Resources", f"cannot make the socket: {error.strerror}") from None

    # --- steering -------------------------------------------------------------------------------

    def _unit(self, message: Mapping[str, Any]) -> str:
        return scope_name(*attempt_of(message))

    def _systemd_call(self, answer: Answer, call: Callable[[], None]) -> None:
        try:
            call()
        except SystemdError as error:
            name = "NoSuchUnit" if error.name == NO_SUCH_UNIT else "Systemd"
            raise Refused(name, str(error)) from None
        except OSError as error:
            raise Refused("NoSuchUnit", str(error)) from None
        answer({"ok": {}})

    def _stop(self, message: Mapping[str, Any], answer: Answer) -> None:
        unit = self._unit(message)
        grace = integer(message, "stop_timeout_usec", 0, ID_MAX) / 1e6
        self._systemd_call(answer, lambda: self._systemd.stop(unit, grace))

    def _kill(self, message: Mapping[str, Any], answer: Answer) -> None:
        unit = self._unit(message)
        number = integer(message, "signal", 1, signal.NSIG - 1)
        whom = message.get("whom")
        if whom == "all":
            self._systemd_call(answer, lambda: self._systemd.kill(unit, number))
        elif whom == "main":
            leader = self._leader(*attempt_of(message))
            if leader is None:
                raise Refused("NoSuchUnit", f"{unit} has no main process")
            try:
                self._systemd_call(answer, lambda: signal.pidfd_send_signal(leader, number))
            finally:
                os.close(leader)
        else:
            raise BadMessage("whom", "must be all or main")

    def _freeze(self, message: Mapping[str, Any], answer: Answer) -> None:
        unit = self._unit(message)
        self._systemd_call(answer, lambda: self._systemd.freeze(unit))

    def _thaw(self, message: Mapping[str, Any], answer: Answer) -> None:
        unit = self._unit(message)
        self._systemd_call(answer, lambda: self._systemd.thaw(unit))

    def _slice(self, message: Mapping[str, Any], answer: Answer) -> None:
        queue = text(message, "queue", 64)
        if not QUEUE.fullmatch(queue):
            raise BadMessage("queue", "letters, digits and _ only")
        self._change(slice_name(queue), message, answer)

    def _set_properties(self, message: Mapping[str, Any], answer: Answer) -> None:
        self._change(self._unit(message), message, answer)

    def _change(self, unit: str, message: Mapping[str, Any], answer: Answer) -> None:
        properties = parsed(mapping(message, "properties"))
        told = [one.systemd for one in properties.values() if one.systemd is not None]
        self._systemd_call(answer, lambda: self._systemd.set_properties(unit, told))

    # --- timers ---------------------------------------------------------------------------------

    def _timer(self, message: Mapping[str, Any], answer: Answer) -> None:
        self._systemd_call(answer, lambda: self._of_systemd().arm(self._systemd, message))

    def _untimer(self, message: Mapping[str, Any], answer: Answer) -> None:
        timers = self._of_systemd()
        self._systemd_call(answer, lambda: timers.disarm(self._systemd, timers.unit_of(message)))

    def _timers(self, message: Mapping[str, Any], answer: Answer) -> None:
        answer({"ok": {"timers": self._of_systemd().times(self._systemd, message)}})

    def _of_systemd(self) -> Any:
        if self._mode == "process":
            raise Refused("NotSupported", "timers are systemd's, and this launcher runs without it")
        from bgtaskd.launcher import timers

        return timers

    # --- records --------------------------------------------------------------------------------

    def _leader(self, task_id: int, attempt: int) -> int | None:
        """A pidfd of the attempt's main process, if it still is that process."""
        record = records.read(self._places.exits, task_id, attempt)
        if not record or record.get("boot_id") != self._boot_id:
            return None
        task = record.get("task", {})
        try:
            fd = os.pidfd_open(task["pid"])
        except (OSError, KeyError, TypeError):
            return None
        if start_time(task["pid"]) != task.get("start_time"):
            os.close(fd)
            return None
        return fd

    def _leader_of(self, unit: str) -> int | None:
        """For process mode: the session of a unit, while its first process or its supervisor lives."""
        task_id, _, attempt = unit.removeprefix("bgtask-").removesuffix(".scope").partition(".")
        record = records.read(self._places.exits, int(task_id), int(attempt or 1))
        if not record or "exit" in record or not self._is_alive(record):
            return None
        pid: int = record["task"]["pid"]
        return pid if pid > 0 else None

    def _is_alive(self, record: Mapping[str, Any]) -> bool:
        supervisor = record.get("supervisor", {})
        return (
            record.get("boot_id") == self._boot_id
            and supervisor.get("start_time") is not None
            and start_time(supervisor.get("pid", -1)) == supervisor["start_time"]
        )

    def _inspect(self, message: Mapping[str, Any], answer: Answer) -> None:
        out = []
        for task_id, attempt in _attempts(message):
            record = records.read(self._places.exits, task_id, attempt)
            ended = bool(record) and "exit" in (record or {})
            alive = bool(record) and not ended and self._is_alive(record or {})
            out.append(
                {
                    "id": task_id,
                    "attempt": attempt,
                    "record": record is not None,
                    "ended": ended,
                    "alive": alive,
                }
            )
        answer({"ok": {"attempts": out}})

    def _forget(self, message: Mapping[str, Any], answer: Answer) -> None:
        for task_id, attempt in _attempts(message):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(records.name_of(task_id, attempt), dir_fd=self._places.exits)
            credentials.remove(self._places.credentials(task_id, attempt))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._places.template(task_id))
        outputs = message.get("outputs", [])
        if not isinstance(outputs, list) or len(outputs) > 10_000:
            raise BadMessage("outputs", "a list of at most 10000 ids")
        for task_id in outputs:
            if type(task_id) is not int or not 0 < task_id <= ID_MAX:
                raise BadMessage("outputs", "a list of ids")
            shutil.rmtree(str(task_id), ignore_errors=True, dir_fd=self._places.tasks)
        answer({"ok": {}})

    def _highest(self, message: Mapping[str, Any], answer: Answer) -> None:
        names = [*os.listdir(self._places.exits), *os.listdir(self._places.tasks)]
        ids = [int(one) for name in names if (one := name.partition(".")[0]).isdigit()]
        answer({"ok": {"id": max(ids, default=0)}})

    def _hello(self, message: Mapping[str, Any], answer: Answer) -> None:
        answer(
            {
                "ok": {
                    "version": bgtaskd.__version__,
                    "boot_id": self._boot_id,
                    "mode": self._mode,
                    "systemd_version": self._systemd.version,
                }
            }
        )


def _attempts(message: Mapping[str, Any]) -> list[tuple[int, int]]:
    value = message.get("attempts", [])
    if not isinstance(value, list) or len(value) > 10_000:
        raise BadMessage("attempts", "a list of at most 10000 [id, attempt]")
    out = []
    for one in value:
        if not (
            isinstance(one, list)
            and len(one) == 2
            and all(type(part) is int for part in one)
            and 0 < one[0] <= ID_MAX
            and 0 < one[1] <= ATTEMPT_MAX
        ):
            raise BadMessage("attempts", "a list of [id, attempt]")
        out.append((one[0], one[1]))
    return out
