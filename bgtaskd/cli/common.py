# SPDX-License-Identifier: LGPL-2.1-or-later
"""What all verbs of bgtaskctl share: the connection, the terminal, and which tasks are meant."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

from bgtaskd.cli.render import escaped
from bgtaskd.client.blocking import Client
from bgtaskd.client.task import TaskInfo
from bgtaskd.errors import BgtaskdError

ENDED = ("finished", "failed", "stopped")
LIVE = ("delayed", "queued", "running", "paused")


class Problem(Exception):
    """A verb cannot do what was asked; the text says why."""


def client(arguments: Namespace) -> Client:
    """The connection, not yet made."""
    return Client(arguments.socket)


def columns() -> int | None:
    """The terminal's width; None where nothing is to be cut: systemctl leaves lines whole in a pipe, too."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS"):
        return shutil.get_terminal_size((80, 24)).columns
    return None


def colours() -> bool:
    """Only on a terminal, unless the environment says otherwise."""
    wish = os.environ.get("SYSTEMD_COLORS", "")
    if wish:
        return wish not in ("0", "false", "no")
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def print_lines(lines: Sequence[str], arguments: Namespace) -> None:
    """Print; longer than the terminal is high, through the pager."""
    height = shutil.get_terminal_size((80, 24)).lines
    pager = os.environ.get("SYSTEMD_PAGER", os.environ.get("PAGER", "less"))
    if arguments.no_pager or not sys.stdout.isatty() or len(lines) < height or pager in ("", "cat"):
        sys.stdout.write("".join(f"{one}\n" for one in lines))
        return
    env = {"LESS": "FRSXMK", **os.environ}
    text_ = "".join(f"{one}\n" for one in lines).encode(sys.stdout.encoding, "replace")
    with subprocess.Popen(pager, shell=True, stdin=subprocess.PIPE, env=env) as process:  # noqa: S602
        process.communicate(text_)


def print_json(value: Any) -> None:
    """One JSON value."""
    print(json.dumps(value, indent=None if not sys.stdout.isatty() else 2, ensure_ascii=True))


def as_json(task: TaskInfo) -> dict[str, Any]:
    """A task's plain values."""
    return dataclasses.asdict(task)


def list_all(
    one: Client, states: Sequence[str] | None, most: int | None, only: dict[str, Any]
) -> list[TaskInfo]:
    """All that match, a thousand at a time."""
    tasks: list[TaskInfo] = []
    before = None
    while most is None or len(tasks) < most:
        limit = 1000 if most is None else min(1000, most - len(tasks))
        chunk = one.list(states=states, before=before, limit=limit, **only)
        tasks += chunk
        if len(chunk) < limit:
            break
        before = chunk[-1].id
    return tasks


def ids_of(one: Client, arguments: Namespace) -> list[int]:
    """The ids that were given, or those of a group's tasks that have not ended: those that wait first."""
    ids: list[int] = list(arguments.ids)
    group = getattr(arguments, "group_of", None)
    if group is not None:
        live = list_all(one, LIVE, None, {"group": group})
        live.sort(key=lambda task: task.state not in ("queued", "delayed"))
        ids += [task.id for task in live]
    return ids


def for_each(arguments: Namespace, act: Callable[[Client, int], None]) -> int:
    """Do it to each task. One failure does not keep the others from theirs; the first decides the status."""
    first: BgtaskdError | None = None
    with client(arguments) as one:
        for task_id in ids_of(one, arguments):
            try:
                act(one, task_id)
            except BgtaskdError as error:
                if first is None:
                    first = error
                else:
                    print(f"bgtaskctl: {escaped(str(error))}", file=sys.stderr)
    if first is not None:
        raise first
    return 0
