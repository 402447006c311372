# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each verb of bgtaskctl does."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import signal as unix_signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bgtaskd.cli import patient
from bgtaskd.cli import show as text
from bgtaskd.cli.render import escaped
from bgtaskd.client.blocking import Client
from bgtaskd.client.task import Message, StartedId, TaskInfo
from bgtaskd.errors import BgtaskdError

LAST_ENDED = 10
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


# --- starting ----------------------------------------------------------------------------------------


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


# --- looking -----------------------------------------------------------------------------------------


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


# --- steering ----------------------------------------------------------------------------------------


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
