# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fork server: a lean process whose forks are the supervisors.

Started as `python3 -I -S …/forkserver.py FD …`: no site, no module that is not built in but os and our own
few, so that a fork costs a third of a millisecond and a supervisor about a mebibyte. It does nothing but
fork: one datagram with one socket, one supervisor ("w": for a task that is to be forked from a template, so
without a process of its own). When the launcher's end closes, it goes; its forks stay.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal.py would bring enum
import gc
import marshal
import os
import sys
from _socket import CMSG_LEN, MSG_CMSG_CLOEXEC, socket

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from bgtaskd.launcher import child
from bgtaskd.launcher.places import Places
from bgtaskd.launcher.plainjson import dumps
from bgtaskd.launcher.records import AlreadyLaunched
from bgtaskd.launcher.supervisor import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


BARE = b"w"
# The first three are meant for tasks; the others are what Python itself ignores, for the sake of errors.
IGNORED = ("SIGINT", "SIGHUP", "SIGTERM", "SIGPIPE", "SIGXFSZ")


def main(argv: list[str]) -> None:
    """Serve until the launcher hangs up. argv: the socket's descriptor, then Places in its order."""
    server = socket(fileno=int(argv[0]))
    places = Places(int(argv[1]), int(argv[2]), argv[3], argv[4] == "scopes")
    for number in _signal.valid_signals():
        if _signal.getsignal(number) == _signal.SIG_IGN:
            _signal.signal(number, _signal.SIG_DFL)  # as whoever started us had it; no task shall
    for name in IGNORED:
        _signal.signal(getattr(_signal, name), _signal.SIG_IGN)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)  # the kernel reaps supervisors
    os.chdir("/")
    for fd in (server.fileno(), places.exits, places.tasks):
        os.set_inheritable(fd, False)  # we came by them through exec; no task may
    gc.collect()
    gc.freeze()  # the collector must not write into pages that all forks share
    gc.disable()
    while True:
        data, ancillary, _, _ = server.recvmsg(16, CMSG_LEN(4), MSG_CMSG_CLOEXEC)
        if not data:
            return
        launcher = socket(fileno=int.from_bytes(ancillary[0][2], sys.byteorder))
        if os.fork() == 0:
            server.close()
            _supervise(launcher, places, data == BARE)
        launcher.close()


def _supervise(launcher: socket, places: Places, bare: bool) -> None:
    """The life of one supervisor; ends the process."""
    try:
        os.setsid()
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        _launch(launcher, places, bare)
    except BaseException as error:  # noqa: BLE001 - nothing may escape into the fork server's loop
        _say(f"{type(error).__name__}: {error}")
        os._exit(1)
    os._exit(0)


def _launch(launcher: socket, places: Places, bare: bool) -> None:
    task = None if bare else child.fork()
    supervisor = Supervisor(places)
    if task is not None:
        supervisor.adopt(task)
    _answer(launcher, {"pid": supervisor.pid})
    data, fds = _read_request(launcher)
    if data is None:
        return  # a spare that was never needed; its task's process finds the gate closed, and goes too
    try:
        request = marshal.loads(data)  # noqa: S302 - from the launcher that started us
        supervisor.register(request, fds)
    except AlreadyLaunched:
        _answer(launcher, {"error": "AlreadyLaunched", "reason": "the attempt has a record"})
        return
    if supervisor.request["template"] is not None:
        _answer(launcher, {"forked": supervisor.pid})
    _signal.signal(_signal.SIGTERM, supervisor.on_shutdown)
    try:
        word = launcher.recv(1)
    except OSError:
        word = b""
    if word != b"g":
        supervisor.not_started("the launcher went away before the scope was up")
        return
    supervisor.open_gate()
    _answer(launcher, {"started": supervisor.started})
    launcher.close()
    supervisor.run()


def _read_request(sock: socket) -> tuple[bytes | None, list[int]]:
    """A length in eight bytes, perhaps with a descriptor, then so many; None where the launcher hung up."""
    try:
        length, ancillary, _, _ = sock.recvmsg(8, CMSG_LEN(4), MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return None, []
    fds = [int.from_bytes(rights, sys.byteorder) for _, _, rights in ancillary]
    if 0 < len(length) < 8:
        length += _read_exactly(sock, 8 - len(length)) or b""
    return (_read_exactly(sock, int.from_bytes(length, "big")) if len(length) == 8 else None), fds


def _read_exactly(sock: socket, size: int) -> bytes | None:
    """No more than ``size`` bytes, for "go" may follow at once."""
    data = b""
    while len(data) < size:
        try:
            piece = sock.recv(min(size - len(data), 1 << 18))
        except ConnectionError:
            return None
        if not piece:
            return None
        data += piece
    return data


def _answer(sock: socket, message: dict[str, Any]) -> None:
    """Tell the launcher; if it was killed, the next one asks the record."""
    try:
        sock.sendall(dumps(message).encode() + b"\0")
    except OSError:
        pass


def _say(text: str) -> None:
    os.write(2, f"<3>supervisor {os.getpid()}: {text}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1:])
