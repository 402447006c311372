# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verbs that steer: stop, kill, pause, resume, rm, queues."""

from __future__ import annotations

import dataclasses
from argparse import Namespace

from bgtaskd.cli import show as text
from bgtaskd.cli.common import Problem, client, columns, for_each, print_json, print_lines
from bgtaskd.client.blocking import Client


def stop(arguments: Namespace) -> int:
    """bgtaskctl stop."""
    return for_each(arguments, Client.stop)


def kill(arguments: Namespace) -> int:
    """bgtaskctl kill."""
    return for_each(
        arguments, lambda one, task_id: one.kill(task_id, arguments.signal, arguments.kill_whom)
    )


def pause(arguments: Namespace) -> int:
    """bgtaskctl pause."""
    return for_each(arguments, Client.pause)


def resume(arguments: Namespace) -> int:
    """bgtaskctl resume."""
    return for_each(arguments, Client.resume)


def remove(arguments: Namespace) -> int:
    """bgtaskctl rm."""
    return for_each(arguments, Client.remove)


def queues(arguments: Namespace) -> None:
    """bgtaskctl queues."""
    with client(arguments) as one:
        if arguments.action != "list":
            if arguments.queue is None:
                raise Problem(f"which queue? bgtaskctl queues {arguments.action} QUEUE")
            (one.pause_queue if arguments.action == "pause" else one.resume_queue)(arguments.queue)
            return
        found = one.queues()
    if arguments.output == "json":
        print_json([dataclasses.asdict(queue) for queue in found])
    else:
        print_lines(text.queue_table(found, columns(), not arguments.no_legend), arguments)
