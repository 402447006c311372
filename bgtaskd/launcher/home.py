# SPDX-License-Identifier: LGPL-2.1-or-later
"""The supervisor's call home: a stream to the daemon that mends itself.

PID 1 holds the listening socket, so a call while the daemon is down just waits. After every break the
first message is a whole snapshot; so a lost message costs nothing.
"""

from __future__ import annotations

import time
from _socket import AF_UNIX, SOCK_NONBLOCK, SOCK_STREAM, socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

RETRY_MIN = 0.05
RETRY_MAX = 1.0
BUFFER_MAX = 1 << 18
MESSAGE_MAX = 1 << 20


class Home:
    """One connection at a time; ``deadline`` says when to try again."""

    def __init__(self, path: str, hello: Callable[[], str]) -> None:
        self._path = path
        self._hello = hello
        self._socket: socket | None = None
        self._out = bytearray()
        self._in = bytearray()
        self._retry = RETRY_MIN
        self.deadline: float | None = 0.0

    def fileno(self) -> int:
        """The socket's descriptor; -1 while there is no connection."""
        return -1 if self._socket is None else self._socket.fileno()

    @property
    def wants_to_write(self) -> bool:
        """Whether bytes wait for the socket."""
        return bool(self._out)

    def connect(self) -> None:
        """Try once."""
        sock = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK)
        try:
            sock.connect(self._path)
        except OSError:
            sock.close()
            self.deadline = time.monotonic() + self._retry
            self._retry = min(RETRY_MAX, self._retry * 2)
            return
        self._socket = sock
        self._retry = RETRY_MIN
        self.deadline = None
        self._out.clear()
        self._in.clear()
        self.send(self._hello())

    def send(self, message: str) -> None:
        """Send, or buffer, one message, which is JSON.

        Without a connection it is dropped: the next hello has it all.
        """
        if self._socket is None:
            return
        self._out += message.encode() + b"\0"
        if len(self._out) > BUFFER_MAX:
            self.hang_up()  # the daemon hangs; a snapshot will do once it listens again
        else:
            self.flush()

    def flush(self) -> None:
        """Write what the socket takes."""
        while self._out and self._socket is not None:
            try:
                sent = self._socket.send(self._out)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.hang_up()
                return
            del self._out[:sent]

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have come in."""
        if self._socket is None:
            return []
        try:
            data = self._socket.recv(65536)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            data = b""
        if not data or len(self._in) > MESSAGE_MAX:
            self.hang_up()
            return []
        import json  # most tasks are never told anything

        self._in += data
        messages = []
        while (end := self._in.find(0)) >= 0:
            try:
                message = json.loads(self._in[:end])
            except ValueError:
                message = None
            del self._in[: end + 1]
            if isinstance(message, dict):
                messages.append(message)
        return messages

    def hang_up(self) -> None:
        """Give the connection up, and try again soon."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._out.clear()
            self.deadline = time.monotonic() + self._retry
