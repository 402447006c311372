# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verbs that change what waits or has ended, and look back: edit, retry, send, stats, clean."""

from __future__ import annotations

import dataclasses
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from bgtaskd.cli import common
from bgtaskd.cli.render import escaped, size, span, table
from bgtaskd.client.task import NameStats

PIECE = 32 * 1024
CHANGES = tuple(
    "name queue priority delay timeout stall_timeout retries settings after after_result group weight".split()
)


def changes_of(arguments: Namespace) -> dict[str, Any]:
    """What is to be changed, by the names of Client.start's options."""
    given = {name: getattr(arguments, name) for name in CHANGES}
    changed = {name: value for name, value in given.items() if value is not None}
    if arguments.property:
        changed["properties"] = dict(arguments.property)
    return changed


def edit(arguments: Namespace) -> int:
    """bgtaskctl edit."""
    changed = changes_of(arguments)
    if not changed:
        raise common.Problem("change what? bgtaskctl edit ID --priority 5 (see --help)")
    return common.for_each(arguments, lambda one, task_id: one.edit(task_id, **changed))


def retry(arguments: Namespace) -> int:
    """bgtaskctl retry."""
    changed = changes_of(arguments)
    return common.for_each(arguments, lambda one, task_id: one.retry(task_id, **changed))


def send(arguments: Namespace) -> None:
    """bgtaskctl send: the words as a line, or standard input as it is."""
    with common.client(arguments) as one:
        if arguments.text:
            one.send(arguments.id, " ".join(arguments.text) + "\n", eof=arguments.eof)
            return
        while piece := sys.stdin.read(PIECE // 4):
            one.send(arguments.id, piece)
        one.send(arguments.id, "", eof=True)


def stats(arguments: Namespace) -> None:
    """bgtaskctl stats."""
    with common.client(arguments) as one:
        found = one.stats(arguments.name)
    if arguments.output == "json":
        common.print_json([dataclasses.asdict(row) for row in found])
        return
    lines = stats_table(found, common.columns(), not arguments.no_legend)
    if not found and not arguments.no_legend:
        lines = ["No task has ended yet."]
    common.print_lines(lines, arguments)


def stats_table(found: Sequence[NameStats], columns: int | None, legend: bool) -> list[str]:
    """The table of `stats`."""
    rows = [
        [
            escaped(one.name),
            str(one.runs),
            str(one.failures),
            "-" if one.p50_usec is None else span(one.p50_usec),
            "-" if one.p95_usec is None else span(one.p95_usec),
            "-" if one.memory_peak is None else size(one.memory_peak),
            span(one.cpu_usec),
        ]
        for one in found
    ]
    head = ["NAME", "RUNS", "FAILED", "P50", "P95", "PEAK", "CPU"]
    lines = table(head, rows, 0, columns, right=(1, 2, 3, 4, 5, 6))
    return lines if legend else lines[1:]


def clean(arguments: Namespace) -> None:
    """bgtaskctl clean."""
    with common.client(arguments) as one:
        removed = one.clean()
    if arguments.output == "json":
        common.print_json({"removed": removed})
    elif not arguments.quiet:
        print(f"Forgot {removed} tasks whose retention was over.")
