# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the daemon may ask of the launcher: one method an operation, each named in one table."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import bgtaskd
from bgtaskd.launcher import records
from bgtaskd.launcher.messages import (
    ATTEMPT_MAX,
    ID_MAX,
    QUEUE,
    BadMessage,
    Launch,
    SystemdError,
    attempt_of,
    integer,
    mapping,
    parsed,
    read_launch,
    text,
)
from bgtaskd.launcher.policy import UidPolicy
from bgtaskd.launcher.processes import Processes
from bgtaskd.launcher.users import Users
from bgtaskd.model import scope_name, slice_name

Answer = Callable[[dict[str, Any]], None]
UNIT_EXISTS_PATIENCE: Final = 10.0
FORK_TRIES: Final = 3
UNIT_EXISTS: Final = "org.freedesktop.systemd1.UnitExists"
NO_SUCH_UNIT: Final = "org.freedesktop.systemd1.NoSuchUnit"


class Refused(Exception):
    """The operation cannot be done. ``name`` is the error's name on the wire."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        super().__init__(reason)


class Forker(Protocol):
    """Something that forks supervisors."""

    process: Any

    def fork(self, launch: dict[str, Any]) -> socket.socket:
        """Fork one; our end of the socket to it."""


@dataclass
class Starting:
    """A launch under way: its supervisor waits for "go"."""

    launch: Launch
    answer: Answer
    request: dict[str, Any]
    socket: socket.socket
    pid: int | None = None
    tries: int = 1
    deadline: float = 0.0


class Operations:
    """The launcher's verbs, and the launches under way."""

    def __init__(
        self,
        mode: str,
        places: dict[str, Any],
        policy: UidPolicy,
        fork_server: Callable[[dict[str, Any], Callable[[int], None]], Forker],
    ) -> None:
        self._mode = mode
        self._places = places
        self._policy = policy
        self._users = Users()
        self._exits: int = places["exits"]
        self._tasks: int = places["tasks"]
        self._boot_id = records.boot_id()
        self._starting: dict[int, Starting] = {}
        self._retries: list[tuple[float, Starting]] = []
        self._systemd = self._connect()
        self._fork_server = fork_server
        self._forker = fork_server(places, self._wrap)
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
        }

    def _connect(self) -> Any:
        if self._mode == "process":
            return Processes(self._leader_of)
        from bgtaskd.launcher.scopes import Scopes

        return Scopes(user_mode=self._mode == "user")

    def _wrap(self, pid: int) -> None:
        """Put the fork server into a scope of its own: restarts of both services leave it alone."""
        if self._mode == "process":
            return
        properties: list[tuple[str, str, Any]] = [
            ("PIDs", "au", [pid]),
            ("Description", "s", "Supervisors of background tasks"),
            ("TasksMax", "t", (1 << 64) - 1),
            ("CollectMode", "s", "inactive-or-failed"),
        ]
        if self._mode == "scope":
            properties.append(("Slice", "s", "system.slice"))
        results: list[str] = []
        self._systemd.start_scope(f"bgtaskd-supervisors-{pid}.scope", properties, results.append)
        while not results:
            self._systemd.wait()
        if results[0] != "done":
            raise RuntimeError(f"the fork server's scope could not be made: {results[0]}")

    # --- the loop's side ------------------------------------------------------------------------

    def watched(self) -> dict[int, Callable[[], None]]:
        """Descriptors to poll, and what to call when they are readable."""
        out: dict[int, Callable[[], None]] = {}
        for fd, starting in self._starting.items():
            out[fd] = lambda one=starting: self._hear(one)  # type: ignore[misc]
        if self._systemd.fileno() >= 0:
            out[self._systemd.fileno()] = self._systemd.process
        return out

    def timeout_ms(self) -> int | None:
        """How long poll() may sleep."""
        due = [when for when, _ in self._retries]
        kill = self._systemd.tick()
        if kill is not None:
            due.append(kill)
        return max(0, int((min(due) - time.monotonic()) * 1000) + 1) if due else None

    def tick(self) -> None:
        """Whatever is due."""
        self._systemd.process()
        now = time.monotonic()
        due = [one for when, one in self._retries if when <= now]
        self._retries = [pair for pair in self._retries if pair[0] > now]
        for starting in due:
            self._start_scope(starting)
        self._look_after_fork_server()

    def _look_after_fork_server(self) -> None:
        if self._forker.process.poll() is not None:
            self._forker = self._fork_server(self._places, self._wrap)

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
        key = (launch.id, launch.attempt)
        if any((one.launch.id, one.launch.attempt) == key for one in self._starting.values()):
            raise Refused("AlreadyLaunched", "the attempt is being launched")
        user = self._users.get(launch.uid)
        if user is None:
            raise Refused("Resources", f"no user has the uid {launch.uid}")
        self._policy.check(user)
        properties = parsed(launch.properties)
        values = {name: one.value for name, one in properties.items() if one.systemd is None}
        env = {
            **launch.env,
            "BGTASK_ID": str(launch.id),
            "BGTASK_NAME": launch.name,
            "BGTASK_ATTEMPT": str(launch.attempt),
            "NOTIFY_SOCKET": f"{self._places['notify']}/{launch.id}.{launch.attempt}.sock",
        }
        runtime = properties.get("RuntimeMaxSec")
        request = {
            "launch": launch.to_json(),
            "program": {
                "argv": list(launch.argv),
                "limits": [value for name, value in values.items() if name.startswith("Limit")],
                "env": env,
                "cwd": launch.cwd,
                "uid": user.uid,
                "gid": user.gid,
                "groups": user.groups,
                "user_env": {
                    "HOME": user.home,
                    "USER": user.name,
                    "LOGNAME": user.name,
                    "SHELL": user.shell,
                },
                "umask": values.get("UMask", 0o022),
                "nice": values.get("Nice"),
                "oom_score_adjust": values.get("OOMScoreAdjust"),
            },
            "runtime_max_usec": None if runtime is None else runtime.value,
        }
        try:
            sock = self._fork(request)
        except OSError as error:
            raise Refused("Resources", f"cannot fork a supervisor: {error.strerror}") from None
        self._starting[sock.fileno()] = Starting(launch, answer, request, sock)

    def _fork(self, request: dict[str, Any]) -> socket.socket:
        try:
            return self._forker.fork(request)
        except ConnectionError:  # somebody killed it, perhaps this very moment
            self._forker.process.kill()
            self._forker.process.wait()
            self._look_after_fork_server()
            return self._forker.fork(request)

    def _fork_again(self, starting: Starting) -> bool:
        """Whether a launch whose supervisor has said nothing, as when the fork server was killed, gets another.

        Had the first come far enough to run anything, the attempt's record would refuse the second.
        """
        if starting.pid is not None or starting.tries == FORK_TRIES:
            return False
        starting.tries += 1
        self._starting.pop(starting.socket.fileno(), None)
        starting.socket.close()
        try:
            starting.socket = self._fork(starting.request)
        except OSError as error:
            starting.answer({"error": "Resources", "reason": f"cannot fork: {error.strerror}"})
            return True
        self._starting[starting.socket.fileno()] = starting
        return True

    def _hear(self, starting: Starting) -> None:
        """The supervisor says its task's pid, then that the task runs; or why not."""
        try:
            data = starting.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data and self._fork_again(starting):
            return
        if not data:
            self._over(starting, {"error": "Resources", "reason": "the supervisor died"})
            return
        for part in data.split(b"\0")[:-1]:
            message = json.loads(part)
            if "pid" in message and starting.pid is None:
                starting.pid = message["pid"]
                starting.deadline = time.monotonic() + UNIT_EXISTS_PATIENCE
                self._start_scope(starting)
            elif "started" in message:
                self._over(starting, {"ok": {"pid": starting.pid, "started": message["started"]}})
            else:
                self._over(starting, message)

    def _start_scope(self, starting: Starting) -> None:
        if starting.socket.fileno() < 0:
            return  # its supervisor died while it waited for another try
        launch = starting.launch
        properties: list[tuple[str, str, Any]] = [
            ("PIDs", "au", [starting.pid]),
            ("Description", "s", f"bgtaskd task {launch.id}: {_printable(launch.name)}"),
            ("Slice", "s", slice_name(launch.queue)),
            ("CollectMode", "s", "inactive-or-failed"),
            ("TimeoutStopUSec", "t", launch.stop_timeout_usec),
        ]
        properties += [
            one.systemd for one in parsed(launch.properties).values() if one.systemd is not None
        ]
        unit = scope_name(launch.id, launch.attempt)

        def done(result: str) -> None:
            if result == "done":
                with contextlib.suppress(OSError):
                    starting.socket.send(b"g")
            else:
                self._over(
                    starting, {"error": "Resources", "reason": f"the scope's start job: {result}"}
                )

        try:
            self._systemd.start_scope(unit, properties, done)
        except SystemdError as error:
            if error.name == UNIT_EXISTS and time.monotonic() < starting.deadline:
                self._retries.append((time.monotonic() + 0.05, starting))
                return
            self._over(starting, {"error": "Resources", "reason": str(error)})

    def _over(self, starting: Starting, message: dict[str, Any]) -> None:
        if starting.socket.fileno() < 0:
            return  # answered already
        self._starting.pop(starting.socket.fileno(), None)
        starting.socket.close()
        starting.answer(message)

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

    # --- records --------------------------------------------------------------------------------

    def _leader(self, task_id: int, attempt: int) -> int | None:
        """A pidfd of the attempt's main process, if it still is that process."""
        record = records.read(self._exits, task_id, attempt)
        if not record or record.get("boot_id") != self._boot_id:
            return None
        task = record.get("task", {})
        try:
            fd = os.pidfd_open(task["pid"])
        except (OSError, KeyError, TypeError):
            return None
        if records.start_time(task["pid"]) != task.get("start_time"):
            os.close(fd)
            return None
        return fd

    def _leader_of(self, unit: str) -> int | None:
        """For process mode: the session of a unit, while its first process or its supervisor lives."""
        task_id, _, attempt = unit.removeprefix("bgtask-").removesuffix(".scope").partition(".")
        record = records.read(self._exits, int(task_id), int(attempt or 1))
        if not record or "exit" in record or not self._is_alive(record):
            return None
        pid: int = record["task"]["pid"]
        return pid if pid > 0 else None

    def _is_alive(self, record: Mapping[str, Any]) -> bool:
        supervisor = record.get("supervisor", {})
        return (
            record.get("boot_id") == self._boot_id
            and supervisor.get("start_time") is not None
            and records.start_time(supervisor.get("pid", -1)) == supervisor["start_time"]
        )

    def _inspect(self, message: Mapping[str, Any], answer: Answer) -> None:
        out = []
        for task_id, attempt in _attempts(message):
            record = records.read(self._exits, task_id, attempt)
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
                os.unlink(records.name_of(task_id, attempt), dir_fd=self._exits)
        outputs = message.get("outputs", [])
        if not isinstance(outputs, list) or len(outputs) > 10_000:
            raise BadMessage("outputs", "a list of at most 10000 ids")
        for task_id in outputs:
            if type(task_id) is not int or not 0 < task_id <= ID_MAX:
                raise BadMessage("outputs", "a list of ids")
            shutil.rmtree(str(task_id), ignore_errors=True, dir_fd=self._tasks)
        answer({"ok": {}})

    def _highest(self, message: Mapping[str, Any], answer: Answer) -> None:
        names = [*os.listdir(self._exits), *os.listdir(self._tasks)]
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


def _printable(name: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in name)
