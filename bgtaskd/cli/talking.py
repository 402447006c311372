# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verbs that talk with a task, or for it: signal, signals, config, update, record."""

from __future__ import annotations

import dataclasses
import json
import sys
from argparse import Namespace
from collections.abc import Iterator

from bgtaskd.cli import patient
from bgtaskd.cli.common import Problem, client, print_json
from bgtaskd.cli.render import escaped
from bgtaskd.client.task import Message


def signal(arguments: Namespace) -> None:
    """bgtaskctl signal."""
    with client(arguments) as one:
        seq = one.signal(arguments.id, arguments.name, arguments.payload)
    if not arguments.quiet:
        print(seq)


def signals(arguments: Namespace) -> None:
    """bgtaskctl signals."""
    task_id = own_id(arguments.id)
    if arguments.follow or arguments.wait or arguments.timeout is not None:
        _signals_as_they_come(arguments, task_id)
        return
    with client(arguments) as one:
        found = one.signals(task_id)
        if arguments.clear:
            one.clear_signals(task_id, [message.seq for message in found])
    if arguments.output == "json":
        print_json([dataclasses.asdict(message) for message in found])
        return
    for message in found:
        print(message_line(message))


def message_line(message: Message) -> str:
    """A message as `signals` prints it."""
    payload = "" if message.payload is None else json.dumps(message.payload)
    return f"{message.seq} {escaped(message.name)} {payload}".rstrip()


def _signals_as_they_come(arguments: Namespace, task_id: int) -> None:
    """Until the task has ended; with --wait the first one only."""
    seen = 0
    with client(arguments) as one:

        def begin() -> Iterator[Message]:
            return one.watch_signals(task_id, after=seen, timeout=arguments.timeout)

        for message in patient.patiently(begin):
            seen = message.seq
            if arguments.clear:
                one.clear_signals(task_id, [message.seq])
            if arguments.output == "json":
                print_json(dataclasses.asdict(message))
            else:
                print(message_line(message))
            sys.stdout.flush()
            if not arguments.follow:
                return
    if not arguments.follow:
        raise Problem(f"task {task_id} has ended, and no message came")


def config(arguments: Namespace) -> None:
    """bgtaskctl config."""
    task_id = own_id(arguments.id)
    with client(arguments) as one:
        if arguments.value is None:
            print_json(one.get_config(task_id))
        else:
            one.set_config(task_id, arguments.value)


def update(arguments: Namespace) -> None:
    """bgtaskctl update."""
    task_id = own_id(arguments.id)
    with client(arguments) as one:
        one.report(
            task_id,
            percent=arguments.progress,
            finished=arguments.finished,
            total=arguments.total,
            message=arguments.message,
            rewind=arguments.rewind or None,
        )


def record(arguments: Namespace) -> None:
    """bgtaskctl record."""
    with client(arguments) as one:
        if arguments.action == "add":
            task_id = one.add_record(
                arguments.what,
                settings=arguments.settings,
                queue=arguments.queue,
                merge_key=arguments.merge_key,
            )
            print_json({"id": task_id}) if arguments.output == "json" else print(task_id)
            return
        state = "running" if arguments.action == "started" else arguments.action
        word = "error" if state == "failed" else "message"
        one.record(arguments.id, state, **{word: arguments.text, "value": arguments.value})


def own_id(value: int | str | None) -> int:
    """The id given, or that of the task we are in."""
    if value is None:
        raise Problem("which task? Outside of a task, give its id")
    return int(value)
