# SPDX-License-Identifier: LGPL-2.1-or-later
"""Launches under way, and the supervisors kept in hand for the next ones.

A supervisor is forked, with its task's process waiting at a gate, before anybody asks for it: so a launch
begins with the question to PID 1, which is the longest part of it.
"""

from __future__ import annotations

import contextlib
import json
import marshal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from bgtaskd.launcher.messages import Launch, SystemdError, parsed
from bgtaskd.launcher.supervision import ForkServer
from bgtaskd.units import scope_name, slice_name, worker_slice_name

Answer = Callable[[dict[str, Any]], None]
SPARES: Final = 2
BARE_SECONDS: Final = 60.0
"""After a launch from a template the next ones are prepared for so long."""
TRIES: Final = 3
UNIT_EXISTS_PATIENCE: Final = 10.0
UNIT_EXISTS_INTERVAL: Final = 0.05
UNIT_EXISTS: Final = "org.freedesktop.systemd1.UnitExists"


@dataclass(eq=False)
class Supervisor:
    """Our end of one; its task's pid, once it has told it (0 where that will come from a template)."""

    socket: socket.socket
    bare: bool
    pid: int | None = None


@dataclass(eq=False)
class Start:
    """One launch under way."""

    launch: Launch
    request: bytes
    answer: Answer
    supervisor: Supervisor
    fd: int | None = None
    """A descriptor that goes with the request."""
    tries: int = 0
    pid: int | None = None
    """The process to put into the scope, once it is known."""
    has_scope: bool = False
    deadline: float = 0.0


class Starts:
    """From a checked request to "started", or the reason why not."""

    def __init__(self, systemd: Any, fork_server: Callable[[], ForkServer]) -> None:
        """``systemd``: Scopes or Processes."""
        self._systemd = systemd
        self._new_fork_server = fork_server
        self._fork_server = fork_server()
        self._spares: list[Supervisor] = []
        self._bare_until = 0.0
        self._starts: dict[Supervisor, Start] = {}
        self._retries: list[tuple[float, Start]] = []
        self.keep_spares()

    def is_under_way(self, task_id: int, attempt: int) -> bool:
        """Whether this attempt is being launched."""
        key = (task_id, attempt)
        return any((one.launch.id, one.launch.attempt) == key for one in self._starts.values())

    def begin(
        self, launch: Launch, request: dict[str, Any], answer: Answer, fd: int | None = None
    ) -> None:
        """Launch; ``request`` and ``fd`` are for Supervisor.register().

        Raises OSError where nothing can be forked.
        """
        bare = launch.template is not None
        if bare:
            self._bare_until = time.monotonic() + BARE_SECONDS
        start = Start(launch, marshal.dumps(request), answer, self._take(bare), fd)
        start.deadline = time.monotonic() + UNIT_EXISTS_PATIENCE
        self._hire(start)

    # --- the loop's side ------------------------------------------------------------------------

    def watched(self) -> dict[int, Callable[[], None]]:
        """Descriptors to poll, and what to call when they are readable."""
        out: dict[int, Callable[[], None]] = {}
        for one in (*self._spares, *self._starts):
            out[one.socket.fileno()] = lambda one=one: self._hear(one)  # type: ignore[misc]
        return out

    def next_due(self) -> float | None:
        """When tick() has something to do (monotonic), if ever."""
        return min((when for when, _ in self._retries), default=None)

    def tick(self) -> None:
        """Whatever is due."""
        now = time.monotonic()
        due = [one for when, one in self._retries if when <= now]
        self._retries = [pair for pair in self._retries if pair[0] > now]
        for start in due:
            self._start_scope(start)
        if self._fork_server.is_gone():
            self._fork_server = self._new_fork_server()

    def keep_spares(self) -> None:
        """Have enough supervisors in hand. Where that fails, the next launch will say why."""
        kinds = [False, True] if time.monotonic() < self._bare_until else [False]
        with contextlib.suppress(OSError):
            for bare in kinds:
                while sum(one.bare == bare for one in self._spares) < SPARES:
                    self._spares.append(Supervisor(self._fork(bare), bare))

    # --- the stages of a launch -------------------------------------------------------------------

    def _take(self, bare: bool) -> Supervisor:
        ready = [one for one in self._spares if one.pid is not None and one.bare == bare]
        if not ready:
            return Supervisor(self._fork(bare), bare)
        self._spares.remove(ready[0])
        return ready[0]

    def _fork(self, bare: bool) -> socket.socket:
        try:
            return self._fork_server.fork(bare=bare)
        except ConnectionError:  # somebody killed it, perhaps this very moment
            self._fork_server.kill()
            self._fork_server = self._new_fork_server()
            return self._fork_server.fork(bare=bare)

    def _hire(self, start: Start) -> None:
        """Give a supervisor its attempt, and ask for the scope if the process to put in it is known."""
        start.tries += 1
        supervisor = start.supervisor
        self._starts[supervisor] = start
        try:
            supervisor.socket.setblocking(True)
            length = len(start.request).to_bytes(8, "big")
            if start.fd is None:
                supervisor.socket.sendall(length + start.request)
            else:
                socket.send_fds(supervisor.socket, [length], [start.fd])
                supervisor.socket.sendall(start.request)
            supervisor.socket.setblocking(False)
        except OSError:  # it was killed while it waited
            self._hire_another(start)
            return
        start.pid = None
        if supervisor.pid is not None:
            self._know_pid(start, supervisor.pid)

    def _know_pid(self, start: Start, pid: int, *, is_forked: bool = False) -> None:
        """Of the process that waits; the supervisor's own, unless it is to ask a template for one."""
        if start.launch.template is None or is_forked:
            start.pid = pid
            self._start_scope(start)

    def _hire_another(self, start: Start) -> None:
        """Its supervisor died before the scope was up, as when somebody kills the fork server.

        Had that one come far enough to run anything, the attempt's record would refuse the next.
        """
        self._starts.pop(start.supervisor, None)
        start.supervisor.socket.close()
        if start.tries == TRIES:
            start.answer({"error": "Resources", "reason": "the supervisor died"})
            return
        try:
            bare = start.supervisor.bare
            start.supervisor = Supervisor(self._fork(bare), bare)
        except OSError as error:
            start.answer({"error": "Resources", "reason": f"cannot fork: {error.strerror}"})
            return
        self._hire(start)

    def _hear(self, supervisor: Supervisor) -> None:
        """A supervisor says its task's pid, then that the task runs; or why not."""
        try:
            data = supervisor.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost(supervisor)
            return
        for part in data.split(b"\0")[:-1]:
            self._told(supervisor, json.loads(part))

    def _lost(self, supervisor: Supervisor) -> None:
        start = self._starts.get(supervisor)
        if start is None:
            supervisor.socket.close()
            self._spares = [one for one in self._spares if one is not supervisor]
        elif start.has_scope:
            self._over(start, {"error": "Resources", "reason": "the supervisor died"})
        else:
            self._hire_another(start)

    def _told(self, supervisor: Supervisor, message: dict[str, Any]) -> None:
        start = self._starts.get(supervisor)
        if "pid" in message:
            supervisor.pid = message["pid"]
            if start is not None:
                self._know_pid(start, message["pid"])
        elif start is None:
            return
        elif "forked" in message:
            self._know_pid(start, message["forked"], is_forked=True)
        elif "started" in message:
            self._over(start, {"ok": {"pid": start.pid, "started": message["started"]}})
        else:
            self._over(start, message)

    def _start_scope(self, start: Start) -> None:
        supervisor = start.supervisor
        if self._starts.get(supervisor) is not start:
            return  # it was over, or has another supervisor, when its turn to try again came
        launch = start.launch
        properties: list[tuple[str, str, Any]] = [
            ("PIDs", "au", [start.pid]),
            ("Description", "s", f"bgtaskd task {launch.id}: {_printable(launch.name)}"),
            ("Slice", "s", _slice(launch)),
            ("CollectMode", "s", "inactive-or-failed"),
            ("TimeoutStopUSec", "t", launch.stop_timeout_usec),
        ]
        properties += [
            one.systemd for one in parsed(launch.properties).values() if one.systemd is not None
        ]

        def done(result: str) -> None:
            if result == "done":
                start.has_scope = True
                with contextlib.suppress(OSError):
                    supervisor.socket.send(b"g")
            else:
                reason = f"the scope's start job: {result}"
                self._over(start, {"error": "Resources", "reason": reason})

        unit = scope_name(launch.id, launch.attempt)
        try:
            self._systemd.start_scope(unit, properties, done)
        except SystemdError as error:
            if error.name == UNIT_EXISTS and time.monotonic() < start.deadline:
                self._systemd.stop_empty(unit)
                self._retries.append((time.monotonic() + UNIT_EXISTS_INTERVAL, start))
            elif _has_hung_up(supervisor.socket):
                self._hire_another(start)  # PID 1 knows of no such process: it was killed
            else:
                self._over(start, {"error": "Resources", "reason": str(error)})

    def _over(self, start: Start, message: dict[str, Any]) -> None:
        if self._starts.pop(start.supervisor, None) is None:
            return  # answered already
        start.supervisor.socket.close()
        start.answer(message)
        self.keep_spares()


def _has_hung_up(sock: socket.socket) -> bool:
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _slice(launch: Launch) -> str:
    if launch.worker is None:
        return slice_name(launch.queue)
    return worker_slice_name(launch.queue, launch.worker)


def _printable(name: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in name)
