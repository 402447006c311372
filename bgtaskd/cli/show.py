# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tasks, queues and the daemon as text: what `list`, `status` and `queues` print."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from bgtaskd.cli.render import DOT, coloured, escaped, moment, progress_bar, size, span, table
from bgtaskd.client.task import QueueInfo, TaskInfo


def now() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


def percent_of(task: TaskInfo) -> str:
    """42%, or a dash."""
    return "-" if task.percent is None else f"{task.percent:.0f}%"


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
        code = f" {task.exit_status}" if task.result == "exit-code" else ""
        return f"failed ({task.result}{code})"
    return task.state


def task_table(tasks: Sequence[TaskInfo], columns: int, colours: bool, legend: bool) -> list[str]:
    """The table of `list`."""
    rows = [
        [
            str(one.id),
            escaped(one.name),
            what(one),
            percent_of(one),
            took(one),
            escaped(one.user),
            one.queue,
        ]
        for one in tasks
    ]
    head = ["ID", "NAME", "STATE", "DONE", "TIME", "USER", "QUEUE"]
    lines = table(head, rows, 1, columns, right=(0, 3))
    if colours:
        for number, one in enumerate(tasks, 1):
            state = what(one)
            lines[number] = lines[number].replace(state, coloured(state, DOT[one.state], True), 1)
    return lines if legend else lines[1:]


def queue_table(queues: Sequence[QueueInfo], columns: int, legend: bool) -> list[str]:
    """The table of `queues`."""
    rows = [
        [
            one.name,
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


def task_status(task: TaskInfo, output: bytes, columns: int, colours: bool) -> list[str]:
    """The text of `status ID`, at home beside `systemctl status`."""
    dot = coloured("●", DOT[task.state], colours)
    lines = [f"{dot} {task.unit} - {escaped(task.name)}"]

    def row(name: str, text: str) -> None:
        lines.append(f"{name:>11}: {text}")

    row("State", coloured(what(task), DOT[task.state], colours) + _since(task))
    if task.error:
        row("Error", escaped(task.error))
    if task.signal or task.exit_status is not None:
        row("Exit", f"killed by {task.signal}" if task.signal else f"status {task.exit_status}")
    row(
        "Task",
        f"{task.id}, {task.kind}" + (f", attempt {task.attempt}" if task.attempt > 1 else ""),
    )
    row("User", f"{escaped(task.user)}")
    row(
        "Slice",
        f"bgtask-{task.queue}.slice" + (f", priority {task.priority}" if task.priority else ""),
    )
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
        row("Progress", progress_line(task, columns - 13))
    if output:
        lines.append("")
        lines.extend(escaped(one) for one in output.decode("utf-8", "replace").splitlines()[-10:])
    return lines


def _since(task: TaskInfo) -> str:
    at = task.ended or task.started or task.created
    if task.state == "delayed" and task.not_before:
        return f" until {moment(task.not_before)}; in {span(max(0, task.not_before - now()))}"
    after = f" after {span(task.ended - task.started)}" if task.ended and task.started else ""
    return f" since {moment(at)}; {span(now() - at)} ago{after}"


def progress_line(task: TaskInfo, columns: int) -> str:
    """A bar, the percentage, the operations, the message; never wider than told."""
    count = (
        f" {task.finished}/{task.total}"
        if task.total is not None and task.finished is not None
        else ""
    )
    head = f"{percent_of(task):>4}{count}"
    bar = progress_bar(task.percent, max(10, min(30, columns // 3)))
    message = escaped(task.message or "")
    line = f"{bar} {head} {message}".rstrip()
    return line if len(line) <= columns else line[: max(0, columns - 1)] + "…"


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
