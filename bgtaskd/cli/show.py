# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tasks, queues and the daemon as text: what `list`, `status` and `queues` print."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from typing import Any

from bgtaskd.cli.render import (
    DOT,
    coloured,
    cut,
    escaped,
    moment,
    progress_bar,
    size,
    span,
    table,
)
from bgtaskd.client.task import QueueInfo, TaskInfo
from bgtaskd.units import slice_name, worker_slice_name


def now() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


def percent_of(task: TaskInfo) -> str:
    """42%, or a dash. Rounded down: 100% means that all is done."""
    return "-" if task.percent is None else f"{int(task.percent)}%"


def took(task: TaskInfo) -> str:
    """How long it ran, or runs; how long until it may."""
    if task.state == "delayed" and task.not_before is not None:
        return f"in {span(max(0, task.not_before - now()))}"
    if task.started is None:
        return "-"
    return span((task.ended or now()) - task.started)


def what(task: TaskInfo) -> str:
    """The state; for one that failed, why."""
    if task.state == "failed" and task.result:
        why = task.result
        if why == "exit-code":
            why = "error" if task.exit_status is None else f"exit {task.exit_status}"
        elif why == "signal" and task.signal:
            why = task.signal
        return f"failed ({escaped(why)})"
    return task.state


def short_bar(task: TaskInfo, columns: int | None) -> str:
    """The column DONE: a bar where it says something and there is room, and the percentage."""
    if columns is None or columns < 76 or task.percent is None or task.is_ended():
        return percent_of(task)
    return f"{progress_bar(task.percent, 8)} {percent_of(task):>3}"


def task_table(
    tasks: Sequence[TaskInfo], columns: int | None, colours: bool, legend: bool
) -> list[str]:
    """The table of `list`, so wide at the most (None: as wide as it comes)."""
    rows = [
        [
            str(one.id),
            escaped(one.name),
            what(one),
            short_bar(one, columns),
            took(one),
            escaped(one.user),
            escaped(one.queue),
        ]
        for one in tasks
    ]
    head = ["ID", "NAME", "STATE", "DONE", "TIME", "USER", "QUEUE"]
    codes = (2, [DOT.get(one.state, "0") for one in tasks]) if colours else None
    lines = table(head, rows, 1, columns, right=(0, 3, 4), colour=codes)
    return lines if legend else lines[1:]


def queue_table(queues: Sequence[QueueInfo], columns: int | None, legend: bool) -> list[str]:
    """The table of `queues`."""
    rows = [
        [
            escaped(one.name),
            str(one.slots),
            str(one.running),
            str(one.waiting),
            str(one.delayed),
            "paused" if one.paused else "open",
        ]
        for one in queues
    ]
    head = ["QUEUE", "SLOTS", "RUNNING", "WAITING", "DELAYED", "STATE"]
    lines = table(head, rows, 0, columns, right=(1, 2, 3, 4))
    return lines if legend else lines[1:]


def task_status(task: TaskInfo, output: bytes, columns: int | None, colours: bool) -> list[str]:
    """The text of `status ID`, at home beside `systemctl status`."""
    dot = coloured("●", DOT.get(task.state, "0"), colours)
    lines = [f"{dot} {escaped(task.unit) or 'record'} - {escaped(task.name)}"]

    def row(name: str, text: str) -> None:
        lines.append(f"{name:>11}: {text}")

    row("State", coloured(what(task), DOT.get(task.state, "0"), colours) + _since(task))
    if task.error:
        row("Error", escaped(task.error))
    if task.signal or task.exit_status is not None:
        row("Exit", f"killed by {task.signal}" if task.signal else f"status {task.exit_status}")
    row(
        "Task",
        f"{task.id}, {task.kind}"
        + (f" {escaped(task.target)}" if task.target else "")
        + (f", attempt {task.attempt}" if task.attempt > 1 else ""),
    )
    if task.argv and task.kind == "command":
        command = shlex.join([escaped(one) for one in task.argv])
        row("Command", command if columns is None else cut(command, columns - 13))
    if task.http is not None:
        query = f"?{task.http['query']}" if task.http.get("query") else ""
        asked = escaped(f"{task.http['method']} {task.http['path']}{query}")
        row("Request", f"{asked} of app {escaped(task.http['app'])}")
    row("User", f"{escaped(task.user)}")
    if task.unit:
        row(
            "Slice",
            _slice(task) + (f", priority {task.priority}" if task.priority else ""),
        )
    if task.group:
        row("Group", escaped(task.group))
    if task.after and task.state in ("queued", "delayed"):
        row("After", ", ".join(map(str, task.after)))
    if task.memory_current is not None or task.memory_peak is not None:
        peak = f" (peak: {size(task.memory_peak)})" if task.memory_peak is not None else ""
        row(
            "Memory",
            f"{size(task.memory_current)}{peak}"
            if task.memory_current is not None
            else f"peak {size(task.memory_peak)}",
        )
    if task.cpu_usec is not None:
        row("CPU", span(task.cpu_usec))
    if task.io_read_bytes is not None and task.io_write_bytes is not None:
        row("IO", f"{size(task.io_read_bytes)} read, {size(task.io_write_bytes)} written")
    if task.percent is not None or task.message:
        row("Progress", progress_line(task, 1000 if columns is None else columns - 13))
    if task.value is not None:
        value = json.dumps(task.value, ensure_ascii=True)
        row("Value", value if columns is None else cut(value, columns - 13))
    if output:
        lines.append("")
        shown = [escaped(one) for one in output_lines(output)]
        lines.extend(shown if columns is None else [cut(one, columns) for one in shown])
    return lines


def _slice(task: TaskInfo) -> str:
    if task.kind == "worker":
        return worker_slice_name(task.queue, task.name)
    return slice_name(task.queue)


def output_lines(output: bytes) -> list[str]:
    """The last ten lines. Of a line that overwrote itself, as progress bars do, what was last to be seen."""
    lines = output.decode("utf-8", "replace").split("\n")
    if lines[-1] == "":
        lines.pop()
    return [one.rstrip("\r").rpartition("\r")[2].expandtabs() for one in lines[-10:]]


def _since(task: TaskInfo) -> str:
    at = task.ended or task.started or task.created
    if task.state == "delayed" and task.not_before:
        return f" until {moment(task.not_before)}; in {span(max(0, task.not_before - now()))}"
    after = f" after {span(task.ended - task.started)}" if task.ended and task.started else ""
    return f" since {moment(at)}; {span(now() - at)} ago{after}"


def progress_line(task: TaskInfo, columns: int) -> str:
    """A bar, the percentage, the operations, the message; never wider than told."""
    parts = []
    if task.percent is not None:
        parts.append(progress_bar(task.percent, max(10, min(30, columns // 3))))
        parts.append(f"{percent_of(task):>4}")
    if task.finished is not None:
        parts.append(str(task.finished) if task.total is None else f"{task.finished}/{task.total}")
    if task.message:
        parts.append(escaped(task.message))
    return cut(" ".join(parts), columns)


def daemon_status(status: dict[str, Any], colours: bool) -> list[str]:
    """The text of `status` without an id."""
    dot = coloured("●", "32", colours)
    tasks = ", ".join(
        f"{number} {state}" for state, number in sorted(status["tasks"].items()) if number
    )
    since = status["since"]
    return [
        f"{dot} bgtaskd {status['version']}",
        f"{'State':>11}: running since {moment(since)}; {span(now() - since)} ago",
        f"{'Launcher':>11}: {status['launcher']}",
        f"{'Tasks':>11}: {tasks or 'none'}",
    ]
