# SPDX-License-Identifier: LGPL-2.1-or-later
"""Waiting for processes by events: what they tell over a socket, and their end."""

import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path


class NotifySocket:
    """The receiving end of sd_notify."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def messages(
        self, sender: "subprocess.Popen[bytes]", timeout: float
    ) -> Iterator[tuple[str, str]]:
        """Each ``KEY=value`` told, until the sender ends or the time is over."""
        deadline = time.monotonic() + timeout
        while wait_readable(self._socket, sender, deadline - time.monotonic()):
            for line in self._socket.recv(65536).decode(errors="replace").splitlines():
                key, _, value = line.partition("=")
                yield key, value

    def close(self) -> None:
        self._socket.close()
        self.path.unlink(missing_ok=True)


def wait_readable(sock: socket.socket, peer: "subprocess.Popen[bytes]", timeout: float) -> bool:
    """Wait for something to read; False if the peer, a child of ours, ended or time is over."""
    end = os.pidfd_open(peer.pid)
    watched: list[socket.socket | int] = [sock, end]
    try:
        return sock in select.select(watched, [], [], max(timeout, 0))[0]
    finally:
        os.close(end)


def wait_for_end(pid: int, timeout: float) -> None:
    """Wait until a process, not necessarily a child, is dead."""
    try:
        end = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not select.select([end], [], [], timeout)[0]:
            raise TimeoutError(f"process {pid} is still there after {timeout:.0f} s")
    finally:
        os.close(end)
