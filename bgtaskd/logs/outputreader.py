# SPDX-License-Identifier: LGPL-2.1-or-later
"""The reading end of a task's output file; see outputfile."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from bgtaskd.logs.outputfile import MARKER_MAX, file_name

MARKER = re.compile(rb"\n\[bgtaskd: (\d+) bytes dropped\]\n")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of output: ``data`` begins at ``offset``; ``dropped`` bytes are gone in all."""

    data: bytes
    offset: int
    next_offset: int
    dropped: int
    total: int


class OutputReader:
    """Reads what an OutputFile with the same cap wrote."""

    def __init__(self, tasks_dir: str, task_id: int, attempt: int, cap: int) -> None:
        self._path = f"{tasks_dir}/{task_id}/{file_name(attempt)}"
        self._head = max(1, cap // 4)

    def read(self, offset: int, limit: int) -> Chunk:
        """At most ``limit`` bytes from ``offset`` (negative: before the end). What was dropped is skipped."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return Chunk(b"", max(0, offset), max(0, offset), 0, 0)
        try:
            return self._read(fd, offset, limit)
        finally:
            os.close(fd)

    def _read(self, fd: int, offset: int, limit: int) -> Chunk:
        size = os.fstat(fd).st_size
        found = MARKER.match(os.pread(fd, MARKER_MAX, self._head)) if size > self._head else None
        dropped = int(found[1]) if found else 0
        mark = len(found[0]) if found else 0
        total = size - mark + dropped
        if offset < 0:
            offset = max(0, total + offset)
        if found and offset < self._head:
            data = os.pread(fd, min(limit, self._head - offset), offset)
        elif found:
            offset = max(offset, self._head + dropped)
            data = os.pread(fd, limit, offset - dropped + mark)
        else:
            data = os.pread(fd, limit, offset)
        return Chunk(data, offset, offset + len(data), dropped, total)
