# SPDX-License-Identifier: LGPL-2.1-or-later
"""bgtaskctl schedule: recurring tasks."""

from __future__ import annotations

import dataclasses
import os
import shlex
import time
from argparse import Namespace
from collections.abc import Callable, Sequence

from bgtaskd.cli import changing, common
from bgtaskd.cli.render import escaped, moment, span, table
from bgtaskd.client.blocking import Client
from bgtaskd.client.task import ScheduleInfo
from bgtaskd.errors import NotReachable

PATIENCE_SECONDS = 60.0


def schedule(arguments: Namespace) -> None:
    """bgtaskctl schedule."""
    actions: dict[str, Callable[[Client, Namespace], None]] = {
        "list": _list,
        "add": _add,
        "rm": lambda one, given: one.remove_schedule(given.name),
        "enable": lambda one, given: one.enable_schedule(given.name, True),
        "disable": lambda one, given: one.enable_schedule(given.name, False),
        "run": _run,
    }
    with common.client(arguments) as one:
        actions[arguments.action or "list"](one, arguments)


def _list(one: Client, arguments: Namespace) -> None:
    found = one.schedules()
    if arguments.output == "json":
        common.print_json([dataclasses.asdict(row) for row in found])
        return
    lines = schedule_table(found, common.columns(), not arguments.no_legend)
    if not found and not arguments.no_legend:
        lines = ["No schedules."]
    common.print_lines(lines, arguments)


def schedule_table(found: Sequence[ScheduleInfo], columns: int | None, legend: bool) -> list[str]:
    """The table of `schedule list`."""
    now = time.time_ns() // 1000
    rows = []
    for one in found:
        if one.error:
            due = f"never: {escaped(one.error)}"
        elif not one.enabled:
            due = "disabled"
        elif one.next is None:
            due = "-"
        else:
            due = f"in {span(max(0, one.next - now))}"
        rows.append(
            [
                escaped(one.name),
                escaped("; ".join(one.calendar)),
                due,
                "-" if one.last is None else moment(one.last),
                "-" if one.last_task is None else str(one.last_task),
                escaped(one.user),
                escaped(shlex.join(one.argv)),
            ]
        )
    head = ["NAME", "CALENDAR", "NEXT", "LAST", "TASK", "USER", "COMMAND"]
    lines = table(head, rows, 6, columns, right=(4,))
    return lines if legend else lines[1:]


def _add(one: Client, arguments: Namespace) -> None:
    command = getattr(arguments, "command", None)
    if not command:
        raise common.Problem("run what? bgtaskctl schedule add NAME --calendar … -- COMMAND…")
    options = changing.changes_of(arguments)
    options.pop("name", None)  # its tasks have the schedule's
    one.add_schedule(
        arguments.schedule,
        arguments.calendar,
        command,
        persistent=arguments.persistent,
        randomized_delay=arguments.randomized_delay or 0,
        overlap=arguments.overlap,
        cwd=os.path.abspath(arguments.cwd or "."),
        env={name: value for name, value in arguments.setenv if value is not None} or None,
        **options,
    )


def _run(one: Client, arguments: Namespace) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            task_id = one.fire_schedule(arguments.name, timer=arguments.timer)
            break
        except NotReachable:
            # A second question for one moment is answered as the first was.
            if not arguments.timer or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    if arguments.output == "json":
        common.print_json({"id": task_id})
    elif task_id is None:
        print("The last one has not ended.")
    else:
        print(task_id)
