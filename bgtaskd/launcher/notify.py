# SPDX-License-Identifier: LGPL-2.1-or-later
"""The task's notify socket: sd_notify(3) messages, and three variables of our own for progress."""

from __future__ import annotations

import os
import sys
from _socket import (
    AF_UNIX,
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    SCM_CREDENTIALS,
    SCM_RIGHTS,
    SO_PASSCRED,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOL_SOCKET,
    socket,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MESSAGE_MAX = 65536
TEXT_MAX = 4096
NUMBER_MAX = 1 << 53


class Message:
    """What one datagram said. ``report`` has the keys of the supervisor protocol."""

    __slots__ = ("alive", "extend_usec", "report")

    def __init__(self) -> None:
        self.report: dict[str, Any] = {}
        self.alive = False
        self.extend_usec: int | None = None


def parse(data: bytes) -> Message:
    """Read a datagram. What is not understood or out of bounds is passed over, as systemd does."""
    out = Message()
    for line in data[:MESSAGE_MAX].decode("utf-8", "replace").split("\n"):
        key, _, value = line.partition("=")
        if key == "STATUS":
            out.report["message"] = value[:TEXT_MAX]
        elif key == "WATCHDOG":
            out.alive = value == "1"
        elif key == "EXTEND_TIMEOUT_USEC":
            out.extend_usec = _number(value)
        elif key == "X_BGTASK_PROGRESS":
            percent = _percent(value)
            if percent is not None:
                out.report["percent"] = percent
        elif key == "X_BGTASK_REWIND":
            out.report["rewind"] = value == "1"
        elif key in ("X_BGTASK_FINISHED", "X_BGTASK_TOTAL"):
            number = _number(value)
            if number is not None:
                out.report[key[9:].lower()] = number
    return out


def _number(text: str) -> int | None:
    if text.isascii() and text.isdigit() and len(text) <= 16:
        return min(int(text), NUMBER_MAX)
    return None


def _percent(text: str) -> float | None:
    try:
        value = float(text[:32])
    except ValueError:
        return None
    return min(100.0, max(0.0, value)) if value == value else None


class NotifySocket:
    """A datagram socket that only the task's user may write to."""

    def __init__(self, path: str, uid: int) -> None:
        self.path = path
        self._socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK)
        self._socket.setsockopt(SOL_SOCKET, SO_PASSCRED, 1)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        before = os.umask(0o177)
        try:
            self._socket.bind(path)
        finally:
            os.umask(before)
        if os.geteuid() == 0:
            os.chown(path, uid, -1, follow_symlinks=False)

    def fileno(self) -> int:
        """For poll()."""
        return self._socket.fileno()

    def receive(self) -> tuple[bytes, int, int] | None:
        """One datagram, its sender's pid and uid; None when there is none left.

        Descriptors that came along are closed: that is the answer to BARRIER=1 (sd_notify_barrier(3)).
        """
        size = CMSG_SPACE(12) + CMSG_SPACE(4 * 64)
        try:
            data, ancillary, _, _ = self._socket.recvmsg(MESSAGE_MAX, size, MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return None
        pid = uid = -1
        for level, kind, content in ancillary:
            if level != SOL_SOCKET:
                continue
            if kind == SCM_RIGHTS:
                for at in range(0, len(content) // 4 * 4, 4):
                    os.close(_int(content, at))
            elif kind == SCM_CREDENTIALS:
                pid, uid = _int(content, 0), _int(content, 4)
        return data, pid, uid

    def close(self) -> None:
        """Close, and remove the path."""
        self._socket.close()
        try:
            os.unlink(self.path)
        except OSError:
            pass


def _int(content: bytes, at: int) -> int:
    return int.from_bytes(content[at : at + 4], sys.byteorder)
