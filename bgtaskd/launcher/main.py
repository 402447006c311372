# SPDX-License-Identifier: LGPL-2.1-or-later
"""bgtaskd-launcher: the hand. Root, small, and trusts nobody: every request is checked here again.

One poll() loop over the daemon's connections, PID 1's bus and the supervisors being started.
"""

from __future__ import annotations

import argparse
import contextlib
import grp
import json
import os
import pwd
import resource
import select
import socket
import struct
import sys
import traceback
from typing import Any, Final

from bgtaskd.launcher import sockets
from bgtaskd.launcher.messages import MESSAGE_MAX, BadMessage, integer
from bgtaskd.launcher.operations import Operations, Refused
from bgtaskd.launcher.places import Places
from bgtaskd.launcher.policy import NotAllowed, UidPolicy
from bgtaskd.launcher.supervision import CORE_LIMIT
from bgtaskd.launcher.workers import Workers
from bgtaskd.workers import DIRECTORY

LISTEN_FD: Final = 3


class Connection:
    """One connection of the daemon: requests in, replies out, both bounded."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._in = bytearray()
        self._out = bytearray()
        self.closed = False

    def receive(self) -> list[bytes]:
        """Whole messages that have come in."""
        try:
            data = self.socket.recv(1 << 18)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data or len(self._in) > MESSAGE_MAX:
            self.closed = True
            return []
        self._in += data
        *whole, rest = self._in.split(b"\0")
        self._in = rest
        return [bytes(one) for one in whole]

    def reply(self, message: dict[str, Any]) -> None:
        """Answer; what the socket does not take now goes later."""
        self._out += json.dumps(message).encode() + b"\0"
        self.flush()

    def flush(self) -> None:
        """Write what the socket takes."""
        with contextlib.suppress(BlockingIOError):
            try:
                while self._out:
                    del self._out[: self.socket.send(self._out)]
            except BlockingIOError:
                raise
            except OSError:
                self.closed = True
                self._out.clear()

    @property
    def events(self) -> int:
        """What to poll for."""
        return select.POLLIN | (select.POLLOUT if self._out else 0)


class Launcher:
    """The loop."""

    def __init__(self, listener: socket.socket, peers: set[int], operations: Operations) -> None:
        self._listener = listener
        self._peers = peers
        self._operations = operations

    def run(self, until: int | None = None) -> None:
        """For ever, or until a descriptor is at its end."""
        operations = self._operations
        connections: dict[int, Connection] = {}
        while True:
            poll = select.poll()
            poll.register(self._listener, select.POLLIN)
            for fd, connection in connections.items():
                poll.register(fd, connection.events)
            watched = operations.watched()
            for fd in watched:
                poll.register(fd, select.POLLIN)
            if until is not None:
                poll.register(until, select.POLLIN)
            ready = {fd for fd, _ in poll.poll(operations.timeout_ms())}
            if until in ready:
                return
            for fd in ready & watched.keys():
                watched[fd]()
            for fd, connection in list(connections.items()):
                if fd in ready:
                    self._serve(connection)
                if connection.closed:
                    connection.socket.close()
                    del connections[fd]
            if self._listener.fileno() in ready:
                fresh = self._accept()
                if fresh is not None:
                    connections[fresh.socket.fileno()] = fresh
            operations.tick()

    def _accept(self) -> Connection | None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return None
        peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
        if struct.unpack("iII", peer)[1] not in self._peers:
            sock.close()
            return None
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        return Connection(sock)

    def _serve(self, connection: Connection) -> None:
        connection.flush()
        for data in connection.receive():
            self._handle(connection, data)

    def _handle(self, connection: Connection, data: bytes) -> None:
        seq: Any = None

        def answer(message: dict[str, Any]) -> None:
            connection.reply({"seq": seq, **message})

        try:
            message = json.loads(data)
            if not isinstance(message, dict):
                raise BadMessage("message", "must be a JSON object")
            seq = integer(message, "seq", 0, 1 << 53)
            self._operations.perform(message, answer)
        except BadMessage as error:
            answer({"error": "BadMessage", "reason": str(error)})
        except (ValueError, RecursionError) as error:
            answer({"error": "BadMessage", "reason": f"not JSON: {error}"})
        except NotAllowed as error:
            answer({"error": "NotAllowed", "reason": str(error)})
        except Refused as error:
            answer({"error": error.name, "reason": str(error)})
        except Exception as error:  # noqa: BLE001 - one request's trouble is not all tasks' trouble
            sys.stderr.write(f"<3>{traceback.format_exc()}")
            answer({"error": "Failed", "reason": f"{type(error).__name__}: {error}"})


def main() -> None:
    """Entry point of bgtaskd-launcher."""
    parser = argparse.ArgumentParser(prog="bgtaskd-launcher", description=__doc__)
    parser.add_argument("--mode", choices=("scope", "user", "process"), default="scope")
    parser.add_argument("--state", default="/var/lib/bgtaskd", help="where exits/ and tasks/ are")
    parser.add_argument("--run", default="/run/bgtaskd", help="where the sockets are")
    parser.add_argument("--workers", help="where named tasks are defined")
    parser.add_argument(
        "--until-stdin-ends",
        action="store_true",
        help="end with the process that holds the other end of our standard input",
    )
    arguments = parser.parse_args()
    system = arguments.mode == "scope"
    listener, kept = _sockets(arguments.run)
    group = grp.getgrnam("bgtaskd").gr_gid if system else -1
    peers = {0, pwd.getpwnam("bgtaskd").pw_uid} if system else {os.getuid()}
    places = Places(
        exits=_directory(f"{arguments.state}/exits", group),
        tasks=_directory(f"{arguments.state}/tasks", group),
        run=arguments.run,
        has_scopes=arguments.mode != "process",
    )
    directories = {"notify": 0o711, "credentials": 0o711, "templates": 0o700, "tasks": 0o755}
    for name, mode in directories.items():
        os.makedirs(f"{arguments.run}/{name}", mode, exist_ok=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, CORE_LIMIT[1]))
    sockets.notify_at(os.environ.get("NOTIFY_SOCKET"))
    workers = Workers(
        arguments.workers or _definitions(arguments.mode),
        sockets.Sockets(f"{arguments.run}/tasks", kept),
        system,
    )
    operations = Operations(arguments.mode, places, UidPolicy(system), workers)
    _tell_systemd("READY=1\nSTATUS=Ready to launch tasks")
    Launcher(listener, peers, operations).run(0 if arguments.until_stdin_ends else None)


def _definitions(mode: str) -> str:
    if mode == "scope":
        return DIRECTORY
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return f"{home}/bgtaskd/tasks.d"


def _sockets(run: str) -> tuple[socket.socket, dict[str, int]]:
    """The daemon's way to us; and what systemd has kept for us while we were away."""
    kept: dict[str, int] = {}
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        names = os.environ.get("LISTEN_FDNAMES", "").split(":")
        count = int(os.environ.get("LISTEN_FDS", "0"))
        kept = {name: LISTEN_FD + number for number, name in enumerate(names[:count])}
    fd = kept.pop("launcher", None)
    if fd is not None:
        sock = socket.socket(fileno=fd)
        os.set_inheritable(fd, False)
    else:
        path = f"{run}/launcher.sock"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        sock = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)
        sock.bind(path)
        os.umask(before)
        sock.listen(16)
    sock.setblocking(False)
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    return sock, kept


def _directory(path: str, group: int) -> int:
    """A directory of the launcher's own that the daemon may only read; its descriptor."""
    os.makedirs(path, 0o750, exist_ok=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if os.geteuid() == 0:
        os.fchown(fd, 0, group)
        os.fchmod(
            fd, 0o2750
        )  # setgid: the daemon must be able to read what supervisors write in it
    return fd


def _tell_systemd(text: str) -> None:
    import sdnotify

    notifier = sdnotify.SystemdNotifier()
    notifier.notify(text)
    os.environ.pop("NOTIFY_SOCKET", None)  # it is not the tasks' socket


if __name__ == "__main__":
    main()
