# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verbs that look: list, status, show, output, logs, wait, monitor, check-config."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from argparse import Namespace

from bgtaskd.cli import patient
from bgtaskd.cli import show as text
from bgtaskd.cli.common import (
    ENDED,
    LIVE,
    as_json,
    client,
    colours,
    columns,
    ids_of,
    list_all,
    print_json,
    print_lines,
)
from bgtaskd.cli.render import escaped

LAST_ENDED = 10


def list_(arguments: Namespace) -> None:
    """bgtaskctl list."""
    only = {name: getattr(arguments, name) for name in ("queue", "name", "group", "user")}
    only["kinds"] = None if arguments.kind is None else [arguments.kind]
    with client(arguments) as one:
        states = [state for given in arguments.state or () for state in given]
        if arguments.all or states:
            tasks = list_all(one, states or None, arguments.lines, only)
        else:
            tasks = list_all(one, LIVE, arguments.lines, only)
            tasks += one.list(states=ENDED, limit=LAST_ENDED, **only)
            tasks = sorted(tasks, key=lambda task: task.id, reverse=True)[: arguments.lines]
    if arguments.output == "json":
        print_json([as_json(task) for task in tasks])
        return
    lines = text.task_table(tasks, columns(), colours(), not arguments.no_legend)
    if not tasks and not arguments.no_legend:
        lines = ["No tasks."]
    print_lines(lines, arguments)


def status(arguments: Namespace) -> int:
    """bgtaskctl status."""
    with client(arguments) as one:
        if not arguments.ids:
            said = one.status()
            queues = one.queues()
            if arguments.output == "json":
                print_json({**said, "queues": [dataclasses.asdict(queue) for queue in queues]})
            else:
                lines = [
                    *text.daemon_status(said, colours()),
                    "",
                    *text.queue_table(queues, columns(), True),
                ]
                print_lines(lines, arguments)
            return 0
        tasks = [one.get(task_id) for task_id in arguments.ids]
        if arguments.output == "json":
            for task in tasks:
                print_json(as_json(task))
            return 0
        lines = []
        for task in tasks:
            output_ = b"" if arguments.quiet else one.output(task.id, offset=-4096)
            lines += [
                *([""] if lines else []),
                *text.task_status(task, output_, columns(), colours()),
            ]
        print_lines(lines, arguments)
        return 0


def show(arguments: Namespace) -> None:
    """bgtaskctl show."""
    with client(arguments) as one:
        for number, task_id in enumerate(arguments.ids):
            values = as_json(one.get(task_id))
            wanted = [name for given in arguments.property or () for name in given.split(",")]
            if wanted:
                values = {name: values[name] for name in wanted if name in values}
            if arguments.output == "json":
                print_json(values)
                continue
            print("\n" if number else "", end="")
            for name, value in values.items():
                shown = (
                    value if isinstance(value, str) else "" if value is None else json.dumps(value)
                )
                print(escaped(shown) if arguments.value else f"{name}={escaped(shown)}")


def output(arguments: Namespace) -> None:
    """bgtaskctl output."""
    with client(arguments) as one:
        for task_id in arguments.ids:
            gap, plain = 0, None
            if arguments.text:
                from bgtaskd.client.plain import Plain

                plain = Plain()
            for chunk in one.output_chunks(
                task_id, follow=arguments.follow, attempt=arguments.attempt
            ):
                if chunk.dropped and chunk.offset > gap:
                    sys.stdout.buffer.write(
                        f"\n[bgtaskd: {chunk.offset - gap} bytes dropped]\n".encode()
                    )
                gap = chunk.next_offset
                data = chunk.data if plain is None else plain.feed(chunk.data).encode()
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            if plain is not None:
                sys.stdout.buffer.write(plain.finish().encode())


def logs(arguments: Namespace) -> None:
    """bgtaskctl logs."""
    from bgtaskd.units import scope_name

    options = ["--follow"] if arguments.follow else []
    options += [f"--lines={arguments.lines}"] if arguments.lines is not None else []
    options += arguments.options
    with client(arguments) as one:
        tasks = [one.get(task_id) for task_id in arguments.ids]
    terms: list[str] = []
    for task in tasks:
        # What the task printed, and what PID 1 says of its scopes.
        units = [scope_name(task.id, attempt) for attempt in range(1, max(task.attempt, 1) + 1)][
            -20:
        ]
        for term in (f"BGTASK_ID={task.id}", *(f"UNIT={unit}" for unit in units)):
            terms += ["+", term] if terms else [term]
    pager = ["--no-pager"] if arguments.no_pager else []
    os.execvp("journalctl", ["journalctl", *pager, *options, *terms])  # noqa: S606 - no shell is meant


def wait(arguments: Namespace) -> int:
    """bgtaskctl wait."""
    good = True
    with client(arguments) as one:
        ids = ids_of(one, arguments)
        for task in patient.wait_all(one, ids, arguments.timeout) if ids else ():
            good = good and task.result == "success"
            if arguments.output == "json":
                print_json(as_json(task))
            elif not arguments.quiet and len(ids) > 1:
                print(f"{task.id} {text.what(task)}")
    return 0 if good else 1


def monitor(arguments: Namespace) -> None:
    """bgtaskctl monitor."""
    from bgtaskd.cli.monitor import monitor as live

    with client(arguments) as one:
        live(one, arguments.output == "json", colours(), arguments.lines)


def check_config(arguments: Namespace) -> int:
    """bgtaskctl check-config."""
    from bgtaskd.check import check

    found, errors = check(arguments.config, arguments.conf_d)
    if errors:
        for error in errors:
            print(escaped(str(error)), file=sys.stderr)
        return 1
    if found is not None and not arguments.quiet:
        print(
            f"{arguments.config}: good, {len(found.queues)} queue{'s' if len(found.queues) != 1 else ''}"
        )
    return 0
