# SPDX-License-Identifier: LGPL-2.1-or-later
"""The task's notify socket: sd_notify(3) messages, and three variables of our own for progress."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

MESSAGE_MAX = 65536
TEXT_MAX = 4096
NUMBER_MAX = 1 << 53


@dataclass(slots=True)
class Message:
    """What one datagram said. ``report`` has the keys of the supervisor protocol."""

    report: dict[str, Any] = field(default_factory=dict)
    alive: bool = False
    extend_usec: int | None = None


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
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
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
        size = socket.CMSG_SPACE(12) + socket.CMSG_SPACE(4 * 64)
        try:
            data, ancillary, _, _ = self._socket.recvmsg(MESSAGE_MAX, size, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return None
        pid = uid = -1
        for level, kind, content in ancillary:
            if level != socket.SOL_SOCKET:
                continue
            if kind == socket.SCM_RIGHTS:
                for (fd,) in struct.iter_unpack("i", content[: len(content) // 4 * 4]):
                    os.close(fd)
            elif kind == socket.SCM_CREDENTIALS:
                pid, uid, _ = struct.unpack("iII", content[:12])
        return data, pid, uid

    def close(self) -> None:
        """Close, and remove the path."""
        self._socket.close()
        try:
            os.unlink(self.path)
        except OSError:
            pass
