# SPDX-License-Identifier: LGPL-2.1-or-later
"""Inside of a named task's process: payloads and calls come in, answers go out, one at a time.

Calls come over the task's own socket, which PID 1 keeps and all of its processes share; payloads, and calls
that were merged, over the connection to the daemon (see link.py). Both are served by one poll().
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from bgtaskd.protocol.codec import Decoder, MalformedMessage, encode
from bgtaskd.task import runner, target
from bgtaskd.task.link import Job, Link
from bgtaskd.task.worker import AsyncTask, Context, SyncTask, Worker, has_loop, is_asyncio

LISTEN_FD: Final = 3
"""sd_listen_fds(3)."""
OK, FAILED = 0, 1
TOLD, ENOUGH, IDLE = "told", "enough", "idle"
"""Why a process goes: it was told so, it has had enough jobs or memory, nobody needs it."""
INTERFACE: Final = "org.bgtaskd.Worker"
METHOD: Final = f"{INTERFACE}.Call"
CONNECTIONS_MAX: Final = 1024
"""So many at once, and at most half of the descriptors that the process may have: see connections_max()."""
LOOKS: Final = 20
MEMORY_EVERY: Final = 16
"""After so many jobs it is looked how much memory there is in use."""
PATIENCE_SECONDS: Final = 10
"""A caller that does not read its answer is hung up on after so long."""
PATIENCE: Final = struct.pack("ll", PATIENCE_SECONDS, 0)
PAGE: Final = resource.getpagesize()
CREDENTIALS: Final = struct.Struct("iII")


class Unfit(Exception):
    """The class is not what its file says."""


def serve(handover: Mapping[str, Any]) -> int:
    """Load the class and serve until it is told to go, or has had enough; the exit status.

    ``handover``: target, import_path, and ``worker``: what Settings has.
    """
    runner.use_path(handover.get("import_path"))
    settings = handover["worker"]
    try:
        worker = load(handover["target"], settings)
    except Unfit as error:
        sys.stderr.write(f"bgtaskd: {error}\n")
        return FAILED
    if is_asyncio(worker):
        from bgtaskd.task.serving_aio import AsyncServing

        return AsyncServing(worker, settings).run()
    return Serving(worker, settings).run()


def load(name: str, settings: Mapping[str, Any]) -> Worker:
    """The task's one object. Raises Unfit, and what its module raises."""
    made = target.load(name)
    wanted = SyncTask if settings["type"] == "sync" else AsyncTask
    if not (isinstance(made, type) and issubclass(made, Worker)):
        raise Unfit(f"{name} is neither a bgtaskd.AsyncTask nor a bgtaskd.SyncTask")
    if not issubclass(made, wanted):
        raise Unfit(f"{name} is no {wanted.__name__}, and the file says type: {settings['type']}")
    if made.name and made.name != settings["name"]:
        raise Unfit(f"{name} is called {made.name}, and its file {settings['name']}.yaml")
    return made()


def has_had_enough(settings: Mapping[str, Any], served: int) -> bool:
    """Whether the process has done its max_jobs, or is beyond its max_memory."""
    most = settings["max_jobs"]
    if most is not None and served >= most:
        return True
    return served % MEMORY_EVERY == 0 and not _is_within_memory(settings)


def _is_within_memory(settings: Mapping[str, Any]) -> bool:
    limit = settings["max_memory"]
    if limit is None:
        return True
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * PAGE < int(limit)


def failure_of(error: BaseException) -> dict[str, str]:
    """What a caller is told of an exception."""
    return {
        "type": runner.fit(type(error).__name__, 200),
        "message": runner.fit(str(error), 2048),
        "traceback": runner.fit(runner.traceback_of(error), 16 * 1024),
    }


def connections_max() -> int:
    """How many callers may be connected. One more, and who has not called for longest is hung up on.

    That loses nothing: what a caller has sent and nobody has read, the kernel tells it to send again.
    """
    return min(CONNECTIONS_MAX, max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))


def uid_of(sock: socket.socket) -> int:
    """Who is at the other end."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    uid: int = CREDENTIALS.unpack(data)[1]
    return uid


def payload_of(message: Mapping[str, Any]) -> tuple[Any, bytes | None]:
    """The payload of a call; or the reply to what is none."""
    parameters = message.get("parameters") or {}
    if message.get("method") == METHOD and isinstance(parameters, dict):
        return parameters.get("payload"), None
    method = {"method": str(message.get("method"))[:200]}
    return None, encode({"error": "org.varlink.service.MethodNotFound", "parameters": method})


def call_failed(error: BaseException) -> bytes:
    """The reply to a call whose work() has raised this, or whose answer is not JSON."""
    return encode({"error": f"{INTERFACE}.CallFailed", "parameters": failure_of(error)})


def malformed(error: MalformedMessage) -> bytes:
    """The reply to what is no message."""
    parameters = {"reason": str(error)}
    return encode({"error": f"{INTERFACE}.MalformedMessage", "parameters": parameters})


class Guard:
    """Kills the process if one job takes longer than its watchdog time, whatever it hangs in.

    By SIGALRM, whose handler is the kernel's: no Python need run for it.
    """

    def __init__(self, usec: int | None) -> None:
        self._seconds = 0.0 if usec is None else usec / 1e6
        if usec is not None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def __enter__(self) -> None:
        if self._seconds:
            signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(self, *_: object) -> None:
        if self._seconds:
            signal.setitimer(signal.ITIMER_REAL, 0)


class Serving:
    """The loop of a task that does one thing at a time."""

    def __init__(self, worker: Worker, settings: Mapping[str, Any]) -> None:
        self._worker = worker
        self._settings = settings
        self._context = (settings["name"], settings["instance"])
        self._guard = Guard(settings["watchdog_usec"])
        self._poll = select.poll()
        self._link = Link(settings, self._poll)
        self._listener: socket.socket | None = None
        if settings["type"] == "sync":
            self._listener = socket.socket(fileno=LISTEN_FD)
            self._listener.set_inheritable(False)
            self._poll.register(LISTEN_FD, select.POLLIN)
        self._callers: dict[int, _Caller] = {}
        self._connections_max = connections_max()
        self._jobs: deque[Job] = deque()
        self._leaving = ""
        self._looks = 0
        self._loop_interval = worker.loop_interval if has_loop(worker) else None
        self._next_loop = 0.0
        idle = settings["idle_usec"]
        self._idle = None if idle is None else idle / 1e6
        self._last_job = time.monotonic()
        self._wake, wake = socket.socketpair()
        for one in (self._wake, wake):
            one.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        self._wake_end = wake
        signal.signal(signal.SIGTERM, lambda *_: None)
        self._poll.register(self._wake, select.POLLIN)

    def run(self) -> int:
        """Until it is to go. The exit status."""
        with self._guard:
            self._worker.setup()
        self._link.connect()
        try:
            while not self._leaving:
                self._turn()
            self._link.give_back([one.id for one in self._jobs])
        finally:
            with self._guard:
                self._worker.teardown()
        self._link.finish(self._leaving)
        return OK

    def _turn(self) -> None:
        """One round: what has come in, one job of those that wait, the loop() if it is due."""
        for fd, _ in self._events():
            caller = self._callers.pop(fd, None)
            if caller is not None:
                self._callers[fd] = caller  # who has called last is last
                self._serve(caller)
            elif fd == LISTEN_FD and self._listener is not None:
                self._accept(self._listener)
            elif fd == self._wake.fileno():
                self._leaving = TOLD
            else:
                self._hear()
        if self._jobs and not self._leaving:
            self._do(self._jobs.popleft())
        now = time.monotonic()
        if self._loop_interval is not None and now >= self._next_loop:
            with self._guard:
                self._worker.loop()
            self._next_loop = time.monotonic() + self._loop_interval
        self._link.tick(now)
        if self._idle is not None and not self._jobs and now - self._last_job >= self._idle:
            self._leaving = IDLE

    def _events(self) -> list[tuple[int, int]]:
        """What has come in. Who has just been answered often calls again at once: that is worth a moment's
        look, for going to sleep and being woken costs more than a call."""
        looks, self._looks = self._looks, 0
        while looks:
            events = self._poll.poll(0)
            if events:
                return events
            os.sched_yield()
            looks -= 1
        return self._poll.poll(self._timeout_ms())

    def _timeout_ms(self) -> int | None:
        if self._jobs:
            return 0
        due = self._link.deadline
        if self._loop_interval is not None and (due is None or self._next_loop < due):
            due = self._next_loop
        if self._idle is not None and (due is None or self._last_job + self._idle < due):
            due = self._last_job + self._idle
        return None if due is None else max(0, int((due - time.monotonic()) * 1000) + 1)

    # --- calls over the socket ------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return  # another process was faster
        except OSError:  # no descriptor is left
            self._hang_up_on_the_idlest()
            return
        if len(self._callers) >= self._connections_max:
            self._hang_up_on_the_idlest()
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, PATIENCE)
        caller = _Caller(sock, uid_of(sock))
        self._callers[sock.fileno()] = caller
        self._poll.register(sock, select.POLLIN)
        self._serve(caller)

    def _hang_up_on_the_idlest(self) -> None:
        for caller in self._callers.values():  # by when they called last
            self._hang_up(caller)
            return

    def _serve(self, caller: _Caller) -> None:
        try:
            data = caller.socket.recv(1 << 18, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            messages = caller.decoder.feed(data) if data else None
        except MalformedMessage as error:
            with contextlib.suppress(OSError):
                caller.socket.sendall(malformed(error))
            messages = None
        if messages is None:
            self._hang_up(caller)
            return
        for message in messages:
            reply = self._answer(message, caller.uid)
            try:
                caller.socket.sendall(reply)
                self._looks = LOOKS
            except OSError:  # it has gone, or reads nothing
                self._hang_up(caller)
                return

    def _answer(self, message: Mapping[str, Any], uid: int) -> bytes:
        payload, wrong = payload_of(message)
        if wrong is not None:
            return wrong
        try:
            return encode({"parameters": {"answer": self._work(payload, uid)}})
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told
            return call_failed(error)

    def _hang_up(self, caller: _Caller) -> None:
        self._poll.unregister(caller.socket)
        del self._callers[caller.socket.fileno()]
        caller.socket.close()

    # --- what the daemon sends ------------------------------------------------------------------

    def _hear(self) -> None:
        for job in self._link.receive():
            self._jobs.append(job)
        if self._link.is_told_to_go:
            self._leaving = TOLD

    def _do(self, job: Job) -> None:
        try:
            answer = self._work(job.payload, job.uid, job.id, job.tries)
            self._link.done(job, answer)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is kept with the payload
            traceback.print_exc()
            self._link.failed(job, failure_of(error))

    def _work(self, payload: Any, uid: int, number: int | None = None, tries: int = 1) -> Any:
        name, instance = self._context
        context = Context(name, instance, uid, number, tries)
        try:
            with self._guard:
                answer = self._worker.work(payload, context)
        except BaseException:
            self._count(failed=True)
            raise
        self._count(failed=False)
        return answer

    def _count(self, *, failed: bool) -> None:
        self._last_job = time.monotonic()
        if has_had_enough(self._settings, self._link.count(failed)):
            self._leaving = ENOUGH


class _Caller:
    """One connection of the socket."""

    __slots__ = ("decoder", "socket", "uid")

    def __init__(self, sock: socket.socket, uid: int) -> None:
        self.socket = sock
        self.uid = uid
        self.decoder = Decoder()
