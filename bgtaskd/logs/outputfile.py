# SPDX-License-Identifier: LGPL-2.1-or-later
"""A task's output on disk, bounded: the head and the tail stay, a line between says how much went.

The file can be read as it is at any time. It grows by appending; when it reaches the cap, a new file is
written beside it (head, line, younger half of the tail) and renamed over it, so that who reads the old
one goes on reading something whole. Offsets count bytes as the task printed them.
"""

from __future__ import annotations

import os

COPY_SIZE = 1 << 20
MARKER_MAX = 64


def marker(dropped: int) -> bytes:
    """The line that stands for what was dropped."""
    return b"\n[bgtaskd: %d bytes dropped]\n" % dropped


def file_name(attempt: int) -> str:
    """output, then output.2, output.3, … as the units are named."""
    return "output" if attempt <= 1 else f"output.{attempt}"


class OutputFile:
    """The writing end. The directory and the file are made with the first byte."""

    def __init__(self, tasks_dir: int, task_id: int, attempt: int, cap: int) -> None:
        self._tasks_dir = tasks_dir
        self._id = str(task_id)
        self._name = file_name(attempt)
        self._head = max(1, cap // 4)
        self._cap = cap
        self._fd = -1
        self._dir = -1
        self._size = 0
        self.total = 0
        self.dropped = 0
        self.error: str | None = None

    def write(self, data: bytes) -> None:
        """Append. A full disk loses output, never the task: ``error`` says so."""
        if not data:
            return
        self.total += len(data)
        try:
            if self._fd < 0:
                self._open()
            if len(data) > self._cap // 2:
                self._write_much(data)
            else:
                self._append(data)
                if self._size > self._cap:
                    self._compact()
        except OSError as error:
            self.dropped += len(data)
            self.error = f"cannot write the output: {error.strerror}"

    def close(self) -> None:
        """Close both descriptors."""
        for fd in (self._fd, self._dir):
            if fd >= 0:
                os.close(fd)
        self._fd = self._dir = -1

    def _open(self) -> None:
        try:
            os.mkdir(self._id, 0o750, dir_fd=self._tasks_dir)
        except FileExistsError:
            pass
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._dir = os.open(self._id, flags, dir_fd=self._tasks_dir)
        self._fd = self._create(self._name)

    def _create(self, name: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, 0o640, dir_fd=self._dir)

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.write(self._fd, view)
            self._size += written
            view = view[written:]

    def _write_much(self, data: bytes) -> None:
        step = self._cap // 2
        for start in range(0, len(data), step):
            self._append(data[start : start + step])
            if self._size > self._cap:
                self._compact()

    def _compact(self) -> None:
        keep = self._cap // 2
        tail_from = self._size - keep
        already = MARKER_MAX if self.dropped else 0
        if tail_from <= self._head + already:
            return
        old = marker(self.dropped) if self.dropped else b""
        dropped = self.dropped + tail_from - self._head - len(old)
        fresh = self._create(self._name + ".new")
        try:
            _copy(self._fd, fresh, 0, self._head)
            os.write(fresh, marker(dropped))
            _copy(self._fd, fresh, tail_from, keep)
        except OSError:
            os.close(fresh)
            raise
        os.rename(self._name + ".new", self._name, src_dir_fd=self._dir, dst_dir_fd=self._dir)
        os.close(self._fd)
        self._fd = fresh
        self.dropped = dropped
        self._size = self._head + len(marker(dropped)) + keep


def _copy(source: int, target: int, offset: int, count: int) -> None:
    while count > 0:
        data = os.pread(source, min(count, COPY_SIZE), offset)
        if not data:
            return
        os.write(target, data)
        offset += len(data)
        count -= len(data)


class NoFile:
    """Where no file is wanted: what goes by is counted, and that is all."""

    def __init__(self) -> None:
        self.total = 0
        self.dropped = 0
        self.error: str | None = None

    def write(self, data: bytes) -> None:
        """Count."""
        self.total += len(data)
