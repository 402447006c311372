# SPDX-License-Identifier: LGPL-2.1-or-later
"""From words of bgtaskctl's command line to values. What is none raises ArgumentTypeError."""

from __future__ import annotations

import argparse
import os
import re
import sys
from typing import Any, NoReturn

from bgtaskd.cli import workers
from bgtaskd.cli.render import escaped
from bgtaskd.properties import parse_timespan
from bgtaskd.protocol.codec import DEPTH_MAX, MalformedMessage, decode_value

USAGE = 2
"""The exit status."""
STATES = ("delayed", "queued", "running", "paused", "finished", "failed", "stopped")


class Parser(argparse.ArgumentParser):
    """Says what is wrong as systemctl would."""

    def error(self, message: str) -> NoReturn:
        """Say so, and exit."""
        print(
            f"bgtaskctl: {escaped(message)}\nTry 'bgtaskctl --help', or man bgtaskctl.",
            file=sys.stderr,
        )
        sys.exit(USAGE)


def span(text: str) -> float:
    """A time span, in seconds."""
    try:
        return parse_timespan(text) / 1e6
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def secret(text: str) -> tuple[str, str]:
    """NAME, or NAME:FILE."""
    name, _, path = text.partition(":")
    if not name or "=" in name:
        raise argparse.ArgumentTypeError(
            "NAME or NAME:FILE; a secret on a command line would be none"
        )
    return name, path


def pair(text: str) -> tuple[str, str]:
    """NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def need(text: str) -> tuple[str, int]:
    """NAME=NUMBER."""
    name, number = pair(text)
    if not number.isascii() or not number.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=NUMBER")
    return name, int(number)


def task_id(text: str) -> int:
    """A task's id; also as units have it: what was copied from systemctl can be pasted here."""
    unit = re.fullmatch(r"(?:bgtask-)?([0-9]{1,18})(?:\.[0-9]+)?(?:\.scope)?", text)
    if unit is None or ("." in text and "bgtask-" not in text):
        raise argparse.ArgumentTypeError(f"{text!r} is no task's id")
    return int(unit[1])


def task_ids(text: str) -> list[int]:
    """ID,ID…"""
    return [task_id(one) for one in text.split(",")]


def env(text: str) -> tuple[str, str | None]:
    """NAME=VALUE, or NAME for the value that it has here; None where it has none."""
    return pair(text) if "=" in text else (text, os.environ.get(text))


def words(text: str) -> str:
    """Text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("not valid UTF-8") from None
    return text


def states(text: str) -> list[str]:
    """STATE,STATE…"""
    found = text.split(",")
    for state in found:
        if state not in STATES:
            raise argparse.ArgumentTypeError(f"{state!r} is no state; they are {', '.join(STATES)}")
    return found


def count(text: str) -> int:
    """A number of lines."""
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines")
    return int(text)


def json_value(text: str) -> Any:
    """JSON."""
    try:
        return decode_value(words(text).encode(), DEPTH_MAX)
    except MalformedMessage as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def payloads(text: str) -> Any:
    """Ids of payloads, or all."""
    return text if text == workers.ALL else task_ids(text)


class IdsThenRest(argparse.Action):
    """Ids, and from the first word that is none, another program's own options."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Sets `ids` and `options`."""
        ids, rest = [], list(values)
        while rest and not rest[0].startswith("-"):
            try:
                ids.append(task_id(rest.pop(0)))
            except argparse.ArgumentTypeError as error:
                parser.error(str(error))
        if not ids:
            parser.error("the logs of which task?")
        namespace.ids, namespace.options = ids, rest[1:] if rest[:1] == ["--"] else rest
