# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fork server: a lean process whose forks are the supervisors.

Started as `python3 -I -S …/forkserver.py FD …`: no site, nothing but the standard library, so that a
fork costs a third of a millisecond and each supervisor less than a mebibyte. It does nothing but fork:
one datagram with one socket, one supervisor. When the launcher's end closes, it goes; its forks stay.
"""

from __future__ import annotations

import gc
import json
import marshal
import os
import signal
import socket
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from bgtaskd.launcher import child
from bgtaskd.launcher.messages import MESSAGE_MAX, Launch
from bgtaskd.launcher.records import AlreadyLaunched
from bgtaskd.launcher.supervisor import Places, Supervisor

REQUEST_MAX = 2 * MESSAGE_MAX


def main(argv: list[str]) -> None:
    """Serve until the launcher hangs up. argv: the socket's descriptor, then Places as JSON."""
    server = socket.socket(fileno=int(argv[0]))
    places = Places(**json.loads(argv[1]))
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps supervisors
    os.chdir("/")
    for fd in (server.fileno(), places.exits, places.tasks):
        os.set_inheritable(fd, False)  # we came by them through exec; no task may
    gc.collect()
    gc.freeze()  # the collector must not write into pages that all forks share
    while True:
        data, fds, _, _ = socket.recv_fds(server, 16, 1)
        if not data:
            return
        for fd in fds:
            os.set_inheritable(fd, False)  # recv_fds() of Python 3.11 passes no MSG_CMSG_CLOEXEC on
        if os.fork() == 0:
            server.close()
            _supervise(socket.socket(fileno=fds[0]), places)
        for fd in fds:
            os.close(fd)


def _supervise(launcher: socket.socket, places: Places) -> None:
    """The life of one supervisor; ends the process."""
    try:
        os.setsid()
        gc.disable()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _launch(launcher, places)
    except BaseException as error:  # noqa: BLE001 - nothing may escape into the fork server's loop
        _say(f"{type(error).__name__}: {error}")
        os._exit(1)
    os._exit(0)


def _launch(launcher: socket.socket, places: Places) -> None:
    task = child.fork()
    request = marshal.loads(_read_request(launcher))  # noqa: S302 - from the launcher that started us
    launch = Launch(**request["launch"])
    supervisor = Supervisor(launch, request["program"], request["runtime_max_usec"], places, task)
    signal.signal(signal.SIGTERM, supervisor.on_shutdown)
    try:
        supervisor.register()
    except AlreadyLaunched:
        _answer(launcher, {"error": "AlreadyLaunched", "reason": "the attempt has a record"})
        return
    try:
        _answer(launcher, {"pid": task.pid})
        word = launcher.recv(1)
    except OSError:
        word = b""
    if word != b"g":
        supervisor.not_started("the launcher went away before the scope was up")
        return
    supervisor.open_gate()
    try:
        _answer(launcher, {"started": supervisor.started})
    except OSError:
        pass  # the launcher was killed; the daemon hears of the start from the supervisor itself
    launcher.close()
    supervisor.run()


def _read_request(sock: socket.socket) -> bytes:
    """A length in eight bytes, then so many."""
    data = bytearray()
    while len(data) < 8 or len(data) < 8 + int.from_bytes(data[:8], "big"):
        piece = sock.recv(1 << 16)
        if not piece or len(data) > REQUEST_MAX:
            raise ConnectionError("the launcher hung up")
        data += piece
    return bytes(data[8:])


def _answer(sock: socket.socket, message: dict[str, object]) -> None:
    sock.sendall(json.dumps(message).encode() + b"\0")


def _say(text: str) -> None:
    os.write(2, f"<3>supervisor {os.getpid()}: {text}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1:])
