# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verbs of bgtaskctl, and their options."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import bgtaskd
from bgtaskd.cli import (
    changing,
    looking,
    requesting,
    scheduling,
    starting,
    steering,
    talking,
    values,
    workers,
)


def parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    top = values.Parser(
        prog="bgtaskctl", description="Run background tasks, and steer them.", allow_abbrev=False
    )
    top.add_argument("--version", action="version", version=f"bgtaskctl {bgtaskd.__version__}")
    top.add_argument(
        "--socket", help="where the daemon listens (default: $BGTASKD_SOCKET, or the system's)"
    )
    every = values.Parser(add_help=False)
    every.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="how to print"
    )
    every.add_argument(
        "-q", "--quiet", action="store_true", help="print no more than was asked for"
    )
    every.add_argument(
        "--no-pager", action="store_true", help="do not pipe long output into a pager"
    )
    every.add_argument("--no-legend", action="store_true", help="print no column heads and hints")
    add = top.add_subparsers(metavar="VERB", required=True, parser_class=values.Parser)

    def verb(
        name: str, function: Callable[[argparse.Namespace], int | None], text: str, ids: str = ""
    ) -> Any:
        one = add.add_parser(name, help=text, description=text, parents=[every], allow_abbrev=False)
        one.set_defaults(verb=function)
        if ids:
            one.add_argument("ids", metavar="ID", type=values.task_id, nargs=ids)
        return one

    _add_run(verb("run", starting.run, "Run a command as a background task; prints its id"))
    _add_http(verb("http", requesting.http, "Request a route of a web app as a background task"))
    one = verb(
        "list", looking.list_, "List tasks: those that have not ended, and the last ten that have"
    )
    one.add_argument("-a", "--all", action="store_true", help="all tasks")
    one.add_argument("-n", "--lines", type=values.count, metavar="N", help="so many at the most")
    one.add_argument(
        "--state",
        action="append",
        type=values.states,
        metavar="STATE[,STATE…]",
        help="only tasks in these states: " + ", ".join(values.STATES),
    )
    one.add_argument(
        "--kind",
        help="of this kind; template: what others are forked from; worker: processes of named tasks",
    )
    one.add_argument("--queue")
    one.add_argument("--name", help="a shell pattern")
    one.add_argument("--group")
    one.add_argument("--user")
    verb("status", looking.status, "Show tasks; without an id, the daemon", "*")
    one = verb("show", looking.show, "Print a task's properties, for programs", "+")
    one.add_argument("-p", "--property", action="append", help="only these: NAME,NAME…")
    one.add_argument("--value", action="store_true", help="print values without their names")
    one = verb("output", looking.output, "Print what a task printed, byte for byte", "+")
    one.add_argument("-f", "--follow", action="store_true", help="go on until it has ended")
    one.add_argument("--text", action="store_true", help="without colours and other escapes")
    one.add_argument("--attempt", type=int, help="of this attempt (default: the last)")
    one = verb("logs", looking.logs, "Show tasks' journal; options after the ids go to journalctl")
    one.add_argument("-f", "--follow", action="store_true", help="go on with what is logged")
    one.add_argument("-n", "--lines", type=values.count, metavar="N", help="only the last so many")
    one.add_argument(
        "ids", metavar="ID… [OPTION…]", nargs=argparse.REMAINDER, action=values.IdsThenRest
    )
    one = verb("wait", looking.wait, "Wait until tasks have ended; fails unless all succeeded", "*")
    one.add_argument("--group", dest="group_of", help="the tasks of this group that have not ended")
    one.add_argument("--timeout", type=values.span, help="give up after this time span")
    one = verb(
        "stop", steering.stop, "End tasks: SIGTERM, and SIGKILL after their stop timeout", "*"
    )
    one.add_argument("--group", dest="group_of", help="the tasks of this group that have not ended")
    one = verb("kill", steering.kill, "Send a Unix signal to tasks' processes", "+")
    one.add_argument("-s", "--signal", default="SIGKILL")
    one.add_argument("--kill-whom", choices=("all", "main"), default="all")
    verb("pause", steering.pause, "Freeze tasks", "+")
    verb("resume", steering.resume, "Thaw tasks", "+")
    _add_changes(verb("edit", changing.edit, "Change tasks that wait", "+"))
    _add_changes(verb("retry", changing.retry, "Run ended tasks again, perhaps with changes", "+"))
    verb("rm", steering.remove, "Forget ended tasks and their output", "+")
    one = verb("send", changing.send, "Send a line, or standard input, to a task's standard input")
    one.add_argument("id", metavar="ID", type=values.task_id)
    one.add_argument("text", metavar="TEXT", nargs="*")
    one.add_argument("--eof", action="store_true", help="and end its input there")
    one = verb("stats", changing.stats, "Sum up the last tasks by name")
    one.add_argument("--name", help="a shell pattern")
    verb("clean", changing.clean, "Forget now what the retention says")
    one = verb("signal", talking.signal, "Leave a message in a task's mailbox")
    one.add_argument("id", metavar="ID", type=values.task_id)
    one.add_argument("name", metavar="NAME")
    one.add_argument("payload", metavar="JSON", type=values.json_value, nargs="?")
    one = verb("signals", talking.signals, "Show a task's mailbox")
    one.add_argument(
        "id", metavar="ID", type=values.task_id, nargs="?", default=os.environ.get("BGTASK_ID")
    )
    one.add_argument("--clear", action="store_true", help="and clear it")
    one.add_argument("-f", "--follow", action="store_true", help="go on until the task has ended")
    one.add_argument("-w", "--wait", action="store_true", help="wait for a message; show one")
    one.add_argument(
        "--timeout", type=values.span, metavar="SPAN", help="wait, but no longer than this"
    )
    one = verb("config", talking.config, "Show, or replace, the configuration a task sees")
    one.add_argument(
        "id", metavar="ID", type=values.task_id, nargs="?", default=os.environ.get("BGTASK_ID")
    )
    one.add_argument("value", metavar="JSON", type=values.json_value, nargs="?")
    one = verb("update", talking.update, "Report progress; inside a task, of this task")
    one.add_argument("--id", type=values.task_id, default=os.environ.get("BGTASK_ID"))
    one.add_argument("--progress", type=float, metavar="PERCENT")
    one.add_argument("--finished", type=int)
    one.add_argument("--total", type=int)
    one.add_argument("--rewind", action="store_true", help="let the percentage go back")
    one.add_argument("message", nargs="?")
    _add_record(verb("record", talking.record, "Keep a record of work that is done elsewhere"))
    _add_schedule(verb("schedule", scheduling.schedule, "Have tasks started again and again"))
    one = verb("queues", steering.queues, "List queues; pause or resume one")
    one.add_argument("action", choices=("list", "pause", "resume"), nargs="?", default="list")
    one.add_argument("queue", nargs="?")
    _add_call(verb("call", workers.call, "Hand a payload to a named task; prints its answer"))
    _add_workers(verb("workers", workers.workers, "Show the named tasks, and their processes"))
    one = verb("monitor", looking.monitor, "Show what runs, as it changes")
    one.add_argument("--lines", action="store_true", help="a line a change, also on a terminal")
    verb("reload", workers.reload, "Take the configuration files over; no task is dropped")
    one = verb("check-config", looking.check_config, "Check the configuration files")
    one.add_argument("--config", default="/etc/bgtaskd.yaml")
    one.add_argument("--conf-d", default="/etc/bgtaskd/conf.d")
    return top


def _add_call(one: argparse.ArgumentParser) -> None:
    one.add_argument("name", metavar="NAME", type=values.words)
    one.add_argument(
        "payload",
        metavar="JSON",
        type=values.words,
        nargs="?",
        help="default: null; - is standard input",
    )
    one.add_argument(
        "--timeout", type=values.span, metavar="SPAN", help="wait no longer for the answer"
    )
    one.add_argument(
        "--merge-key",
        metavar="KEY",
        type=values.words,
        help="share the answer of such a call of yours",
    )


def _add_workers(one: argparse.ArgumentParser) -> None:
    one.add_argument("names", metavar="NAME", type=values.words, nargs="*")
    which = one.add_mutually_exclusive_group()
    which.add_argument(
        "--failed", action="store_true", help="payloads that were set aside, and why"
    )
    for name, text in (("--retry", "try such payloads again"), ("--drop", "forget such payloads")):
        which.add_argument(name, type=values.payloads, metavar="ID[,ID…]|all", help=text)


def _add_changes(one: argparse.ArgumentParser) -> None:
    """What can be said of a task at its start and later."""
    one.add_argument(
        "--name", type=values.words, help="what it is called (default: the program's name)"
    )
    one.add_argument("--queue", type=values.words, help="which queue it waits in")
    one.add_argument("--priority", type=int, help="-1000 to 1000; higher first")
    one.add_argument(
        "--delay", type=values.span, metavar="SPAN", help="not before so long from now: 5min"
    )
    one.add_argument("--timeout", type=values.span, metavar="SPAN", help="stop it after so long")
    one.add_argument(
        "--stall-timeout",
        type=values.span,
        metavar="SPAN",
        help="stop it when it reports nothing for so long",
    )
    one.add_argument("--retries", type=int, help="try again so often when it fails")
    one.add_argument(
        "-p", "--property", action="append", type=values.pair, default=[], metavar="NAME=VALUE"
    )
    one.add_argument("--settings", type=values.json_value, metavar="JSON")
    one.add_argument(
        "--after",
        type=values.task_ids,
        metavar="ID[,ID…]",
        help="not before these tasks have succeeded",
    )
    one.add_argument(
        "--after-any",
        dest="after_result",
        action="store_const",
        const="any-result",
        help="with --after: ended, however",
    )
    one.add_argument("--group", type=values.words, help="a name for tasks that belong together")
    one.add_argument("--weight", type=int, metavar="SLOTS", help="how many slots it takes")


def _add_record(one: argparse.ArgumentParser) -> None:
    actions = one.add_subparsers(
        dest="action", metavar="ACTION", required=True, parser_class=values.Parser
    )
    add = actions.add_parser("add", help="make one; prints its id", allow_abbrev=False)
    add.add_argument("what", metavar="DESCRIPTION", type=values.words)
    add.add_argument("--settings", type=values.json_value, metavar="JSON")
    add.add_argument("--queue", type=values.words)
    add.add_argument("--merge-key", type=values.words, metavar="KEY")
    for name in ("started", "finished", "failed", "stopped"):
        say = actions.add_parser(name, help=f"say that it has {name}", allow_abbrev=False)
        say.add_argument("id", metavar="ID", type=values.task_id)
        say.add_argument("text", metavar="ERROR" if name == "failed" else "MESSAGE", nargs="?")
        say.add_argument("--value", type=values.json_value, metavar="JSON", help="what it came to")


def _add_schedule(one: argparse.ArgumentParser) -> None:
    actions = one.add_subparsers(dest="action", metavar="ACTION", parser_class=values.Parser)
    actions.add_parser("list", help="list them", allow_abbrev=False)
    usage = "bgtaskctl schedule add NAME --calendar EXPRESSION [OPTION…] -- COMMAND…"
    add = actions.add_parser("add", help="make one, or change it", usage=usage, allow_abbrev=False)
    add.add_argument("schedule", metavar="NAME", type=values.words)
    add.add_argument(
        "--calendar",
        action="append",
        type=values.words,
        required=True,
        metavar="EXPRESSION",
        help="when, as systemd.time(7) has it: 'Mon..Fri 08:00'",
    )
    add.add_argument(
        "--persistent",
        action="store_true",
        help="make up for what was due while the machine was off",
    )
    add.add_argument(
        "--randomized-delay", type=values.span, metavar="SPAN", help="later by up to so long"
    )
    add.add_argument(
        "--overlap",
        choices=("skip", "queue", "replace"),
        default="skip",
        help="what if the last task has not ended",
    )
    add.add_argument("-d", "--cwd", metavar="DIR", help="where it runs (default: here)")
    add.add_argument(
        "-E",
        "--setenv",
        "--env",
        action="append",
        type=values.env,
        default=[],
        metavar="NAME[=VALUE]",
    )
    _add_changes(add)
    for name, text in (
        ("rm", "forget one"),
        ("enable", "start its timer again"),
        ("disable", "stop its timer"),
        ("run", "start its task now; prints the id"),
    ):
        say = actions.add_parser(name, help=text, allow_abbrev=False)
        say.add_argument("name", metavar="NAME", type=values.words)
        if name == "run":
            say.add_argument(
                "--timer", action="store_true", help="as its timer does: once a moment"
            )


def _add_run(one: argparse.ArgumentParser) -> None:
    one.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER, help="after --")
    _add_start(one)
    one.add_argument("--user", help="run as this user (where the policy allows)")
    one.add_argument("-d", "--cwd", metavar="DIR", help="where it runs (default: here)")
    one.add_argument(
        "-E",
        "--setenv",
        "--env",
        action="append",
        type=values.env,
        default=[],
        metavar="NAME[=VALUE]",
    )
    one.add_argument(
        "--secret",
        action="append",
        type=values.secret,
        default=[],
        metavar="NAME[:FILE]",
        help="for $CREDENTIALS_DIRECTORY; without FILE it is asked for, - is standard input",
    )
    one.add_argument("--stdin", action="store_true", help="let `bgtaskctl send` send it text")
    one.add_argument(
        "--target",
        metavar="MODULE:NAME",
        help="run a task written in Python: a BackgroundTask or @background function",
    )


def _add_http(one: argparse.ArgumentParser) -> None:
    one.add_argument("method", metavar="METHOD", type=values.words, help="GET, POST, …")
    one.add_argument("path", metavar="PATH", type=values.words, help="below the app's base URL")
    one.add_argument(
        "--app", metavar="NAME", type=values.words, help="which of /etc/bgtaskd/apps.d"
    )
    one.add_argument(
        "--data",
        action="append",
        type=values.pair,
        default=[],
        metavar="NAME=VALUE",
        help="a field of a form",
    )
    one.add_argument("--json", type=values.json_value, metavar="TEXT", help="the body")
    one.add_argument(
        "--body", metavar="FILE", help="the body is what is in this file; - is standard input"
    )
    one.add_argument(
        "--header",
        action="append",
        type=values.words,
        default=[],
        metavar="'NAME: VALUE'",
        help="or @FILE, with one on each line: others can see what is on a command line",
    )
    one.add_argument(
        "--cookie",
        action="append",
        type=values.pair,
        default=[],
        metavar="NAME=VALUE",
        help="a cookie",
    )
    one.add_argument(
        "--anonymous", action="store_true", help="without cookies and the header Authorization"
    )
    one.add_argument("--no-merge", action="store_true", help="also if the same one has not ended")
    _add_start(one)


def _add_start(one: argparse.ArgumentParser) -> None:
    """What can be said of any task at its start."""
    one.add_argument("-w", "--wait", action="store_true", help="wait, and exit with its status")
    one.add_argument(
        "-f",
        "--follow",
        action="store_true",
        help="show its output and progress until it has ended",
    )
    _add_changes(one)
    one.add_argument(
        "--stop-timeout", type=values.span, metavar="SPAN", help="from SIGTERM to SIGKILL"
    )
    one.add_argument(
        "--retry-delay",
        type=values.span,
        metavar="SPAN",
        help="before the first retry; doubled each time",
    )
    one.add_argument(
        "--retry-on", action="append", metavar="RESULT", help="try again only after this result"
    )
    one.add_argument(
        "--merge-key",
        metavar="KEY",
        type=values.words,
        help="use a task with this key that has not ended",
    )
    one.add_argument(
        "--needs",
        action="append",
        type=values.need,
        default=[],
        metavar="NAME=NUMBER",
        help="how much it takes of a resource that the configuration counts",
    )
    one.add_argument("--on-end", metavar="COMMAND", help="a command to run when it has ended")
