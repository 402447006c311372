# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a task's progress gets out: datagrams to its supervisor, or calls to the daemon where there is none."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any, Final

INTERVAL: Final = 0.05
LAST_SECONDS: Final = 1.0
VARIABLES: Final = {
    "message": "STATUS",
    "percent": "X_BGTASK_PROGRESS",
    "finished": "X_BGTASK_FINISHED",
    "total": "X_BGTASK_TOTAL",
    "rewind": "X_BGTASK_REWIND",
}
MESSAGE_MAX: Final = 4096


class Reporter:
    """Sends at once what comes rarely; what comes often is folded, and the last of it is always sent."""

    def __init__(self, address: str) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._pending: dict[str, Any] = {}
        self._next = 0.0
        self._some = threading.Event()
        self._thread: threading.Thread | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def report(self, **progress: Any) -> None:
        """Tell: percent, finished, total, message, rewind; what is None is not told."""
        given = {key: value for key, value in progress.items() if value is not None}
        if self._pid != os.getpid():
            self._lock = (
                threading.Lock()
            )  # a fork: the parent's thread, and maybe its lock, are not here
            self._reset()
        with self._lock:
            self._pending.update(given)
            if time.monotonic() >= self._next and self._send():
                return
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._later, name="bgtaskd-report", daemon=True
                )
                self._thread.start()
        self._some.set()

    def flush(self) -> None:
        """Send what is left; a supervisor that is busy is waited for, a little."""
        end = time.monotonic() + LAST_SECONDS
        while self._pending and self._pid == os.getpid():
            with self._lock:
                if self._send() or time.monotonic() >= end:
                    return
            time.sleep(INTERVAL / 10)

    def _later(self) -> None:
        while True:
            self._some.wait()
            self._some.clear()
            time.sleep(max(0.0, self._next - time.monotonic()))
            with self._lock:
                if not self._send():
                    self._next = time.monotonic() + INTERVAL
                    self._some.set()

    def _send(self) -> bool:
        """Send what is pending, with the lock held; whether nothing is left."""
        if not self._pending:
            return True
        lines = [f"{VARIABLES[key]}={_line(value)}" for key, value in self._pending.items()]
        try:
            self._socket.sendto("\n".join(lines).encode("utf-8", "replace"), self._address)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            pass  # the supervisor is gone: nobody can be told any more
        self._pending = {}
        self._next = time.monotonic() + INTERVAL
        return True


def _line(value: Any) -> str:
    if value is True:
        return "1"
    if isinstance(value, str):
        return " ".join(value.splitlines())[:MESSAGE_MAX]
    return f"{value:.6g}" if isinstance(value, float) else str(value)
