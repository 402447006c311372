# SPDX-License-Identifier: LGPL-2.1-or-later
"""`monitor`: on a terminal a table that keeps itself up to date; into a pipe one line a change."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from bgtaskd.cli import show
from bgtaskd.cli.patient import patiently
from bgtaskd.cli.render import escaped, fitted
from bgtaskd.cli.workers import worker_table
from bgtaskd.client.blocking import Client
from bgtaskd.client.task import TaskEvent, TaskInfo
from bgtaskd.client.workers import WorkerInfo
from bgtaskd.errors import BgtaskdError

REDRAW_SECONDS = 0.1
CLOCK_SECONDS = 1.0
SHOWN_ENDED = 5
LIVE = ("delayed", "queued", "running", "paused")
ORDER = {"running": 0, "paused": 1, "queued": 2, "delayed": 3}


def monitor(client: Client, as_json: bool, colours: bool, lines_only: bool) -> None:
    """Until Ctrl-C."""
    if sys.stdout.isatty() and not as_json and not lines_only:
        Live(client, colours).run()
        return
    for event in patiently(client.watch):
        if as_json:
            print(json.dumps({"event": event.event, **dataclasses.asdict(event.task)}), flush=True)
        else:
            print(event_line(event), flush=True)


def event_line(event: TaskEvent) -> str:
    """One change, in one line."""
    task = event.task
    at = time.strftime("%H:%M:%S", time.localtime(task.updated / 1e6))
    name = fitted(escaped(task.name), 20)
    head = f"{at} {task.id:>5} {event.event:<8} {show.what(task):<10} {name}"
    count = "" if task.finished is None else f" {task.finished}/{task.total or '?'}"
    return f"{head} {show.percent_of(task):>4}{count} {escaped(task.message or '')}".rstrip()


def screenful(
    live: list[TaskInfo],
    ended: list[TaskInfo],
    columns: int,
    lines: int,
    colours: bool,
    workers: Sequence[WorkerInfo] = (),
) -> list[str]:
    """What is worth seeing, in so many lines at the most: what runs, waits, ended last; named tasks."""
    live = sorted(live, key=lambda task: (ORDER.get(task.state, 9), task.id))
    below = [""] + worker_table(workers, columns, colours, True) if workers else []
    if len(below) > lines // 2:  # their sum is the last line
        below = [*below[: max(0, lines // 2 - 2)], "…", below[-1]]
    room = max(1, lines - 3 - len(below))
    ended = sorted(ended, key=lambda task: task.ended or 0, reverse=True)[:SHOWN_ENDED]
    ended = ended[: max(0, room - len(live))] if len(live) + len(ended) > room else ended
    tasks = [*live[:room], *ended]
    count = {state: sum(task.state == state for task in live) for state in LIVE}
    told = ", ".join(f"{number} {state}" for state, number in count.items() if number)
    title = f"{time.strftime('%H:%M:%S')}  {told or 'nothing to do'}   (Ctrl-C ends)"
    table = show.task_table(tasks, columns, colours, legend=True) if tasks else []
    hidden = len(live) - len(live[:room])
    more = [f"… and {hidden} more"] if hidden else []
    return [title, *table, *more, *below]


class Live:
    """The table: redrawn in place at every change, ten times a second at most; its clocks every second."""

    def __init__(self, client: Client, colours: bool) -> None:
        self._client = client
        self._colours = colours
        self._lock = threading.Lock()
        self._tasks: dict[int, TaskInfo] = {}
        self._changed = threading.Event()
        self._began_anew = threading.Event()
        self._error: BgtaskdError | None = None
        self._drawn = 0
        self._reached = False
        self._workers: list[WorkerInfo] = []
        self._next_workers = 0.0

    def run(self) -> None:
        """Draw until Ctrl-C, or until the daemon is gone for good."""
        self._load()
        threading.Thread(target=self._watch, daemon=True).start()
        sys.stdout.write("\x1b[?25l")
        try:
            while self._error is None:
                self._changed.clear()
                self._load_workers()
                self._draw()
                time.sleep(REDRAW_SECONDS)
                if self._began_anew.is_set():
                    # By now the stream is on: nothing can change any more without our being told.
                    self._began_anew.clear()
                    self._load()
                    self._changed.set()
                self._changed.wait(CLOCK_SECONDS - REDRAW_SECONDS)
        finally:
            sys.stdout.write("\x1b[?25h")
            sys.stdout.flush()
        raise self._error

    def _load(self) -> None:
        found = next(patiently(lambda: iter([self._list()]), reached=self._reached))
        self._reached = True
        with self._lock:
            for task in [one for one in self._tasks.values() if not one.is_ended()]:
                del self._tasks[task.id]
            for task in found:
                known = self._tasks.get(task.id)
                if known is None or known.updated <= task.updated:
                    self._tasks[task.id] = task

    def _load_workers(self) -> None:
        """Each second: nobody tells of what they have served."""
        if time.monotonic() >= self._next_workers:
            with suppress(BgtaskdError):  # the stream of changes says it, if it is for good
                self._workers = self._client.workers()
            self._next_workers = time.monotonic() + CLOCK_SECONDS

    def _list(self) -> list[TaskInfo]:
        found = self._client.list(states=LIVE, limit=1000)
        return found + self._client.list(
            states=("finished", "failed", "stopped"), limit=SHOWN_ENDED
        )

    def _begin(self) -> Iterator[TaskEvent]:
        self._began_anew.set()
        return Client(self._client.path).watch()

    def _watch(self) -> None:
        try:
            for event in patiently(self._begin):
                with self._lock:
                    if event.event == "removed":
                        self._tasks.pop(event.task.id, None)
                    else:
                        self._tasks[event.task.id] = event.task
                    self._forget_old()
                self._changed.set()
        except BgtaskdError as error:
            self._error = error
            self._changed.set()

    def _forget_old(self) -> None:
        ended = [task for task in self._tasks.values() if task.is_ended()]
        if len(ended) > 10 * SHOWN_ENDED:  # not at every event: this sorts
            for task in sorted(ended, key=lambda task: task.ended or 0)[:-SHOWN_ENDED]:
                del self._tasks[task.id]

    def _draw(self) -> None:
        columns, height = shutil.get_terminal_size((80, 24))
        with self._lock:
            tasks = list(self._tasks.values())
        live = [task for task in tasks if not task.is_ended()]
        ended = [task for task in tasks if task.is_ended()]
        lines = screenful(live, ended, columns - 1, height - 1, self._colours, self._workers)
        # Up to where the last one began, and each line made clean before it is written: no flicker.
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        text = up + "\r" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J"
        sys.stdout.write(text)
        sys.stdout.flush()
        self._drawn = len(lines)
