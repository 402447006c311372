# SPDX-License-Identifier: LGPL-2.1-or-later
"""The writing end of a task's standard input, where the task has one that can be written to."""

from __future__ import annotations

import os

BUFFER_MAX = 1 << 20


class Stdin:
    """A pipe, and what the task has not read yet beyond what the pipe holds."""

    __slots__ = ("_buffer", "_ends", "fd")

    def __init__(self) -> None:
        self.fd = -1
        self._buffer = b""
        self._ends = False

    @property
    def wants_to_write(self) -> bool:
        """Whether bytes wait for room in the pipe."""
        return bool(self._buffer)

    def open(self) -> int:
        """Make the pipe; the reading end, for the task."""
        reading, self.fd = os.pipe()
        os.set_blocking(self.fd, False)
        return reading

    def send(self, data: bytes, eof: bool) -> bool:
        """Write, now or later, and close after that if ``eof``; whether it was taken."""
        is_full = self.wants_to_write and len(self._buffer) + len(data) > BUFFER_MAX
        if self.fd < 0 or self._ends or is_full:
            return False
        waits = self.wants_to_write
        self._buffer += data
        self._ends = eof
        if not waits:
            self.flush()
        return self.fd >= 0 or eof

    def flush(self) -> None:
        """Write what the pipe takes."""
        try:
            while self._buffer:
                self._buffer = self._buffer[os.write(self.fd, self._buffer) :]
        except BlockingIOError:
            return
        except OSError:  # the task has closed its end
            self._buffer, self._ends = b"", True
        if self._ends:
            os.close(self.fd)
            self.fd = -1
