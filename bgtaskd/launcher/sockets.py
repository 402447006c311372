# SPDX-License-Identifier: LGPL-2.1-or-later
"""Named listening sockets, on which long-living tasks are called.

They outlive the tasks, so a call made while a task is being restarted waits in the socket's queue; and they
outlive the launcher, for PID 1 keeps them for it (FDSTORE=1, sd_pid_notify_with_fds(3)). Only when the
launcher's service is stopped, not restarted, are they gone; then a fresh one is made, and the caller told.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

PREFIX: Final = "task-"
BACKLOG: Final = 4096


class Sockets:
    """By the task's name."""

    def __init__(self, directory: str, kept: dict[str, int]) -> None:
        """``kept``: descriptors that systemd has kept, by FDNAME."""
        self._directory = directory
        self._sockets: dict[str, socket.socket] = {}
        for fdname, fd in kept.items():
            if fdname.startswith(PREFIX):
                os.set_inheritable(fd, False)
                self._sockets[fdname.removeprefix(PREFIX)] = socket.socket(fileno=fd)

    def path(self, name: str) -> str:
        """Where a task is called."""
        return f"{self._directory}/{name}.sock"

    def ensure(self, name: str, owner: int, group: int, mode: int) -> bool:
        """Have a socket for this task, with this owner, group and mode; whether it is a fresh one.

        Raises OSError.
        """
        path = self.path(name)
        fresh = name not in self._sockets or not os.path.exists(path)
        if fresh:
            self.drop(name)
            self._sockets[name] = self._bind(name, path)
        if os.geteuid() == 0:
            os.chown(path, owner, group, follow_symlinks=False)
        os.chmod(path, mode)
        return fresh

    def drop(self, name: str) -> None:
        """There is no such task any more."""
        sock = self._sockets.pop(name, None)
        if sock is not None:
            sock.close()
            _tell_systemd(f"FDSTOREREMOVE=1\nFDNAME={PREFIX}{name}")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path(name))

    def names(self) -> list[str]:
        """Of all there are."""
        return list(self._sockets)

    def get(self, name: str) -> socket.socket | None:
        """The socket of a task."""
        return self._sockets.get(name)

    def _bind(self, name: str, path: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        sock.listen(BACKLOG)
        sock.setblocking(False)
        _tell_systemd(f"FDSTORE=1\nFDNAME={PREFIX}{name}", sock.fileno())
        return sock


_notify: str | None = None


def notify_at(address: str | None) -> None:
    """Where systemd is told (NOTIFY_SOCKET, which tasks must not see)."""
    global _notify
    _notify = address


def _tell_systemd(text: str, fd: int | None = None) -> None:
    if not _notify:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.connect("\0" + _notify[1:] if _notify.startswith("@") else _notify)
        if fd is None:
            sock.send(text.encode())
        else:
            socket.send_fds(sock, [text.encode()], [fd])
