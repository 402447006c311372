# SPDX-License-Identifier: LGPL-2.1-or-later
"""What moves on a terminal: `run -f`, with its bar below the output, and `monitor`."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time

from bgtaskd.cli import show
from bgtaskd.cli.render import coloured, escaped
from bgtaskd.client.blocking import Client
from bgtaskd.client.task import TaskInfo

REDRAW_SECONDS = 0.1
CLEAR_LINE = b"\r\x1b[K"


class _Screen:
    """Output above, one bar below. On anything but a terminal, output only."""

    def __init__(self, live: bool) -> None:
        self._live = live
        self._lock = threading.Lock()
        self._task: TaskInfo | None = None
        self._at_line_start = True
        self._drawn = False
        self._last = 0.0

    def write(self, data: bytes) -> None:
        """Output of the task."""
        with self._lock:
            self._erase()
            os.write(1, data)
            self._at_line_start = data.endswith(b"\n")
            self._draw()

    def update(self, task: TaskInfo) -> None:
        """The task has changed."""
        with self._lock:
            self._task = task
            if time.monotonic() - self._last >= REDRAW_SECONDS:
                self._erase()
                self._draw()

    def close(self) -> None:
        """Take the bar away."""
        with self._lock:
            self._erase()
            if self._live and not self._at_line_start:
                os.write(1, b"\n")
            self._live = False

    def _erase(self) -> None:
        if self._drawn:
            os.write(1, CLEAR_LINE)
            self._drawn = False

    def _draw(self) -> None:
        task = self._task
        if not self._live or task is None or not self._at_line_start or task.is_ended():
            return
        width = shutil.get_terminal_size((80, 24)).columns - 1
        line = f"[{task.id}] {show.progress_line(task, width - len(str(task.id)) - 3)}"
        os.write(1, line.encode())
        self._drawn = True
        self._last = time.monotonic()


def follow(client: Client, task_id: int, quiet: bool) -> TaskInfo:
    """Show a task's output and progress until it has ended. Ctrl-C lets it go on."""
    screen = _Screen(live=sys.stdout.isatty() and not quiet)

    def copy() -> None:
        for chunk in Client(client.path).output_chunks(task_id, follow=True):
            if chunk.data:
                screen.write(chunk.data)

    copier = threading.Thread(target=copy, daemon=True)
    copier.start()
    task = client.get(task_id)
    try:
        for event in client.watch([task_id]):
            task = event.task
            screen.update(task)
        copier.join(10)
    except KeyboardInterrupt:
        screen.close()
        print(
            f"Task {task_id} goes on: bgtaskctl status {task_id}, bgtaskctl output -f {task_id}",
            file=sys.stderr,
        )
        raise
    screen.close()
    if sys.stdout.isatty() and not quiet:
        dot = coloured(
            "●", "32" if task.result == "success" else "31", "NO_COLOR" not in os.environ
        )
        print(f"{dot} task {task.id} {show.what(task)} after {show.took(task)}", file=sys.stderr)
    return client.wait(task_id)


def monitor(client: Client, as_json: bool) -> None:
    """One line a change, for ever; the newest at the bottom."""
    for event in client.watch():
        task = event.task
        if as_json:
            print(
                json.dumps(
                    {
                        "event": event.event,
                        "id": task.id,
                        "state": task.state,
                        "percent": task.percent,
                    }
                ),
                flush=True,
            )
            continue
        at = time.strftime("%H:%M:%S", time.localtime(task.updated / 1e6))
        width = shutil.get_terminal_size((80, 24)).columns
        head = f"{at} {task.id:>6} {event.event:<8} {show.what(task):<10} {escaped(task.name)[:24]:<24} "
        print(head + show.progress_line(task, max(20, width - len(head))), flush=True)
