# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verb run, and what other verbs that start something share with it."""

from __future__ import annotations

import os
import shlex
import signal as unix_signal
import sys
from argparse import Namespace
from typing import Any

from bgtaskd.cli import patient
from bgtaskd.cli import show as text
from bgtaskd.cli.common import Problem, as_json, client, print_json
from bgtaskd.cli.render import escaped
from bgtaskd.client.blocking import Client
from bgtaskd.client.task import StartedId, TaskInfo


def run(arguments: Namespace) -> int:
    """bgtaskctl run."""
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    python: dict[str, Any] = {}
    if arguments.target is not None:
        if len(command) > 1:
            raise Problem("with --target the command is the interpreter alone, or nothing")
        import bgtaskd.task

        program = os.path.join(
            os.path.dirname(os.path.abspath(bgtaskd.task.__file__)), "__main__.py"
        )
        command = [*(command or ["python3"]), program]
        path, colon, function = arguments.target.rpartition(":")
        if path.endswith(".py"):
            arguments.target = f"{os.path.abspath(path)}{colon}{function}"
        here = os.path.abspath(arguments.cwd or ".")
        python = {"kind": "python", "target": arguments.target, "import_path": [here]}
    elif not command:
        raise Problem("run what? bgtaskctl run [options] -- COMMAND…")
    cwd = arguments.cwd
    if cwd is None and arguments.user is None and os.access(".", os.X_OK):
        cwd = "."  # what a shell would do; somebody else starts in their own home
    with client(arguments) as one:
        task_id = one.start(
            command,
            name=arguments.name or (None if python else name_of(command[0])),
            user=arguments.user,
            cwd=os.path.abspath(cwd) if cwd else None,
            env={name: value for name, value in arguments.setenv if value is not None} or None,
            secrets={name: _secret(name, path) for name, path in arguments.secret} or None,
            stdin=arguments.stdin or None,
            **start_options(arguments),
            **python,
        )
        return started(one, task_id, arguments)


def _secret(name: str, path: str) -> str:
    """A secret from a file, from standard input, or typed unseen; never from the command line."""
    try:
        if path == "-":
            return sys.stdin.read()
        if path:
            with open(path, encoding="utf-8") as file:
                return file.read()
        import getpass

        return getpass.getpass(f"{name}: ")
    except UnicodeDecodeError:
        raise Problem(f"{path}: a secret must be UTF-8 text") from None


def start_options(arguments: Namespace) -> dict[str, Any]:
    """What can be said of any task at its start."""
    return {
        "queue": arguments.queue,
        "priority": arguments.priority,
        "delay": arguments.delay,
        "timeout": arguments.timeout,
        "stall_timeout": arguments.stall_timeout,
        "stop_timeout": arguments.stop_timeout,
        "retries": arguments.retries,
        "retry_delay": arguments.retry_delay,
        "retry_on": arguments.retry_on,
        "properties": dict(arguments.property) or None,
        "merge_key": arguments.merge_key,
        "settings": arguments.settings,
        "after": arguments.after,
        "after_result": arguments.after_result,
        "group": arguments.group,
        "weight": arguments.weight,
        "needs": dict(arguments.needs) or None,
        "on_end": shlex.split(arguments.on_end) if arguments.on_end else None,
    }


def started(one: Client, task_id: StartedId, arguments: Namespace) -> int:
    """Print its id; or follow it, or wait for it, and have its exit status."""
    if not arguments.follow and not arguments.wait:
        if arguments.output == "json":
            print_json({"id": task_id, "merged": task_id.merged})
            return 0
        print(task_id)
        if task_id.merged and not arguments.quiet:
            print(f"Merged with task {task_id}, which has not ended.", file=sys.stderr)
        return 0
    try:
        if arguments.follow:
            from bgtaskd.cli.follow import follow

            task = follow(one, task_id, arguments.quiet)
        else:
            if sys.stderr.isatty() and not arguments.quiet:
                print(f"Waiting for task {task_id}.", file=sys.stderr)
            task = patient.wait(one, task_id)
    except KeyboardInterrupt:
        print(
            f"Task {task_id} goes on (bgtaskctl output -f {task_id}; "
            f"to end it: bgtaskctl stop {task_id})",
            file=sys.stderr,
        )
        raise
    if arguments.output == "json":
        print_json(as_json(task))
    return exit_status(task)


def name_of(program: str) -> str | None:
    """A name for a program whose own name is not UTF-8; None for all others: the daemon knows those."""
    try:
        program.encode()
    except UnicodeEncodeError:
        return os.fsencode(os.path.basename(program)).decode("utf-8", "backslashreplace")[:200]
    return None


def exit_status(task: TaskInfo) -> int:
    """The task's own status; 128 + n for a signal; 1 where it did not end by itself."""
    if task.exit_status is not None and task.state != "stopped":
        return (
            task.exit_status
            if task.result in ("success", "exit-code")
            else max(1, task.exit_status)
        )
    if task.result == "success":
        return 0
    if task.signal is not None and task.state != "stopped":
        number = getattr(unix_signal, task.signal, None)
        return 128 + number if isinstance(number, int) else 1
    if task.error or task.state != "failed":
        why = task.error or text.what(task)
        print(f"bgtaskctl: task {task.id}: {escaped(why)}", file=sys.stderr)
    return 1
