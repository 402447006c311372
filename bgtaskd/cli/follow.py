# SPDX-License-Identifier: LGPL-2.1-or-later
"""What moves on a terminal: `run -f`, its bar below the output."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator

from bgtaskd.cli import show
from bgtaskd.cli.patient import get, patiently, wait
from bgtaskd.cli.render import coloured, cut
from bgtaskd.client.blocking import Client
from bgtaskd.client.task import OutputChunk, TaskInfo
from bgtaskd.errors import BgtaskdError

REDRAW_SECONDS = 0.1
ERASE = b"\r\x1b[J"
"""To the end of the screen, not of the line: a bar wraps when the window becomes narrower."""


def write_all(data: bytes) -> None:
    """All of it to standard output, past Python's buffer."""
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


class Screen:
    """Output above, one bar below, drawn ten times a second at most. Without ``live``, output only."""

    def __init__(self, live: bool, write: Callable[[bytes], None] = write_all) -> None:
        self._live = live
        self._write = write
        self._lock = threading.Lock()
        self._stale = threading.Event()
        self._closed = threading.Event()
        self._task: TaskInfo | None = None
        self._at_line_start = True
        self._drawn = False
        if live:
            threading.Thread(target=self._redraw, daemon=True).start()

    def write(self, data: bytes) -> None:
        """Output of the task."""
        with self._lock:
            self._erase()
            self._write(data)
            self._at_line_start = data.endswith(b"\n")
        self._stale.set()

    def update(self, task: TaskInfo) -> None:
        """The task has changed."""
        with self._lock:
            self._task = task
        self._stale.set()

    def close(self) -> None:
        """Take the bar away."""
        self._closed.set()
        self._stale.set()
        with self._lock:
            self._erase()
            if self._live and not self._at_line_start:
                self._write(b"\n")
            self._live = False

    def _redraw(self) -> None:
        while not self._closed.is_set():
            self._stale.wait()
            self._stale.clear()
            with self._lock:
                self._draw()
            self._closed.wait(REDRAW_SECONDS)

    def _erase(self) -> None:
        if self._drawn:
            self._write(ERASE)
            self._drawn = False

    def _draw(self) -> None:
        task = self._task
        # A line that is not whole yet, a prompt perhaps, must not be drawn over.
        if not self._live or task is None or not self._at_line_start or task.is_ended():
            return
        width = shutil.get_terminal_size((80, 24)).columns - 1
        what = show.progress_line(task, width) or show.what(task)
        line = cut(f"[{task.id}] {what}", width)
        encoding = sys.stdout.encoding or "utf-8"
        self._write((ERASE if self._drawn else b"") + line.encode(encoding, "replace"))
        self._drawn = True


def follow(client: Client, task_id: int, quiet: bool) -> TaskInfo:
    """Show a task's output and progress until it has ended. Ctrl-C lets it go on."""
    live = sys.stdout.isatty() and not quiet and os.environ.get("TERM") != "dumb"
    sys.stdout.flush()
    screen = Screen(live)
    if live:
        threading.Thread(target=_watch, args=(client.path, task_id, screen), daemon=True).start()
    try:
        for chunk in all_output(client, task_id):
            if chunk.data:
                screen.write(chunk.data)
        task = wait(client, task_id)
    finally:
        screen.close()
    if live:
        colour = "32" if task.result == "success" else "31"
        dot = coloured("●", colour, "NO_COLOR" not in os.environ)
        print(f"{dot} task {task.id} {show.what(task)} after {show.took(task)}", file=sys.stderr)
    return task


def _watch(path: str, task_id: int, screen: Screen) -> None:
    """Keep the bar true. It is an ornament: what goes wrong here is told by the output's own stream."""
    try:
        for event in patiently(lambda: Client(path).watch([task_id])):
            screen.update(event.task)
    except BgtaskdError:
        pass


def all_output(client: Client, task_id: int) -> Iterator[OutputChunk]:
    """What a task prints until it has ended, this attempt's and those of all retries."""
    attempt, offset = max(1, get(client, task_id).attempt), 0

    def begin() -> Iterator[OutputChunk]:
        return client.output_chunks(task_id, offset=offset, follow=True, attempt=attempt)

    while True:
        for chunk in patiently(begin, reached=True):
            offset = chunk.next_offset
            yield chunk
        task = get(client, task_id)
        if task.attempt > attempt:
            attempt, offset = attempt + 1, 0
        elif task.is_ended():
            return
