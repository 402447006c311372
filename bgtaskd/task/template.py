# SPDX-License-Identifier: LGPL-2.1-or-later
"""A process that has an app's modules loaded, and is forked for each of its tasks, which need not load them.

It runs like any task, as the user of the tasks that it is for; bgtaskd starts it when one of them names modules
to preload. It has one thread and no connection, for neither survives a fork. It ends when nobody has wanted it
for a while, and when one of the files that it has loaded changes: then the next one has the new code.

The conversation with a task's supervisor (bgtaskd.launcher.warm), on a connection each: the child says "r"; it
gets two lengths in eight bytes each with descriptors (stdout, stderr, perhaps stdin), then so many bytes of a
request (JSON: env, cwd, umask, limits, stdin) and of the handover; it answers with an empty line, or with what
is wrong; at its end it says "own STATUS", and its parent says "status STATUS CPU_USEC MAXRSS INBLOCK
OUBLOCK", as wait4(2) has it.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from bgtaskd.task import runner, target

LISTEN_FD: Final = 3
"""sd_listen_fds(3)."""
OK, FAILED = 0, 1
Stamp = tuple[int, int, int]
Work = Callable[[Mapping[str, Any]], int]


class CannotPreload(Exception):
    """A process like this cannot be forked."""


def serve(handover: Mapping[str, Any], work: Work = runner.run) -> int:
    """Load the modules, and fork until nobody wants it any more; the exit status.

    ``handover``: import_path, preload (the modules' names), idle_usec. ``work``: what a child does with its.
    """
    runner.use_path(handover.get("import_path"))
    began = time.monotonic()
    for name in handover["preload"]:
        target.load_module(name)
    others = [one.name for one in threading.enumerate() if one is not threading.current_thread()]
    if others:
        raise CannotPreload(
            "the modules start threads when they are loaded, and none survives a fork: "
            + ", ".join(others)
        )
    took = time.monotonic() - began
    template = Template(handover["idle_usec"] / 1e6, work)
    _log(f"Loaded {len(template.files)} files in {took:.2f} s")
    sys.stderr.flush()
    gc.collect()
    gc.freeze()  # the collector must not write into pages that all children share
    return template.run()


class Template:
    """The loop: connections come, children go."""

    def __init__(self, idle: float, work: Work) -> None:
        """``idle``: seconds after which it is not needed."""
        self._idle = idle
        self._work = work
        self._listener: socket.socket | None = socket.socket(fileno=LISTEN_FD)
        self._listener.set_inheritable(False)
        self._children: dict[int, tuple[int, socket.socket]] = {}
        """By pidfd: the pid, and the connection to its supervisor."""
        self._spare: tuple[int, socket.socket] | None = None
        """The child that waits for a task: its pid, and where it is told."""
        self._poll = select.poll()
        self._forked = 0
        self.files = loaded_files()

    def run(self) -> int:
        """Until it is idle or stale, and no child is left."""
        self._poll.register(LISTEN_FD, select.POLLIN)
        while self._listener is not None or self._children:
            if self._listener is not None and self._spare is None:
                connection = self._fork(self._listener)
                if connection is not None:
                    become(connection, self._work)
                if not self._forked:
                    self._tell(100.0, "ready")
            ready = self._poll.poll(None if self._children else int(self._idle * 1000) + 1)
            if not ready:
                _log(f"Not needed for {self._idle:.0f} s; {self._forked} tasks were forked")
                return OK
            for fd, _ in ready:
                if fd in self._children:
                    self._reap(fd)
                elif self._listener is not None:
                    self._take(self._listener)
        return OK

    def _fork(self, listener: socket.socket) -> socket.socket | None:
        """Fork the next child, before anybody asks. In the child: the connection that it gets, later."""
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid:
            theirs.close()
            self._spare = (pid, ours)
            return None
        ours.close()
        listener.close()
        for pidfd, (_, other) in self._children.items():
            os.close(pidfd)
            other.close()
        with theirs:
            _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
        if not fds:
            os._exit(OK)  # it was never needed
        return socket.socket(fileno=fds[0])

    def _take(self, listener: socket.socket) -> None:
        """A connection for the child that waits."""
        changed = next((path for path, then in self.files.items() if stamp(path) != then), None)
        if changed is not None:
            self._retire(listener, changed)
            return
        connection, _ = listener.accept()
        assert self._spare is not None
        (pid, sock), self._spare = self._spare, None
        with (
            sock,
            contextlib.suppress(OSError),
        ):  # somebody may have killed it: the task starts without us
            socket.send_fds(sock, [b"c"], [connection.fileno()])
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = (pid, connection)
        self._poll.register(pidfd, select.POLLIN)
        self._forked += 1

    def _retire(self, listener: socket.socket, changed: str) -> None:
        """Take no more; whoever waits to be taken starts without a template."""
        _log(f"{changed} has changed; {self._forked} tasks were forked")
        self._tell(0.0, "retired")
        self._poll.unregister(listener)
        listener.close()
        self._listener = None
        if self._spare is not None:
            pid, sock = self._spare
            sock.close()
            os.waitpid(pid, 0)
            self._spare = None

    def _reap(self, pidfd: int) -> None:
        pid, connection = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status, used = os.wait4(pid, 0)
        cpu_usec = int((used.ru_utime + used.ru_stime) * 1e6)
        rest = f"{used.ru_maxrss} {used.ru_inblock} {used.ru_oublock}"
        _say(connection, f"status {status} {cpu_usec} {rest}")
        connection.close()

    def _tell(self, percent: float, message: str) -> None:
        """The daemon knows by the percentage whether tasks may come: 100, they may."""
        text = f"STATUS={message}\nX_BGTASK_PROGRESS={percent}\nX_BGTASK_REWIND=1"
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])


def loaded_files() -> dict[str, Stamp]:
    """The files of all modules that are loaded, and how they were; not those of Python itself."""
    library = os.path.join(sysconfig.get_path("stdlib"), "")
    packages = (os.path.join(library, "site-packages"), os.path.join(library, "dist-packages"))
    out = {}
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if isinstance(path, str) and (not path.startswith(library) or path.startswith(packages)):
            out[path] = stamp(path)
    return out


def stamp(path: str) -> Stamp:
    """What differs when a file was changed, replaced or removed."""
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_ino, found.st_size)


def become(connection: socket.socket, work: Work) -> NoReturn:
    """In the child: wait for the scope and the request, then be the task, and end as it does."""
    os.setsid()
    _say(connection, "r", end="")
    request, handover = _receive(connection)
    if request is None:
        os._exit(OK)  # it is not wanted after all
    try:
        _enter(request)
    except OSError as error:
        what = f": {error.filename!r}" if error.filename else ""
        _say(connection, f"{error.strerror}{what}")
        os._exit(203)
    except ValueError as error:  # a limit that only root could raise
        _say(connection, str(error))
        os._exit(203)
    _say(connection, "")
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _leave(connection, work(handover))


def _leave(connection: socket.socket, status: int) -> NoReturn:
    """End as Python does, but for what takes its time and nobody sees: the modules are not torn down.

    multiprocessing ends the processes that it forks in the same way.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - waits for the task's threads
    atexit._run_exitfuncs()  # noqa: SLF001
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    _say(connection, f"own {status << 8}")
    os._exit(status)


def _receive(connection: socket.socket) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    sizes, fds, _, _ = socket.recv_fds(connection, 16, 3)
    if len(sizes) < 16:
        return None, {}
    for number, fd in enumerate(fds, 1):
        os.dup2(fd, number % 3)  # stdout, stderr, stdin
        os.close(fd)
    request = _read(connection, int.from_bytes(sizes[:8], "big"))
    handover = _read(connection, int.from_bytes(sizes[8:], "big"))
    return json.loads(request), json.loads(handover)


def _read(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            os._exit(OK)
        data += piece
    return bytes(data)


def _enter(request: Mapping[str, Any]) -> None:
    """Be as a process that was started for the task would be."""
    if not request["stdin"]:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
    env: dict[str, str] = request["env"]
    os.environ.clear()
    os.environ.update(env)
    os.environ.pop("BGTASK_HANDOVER_FD", None)
    time.tzset()
    os.umask(request["umask"])
    for number, soft, hard in request["limits"]:
        resource.setrlimit(number, (soft, hard))
    if request["cwd"] is not None:
        os.chdir(request["cwd"])
        return
    try:
        os.chdir(env["HOME"])
    except OSError:
        os.chdir("/")


def _log(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _say(connection: socket.socket, word: str, end: str = "\n") -> None:
    with contextlib.suppress(OSError):
        connection.sendall((word + end).encode("utf-8", "backslashreplace"))
