# SPDX-License-Identifier: LGPL-2.1-or-later
"""bgtaskctl http: a route of a web app as a background task."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from bgtaskd.cli.common import Problem, client
from bgtaskd.cli.starting import start_options, started


def http(arguments: Namespace) -> int:
    """bgtaskctl http."""
    bodies = {"data": _fields(arguments.data), "json": arguments.json, "body": arguments.body}
    given = [name for name, one in bodies.items() if one is not None]
    if len(given) > 1:
        raise Problem(f"a request has one body: --{given[0]} or --{given[1]}")
    if arguments.body is not None:
        bodies["body"] = _read(arguments.body)
    with client(arguments) as one:
        task_id = one.http(
            arguments.method,
            arguments.path,
            app=arguments.app,
            headers=dict(_headers(arguments.header)),
            cookies=dict(arguments.cookie),
            as_user=not arguments.anonymous,
            merge=not arguments.no_merge,
            name=arguments.name,
            **bodies,
            **start_options(arguments),
        )
        return started(one, task_id, arguments)


def _fields(pairs: list[tuple[str, str]]) -> dict[str, list[str]] | None:
    """A form: a field may be given several times."""
    form: dict[str, list[str]] = {}
    for name, value in pairs:
        form.setdefault(name, []).append(value)
    return form or None


def _headers(texts: list[str]) -> Iterator[tuple[str, str]]:
    for text in texts:
        lines = [text]
        if text.startswith("@"):
            lines = [line for line in _read(text[1:]).decode("latin-1").splitlines() if line]
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon:
                where = "" if line is text else f" (a line of {text[1:]})"
                raise Problem(f"--header: must be NAME: VALUE, or @FILE{where}")
            yield name.strip(), value.strip()


def _read(path: str) -> bytes:
    if path == "-":
        data: Any = sys.stdin.buffer.read()
        return bytes(data)
    with open(path, "rb") as file:
        return file.read()
