# SPDX-License-Identifier: LGPL-2.1-or-later
"""From a task's pipes to the journal, line by line, and to its output file, byte by byte."""

from __future__ import annotations

import time

from bgtaskd.logs.journal import Journal, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bgtaskd.logs.outputfile import NoFile, OutputFile

LINE_MAX = 48 * 1024
BURST_USEC = 30_000_000


class Capture:
    """Both streams of one attempt."""

    def __init__(
        self,
        output: OutputFile | NoFile,
        make_journal: Callable[[], Journal] | None,
        prefix: bytes,
        burst: int,
    ) -> None:
        """``make_journal``: None where nothing is to go to the journal. ``prefix``: its entries' fields."""
        self._output = output
        self._make_journal = make_journal
        self._journal: Journal | None = None
        self._prefix = prefix
        self._partial = {1: b"", 2: b""}
        self._burst = burst
        self._window = 0.0
        self._sent = 0
        self._suppressed = 0

    def take(self, stream: int, data: bytes) -> None:
        """Output of stream 1 (stdout) or 2 (stderr)."""
        self._output.write(data)
        if self._make_journal is None:
            return
        self._look_at_window()
        if self._sent >= self._burst:
            self._suppress(stream, data)
            return
        lines = (self._partial[stream] + data).split(b"\n")
        rest = lines.pop()
        while len(rest) > LINE_MAX:
            lines.append(rest[:LINE_MAX])
            rest = rest[LINE_MAX:]
        self._partial[stream] = rest
        for line in lines:
            self._line(stream, line)

    def finish(self) -> None:
        """Flush lines that never ended."""
        for stream, rest in self._partial.items():
            if rest:
                self._line(stream, rest)
        self._partial = {1: b"", 2: b""}
        self._tell_suppressed()

    def note(self, text: str, priority: int = 5) -> None:
        """A line of bgtaskd's own about the task."""
        self._send(priority, text.encode("utf-8", "replace"))

    def _look_at_window(self) -> None:
        now = time.monotonic()
        if now - self._window > BURST_USEC / 1e6:
            self._tell_suppressed()
            self._window, self._sent = now, 0

    def _suppress(self, stream: int, data: bytes) -> None:
        """Count lines, and no more: a task that prints gigabytes must not wait for us."""
        count = data.count(b"\n")
        self._suppressed += count
        rest = data[data.rfind(b"\n") + 1 :] if count else self._partial[stream] + data
        self._partial[stream] = rest[:LINE_MAX]

    def _line(self, stream: int, line: bytes) -> None:
        if self._sent >= self._burst:
            self._suppressed += 1
            return
        self._sent += 1
        priority = 6 if stream == 1 else 4
        if len(line) >= 3 and line[:1] == b"<" and line[2:3] == b">" and line[1:2] in b"01234567":
            priority, line = line[1] - 48, line[3:]
        for start in range(0, max(len(line), 1), LINE_MAX):
            self._send(priority, line[start : start + LINE_MAX])

    def _tell_suppressed(self) -> None:
        if self._suppressed:
            count, self._suppressed = self._suppressed, 0
            self.note(f"Suppressed {count} lines of output; the output file has them", 4)

    def _send(self, priority: int, message: bytes) -> None:
        if self._make_journal is None:
            return
        entry = self._prefix + encode([(b"PRIORITY", b"%d" % priority), (b"MESSAGE", message)])
        if self._journal is None:  # most tasks say nothing
            self._journal = self._make_journal()
        self._journal.send(entry)
