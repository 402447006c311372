# SPDX-License-Identifier: LGPL-2.1-or-later
"""A task's process that is forked from a template: a process of the same user with the app's modules loaded.

The template listens on a socket that its own supervisor has bound, where only root (or whose daemon it is)
can connect. A connection is one task: the template forks; the child says a word, with whose credentials the
kernel tells its pid; it waits for its scope, then for the request, and runs. How it ended its parent tells,
which is the template; where that was killed meanwhile, what the child itself said when it left.

What comes from there is the task's user's own doing: it can be wrong about this task, and about nothing else.
"""

from __future__ import annotations

import marshal
import os
import resource
import select
import sys
import time
from _socket import (
    AF_UNIX,
    CMSG_LEN,
    CMSG_SPACE,
    SCM_CREDENTIALS,
    SCM_RIGHTS,
    SO_PASSCRED,
    SO_SNDBUF,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)

from bgtaskd.launcher.plainjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FORK_PATIENCE = 2.0
"""Seconds for a fork; after that the task starts as if there were no template."""
RUN_PATIENCE = 10.0
STATUS_PATIENCE = 5.0
SAID_MAX = 8192
UNSEEN = "the process that it was forked from was killed, so nobody saw how it ended"


class NoTemplate(Exception):
    """The template is not there, is being replaced, or is not the right user's."""


class Used:
    """As much of wait4(2)'s struct rusage as is wanted."""

    __slots__ = ("ru_inblock", "ru_maxrss", "ru_oublock", "ru_stime", "ru_utime")

    def __init__(self, cpu_usec: int, maxrss: int, inblock: int, oublock: int) -> None:
        self.ru_utime, self.ru_stime = cpu_usec / 1e6, 0.0
        self.ru_maxrss, self.ru_inblock, self.ru_oublock = maxrss, inblock, oublock


def listen(path: str) -> int:
    """The descriptor of a template's socket, which is made."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    sock = socket(AF_UNIX, SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.bind(path)
    finally:
        os.umask(before)
    sock.listen(1024)
    return sock.detach()


def unlisten(path: str) -> None:
    """Remove what listen() made."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


class WarmChild:
    """What Child is for a process that was forked here. Raises NoTemplate."""

    __slots__ = ("_inward", "_said", "_socket", "pid", "pidfd", "stderr", "stdout")

    def __init__(self, path: str, uid: int) -> None:
        self._socket = socket(AF_UNIX, SOCK_STREAM)
        try:
            self._socket.setsockopt(SOL_SOCKET, SO_PASSCRED, 1)
            self._socket.setsockopt(SOL_SOCKET, SO_SNDBUF, 1 << 21)
            self._socket.settimeout(FORK_PATIENCE)
            self._socket.connect(path)
            word, ancillary, _, _ = self._socket.recvmsg(1, CMSG_SPACE(12) + CMSG_LEN(64))
            self._said = b""
            self.pid = _sender(ancillary, uid) if word else 0
            if not self.pid:
                raise NoTemplate
            self.pidfd = os.pidfd_open(self.pid)
        except OSError:
            self._socket.close()
            raise NoTemplate from None
        except NoTemplate:
            self._socket.close()
            raise
        self.stdout, stdout = os.pipe()
        self.stderr, stderr = os.pipe()
        self._inward = [stdout, stderr]

    def close_gate(self) -> None:
        """Let it go without having run."""
        self._socket.close()

    def forget(self) -> None:
        """It will not run; it goes when it hears that."""
        self._socket.close()

    def is_alive(self) -> bool:
        """Whether the number is still that of the process that spoke."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def open_gate(self, marshalled: bytes, handover: bytes, stdin: int | None) -> str:
        """Let it run; what went wrong, or nothing. ``marshalled``: as Child.open_gate() has it."""
        program: dict[str, Any] = marshal.loads(marshalled)  # noqa: S302 - from our launcher
        if not self.is_alive():
            return "its process was killed before it could run"
        for number, soft, hard in program["limits"]:
            try:
                resource.prlimit(self.pid, number, (soft, hard))
            except PermissionError:
                pass  # without CAP_SYS_RESOURCE: the child can lower it by itself, and says if it cannot
        if program["nice"] is not None:
            try:
                os.setpriority(os.PRIO_PROCESS, self.pid, program["nice"])
            except OSError as error:
                return f"cannot set Nice: {error.strerror}"
        _write_oom_score(self.pid, program["oom_score_adjust"] or 0)
        program["limits"] = [list(one) for one in program["limits"]]
        request = dumps(
            {name: program[name] for name in ("env", "cwd", "umask", "limits")}
            | {"stdin": stdin is not None}
        ).encode("utf-8", "surrogateescape")
        fds = [*self._inward, *([] if stdin is None else [stdin])]
        rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
        sizes = len(request).to_bytes(8, "big") + len(handover).to_bytes(8, "big")
        try:
            self._socket.settimeout(RUN_PATIENCE)
            self._socket.sendmsg([sizes], [(SOL_SOCKET, SCM_RIGHTS, rights)])
            self._socket.sendall(request + handover)
            answer = self._word(RUN_PATIENCE)
        except OSError:
            answer = None
        for fd in self._inward:
            os.close(fd)
        if answer is None:
            return "its process was killed before it could run"
        return answer.decode("utf-8", "replace")

    def wait(self) -> tuple[int | None, Used | None]:
        """Its status and what it used, once it has ended: None where nobody saw it."""
        deadline = time.monotonic() + STATUS_PATIENCE
        own = None
        while (word := self._word(deadline - time.monotonic())) is not None:
            name, *numbers = word.split(b" ")
            if not numbers or not all(one.isdigit() and len(one) < 16 for one in numbers):
                break
            if name == b"status" and len(numbers) == 5:
                return int(numbers[0]) & 0xFFFF, Used(*[int(one) for one in numbers[1:]])
            own = int(numbers[0]) & 0xFFFF  # its own word; its parent's may follow
        return own, None

    def _word(self, patience: float) -> bytes | None:
        """What is said up to the end of the line; None where there is no more."""
        while (end := self._said.find(b"\n")) < 0:
            if len(self._said) > SAID_MAX:
                return None
            try:
                self._socket.settimeout(max(0.001, patience))
                piece = self._socket.recv(4096)
            except OSError:
                return None
            if not piece:
                return None
            self._said += piece
        word, self._said = self._said[:end], self._said[end + 1 :]
        return word


def _sender(ancillary: list[tuple[int, int, bytes]], uid: int) -> int:
    """The pid of who spoke, if it is this user's process; otherwise 0."""
    pid = 0
    for level, kind, content in ancillary:
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
            for at in range(0, len(content) // 4 * 4, 4):
                os.close(_int(content, at))
        elif (level, kind) == (SOL_SOCKET, SCM_CREDENTIALS) and _int(content, 4) == uid:
            pid = _int(content, 0)
    return pid


def _int(content: bytes, at: int) -> int:
    return int.from_bytes(content[at : at + 4], sys.byteorder)


def _write_oom_score(pid: int, value: int) -> None:
    try:
        with open(f"/proc/{pid}/oom_score_adj", "wb", buffering=0) as file:
            file.write(b"%d" % value)
    except OSError:
        pass  # without root it can only be raised
