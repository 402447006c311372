# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verbs for named tasks: call, workers, reload."""

from __future__ import annotations

import dataclasses
import sys
from argparse import Namespace
from collections.abc import Sequence

from bgtaskd.cli import common
from bgtaskd.cli.render import coloured, escaped, moment, size, span, table
from bgtaskd.cli.show import now
from bgtaskd.client.blocking import Client
from bgtaskd.client.runner import Runner
from bgtaskd.client.workers import AsidePayload, ProcessInfo, WorkerInfo
from bgtaskd.errors import NoSuchWorker
from bgtaskd.protocol.codec import DEPTH_MAX, MalformedMessage, decode_value

CHUNK = 1000
ALL = "all"
"""In place of ids: every payload that is set aside, of the named tasks that are told."""
HEAD = "NAME INSTANCE STATE UPTIME SERVED FAILED WAITING MEMORY PEAK CPU".split()
COLOURS = {"running": "32", "starting": "33", "leaving": "33", "down": "31"}


def call(arguments: Namespace) -> None:
    """bgtaskctl call."""
    payload = None
    if arguments.payload is not None:
        word = arguments.payload
        try:
            data = sys.stdin.buffer.read() if word == "-" else word.encode()
            payload = decode_value(data, DEPTH_MAX)
        except MalformedMessage as error:
            raise common.Problem(f"the payload is {error}") from None
    runner = Runner(common.client(arguments).path)
    answer = runner.run(
        arguments.name, payload, timeout=arguments.timeout, merge_key=arguments.merge_key
    )
    common.print_json(answer)


def reload(arguments: Namespace) -> int:
    """bgtaskctl reload."""
    with common.client(arguments) as one:
        mistakes = one.reload()
    if arguments.output == "json":
        common.print_json({"mistakes": mistakes})
    else:
        for mistake in mistakes:
            print(escaped(mistake), file=sys.stderr)
    return 1 if mistakes else 0


def workers(arguments: Namespace) -> int:
    """bgtaskctl workers."""
    with common.client(arguments) as one:
        if arguments.retry or arguments.drop:
            return _decide(one, arguments)
        if arguments.failed:
            _list_aside(one, arguments)
            return 0
        found = _chosen(one.workers(), arguments.names)
    if arguments.output == "json":
        common.print_json([dataclasses.asdict(row) for row in found])
        return 0
    legend = not arguments.no_legend
    lines = worker_table(found, common.columns(), common.colours(), legend)
    if not found and legend:
        lines = ["No named tasks."]
    if legend:
        lines += hints(found)
    common.print_lines(lines, arguments)
    return 0


def _chosen(found: Sequence[WorkerInfo], names: Sequence[str]) -> list[WorkerInfo]:
    known = {row.name for row in found}
    for name in names:
        if name not in known:
            raise NoSuchWorker(name=name)
    return [row for row in found if not names or row.name in names]


def worker_table(
    found: Sequence[WorkerInfo], columns: int | None, colours: bool, legend: bool
) -> list[str]:
    """The table of `workers`: a line for each process, or for a named task that has none; and their sum."""
    rows, codes = [], []
    for one in found:
        shown = [_process_row(each) for each in one.processes]
        # Down: it is to be there, and is being started again, or waits before it is.
        shown = shown or [["-", "down" if one.wanted else "idle", *"-" * 3, "", *"-" * 3]]
        for number, row in enumerate(shown):
            waiting = str(one.backlog) if number == 0 else ""
            rows.append([escaped(one.name), *row[:5], waiting, *row[6:]])
            codes.append(COLOURS.get(row[1], "0"))
    if legend and rows:
        rows.append(_total_row(found))
        codes.append("0")
    lines = table(
        HEAD,
        rows,
        0,
        columns,
        right=(1, 3, 4, 5, 6, 7, 8, 9),
        colour=(2, codes) if colours else None,
    )
    if legend and rows:
        lines[-1] = coloured(lines[-1], "1", colours)
    return lines if legend else lines[1:]


def hints(found: Sequence[WorkerInfo]) -> list[str]:
    """What somebody should look at."""
    lines = [f"{row.name} is not ready: {escaped(row.error)}" for row in found if row.error]
    aside = sum(row.aside for row in found)
    if aside:
        lines.append(f"Set aside: {aside}. See them: bgtaskctl workers --failed")
    return ["", *lines] if lines else []


def _process_row(one: ProcessInfo) -> list[str]:
    """All columns but the name; the sixth is the named task's."""
    return [
        str(one.instance),
        one.state,
        "-" if one.started is None else span(max(0, now() - one.started)),
        str(one.served),
        str(one.failed),
        "",
        size(one.memory_current),
        size(one.memory_peak),
        span(one.cpu_usec),
    ]


def _total_row(found: Sequence[WorkerInfo]) -> list[str]:
    processes = [each for one in found for each in one.processes]

    def total(name: str) -> int | None:
        known = [value for each in processes if (value := getattr(each, name)) is not None]
        return sum(known) if known else None

    return [
        f"total {len(found)}",
        str(len(processes)),
        "",
        "",
        str(total("served") or 0),
        str(total("failed") or 0),
        str(sum(one.backlog for one in found)),
        size(total("memory_current")),
        size(total("memory_peak")),
        span(total("cpu_usec")),
    ]


# --- payloads that were set aside ---------------------------------------------------------------------


def _all_aside(one: Client, names: Sequence[str]) -> list[AsidePayload]:
    """Newest first, name by name where names are given."""
    found: list[AsidePayload] = []
    for name in names or (None,):
        before = None
        while True:
            chunk = one.aside_payloads(name, before=before, limit=CHUNK)
            found += chunk
            if len(chunk) < CHUNK:
                break
            before = chunk[-1].id
    return found


def _list_aside(one: Client, arguments: Namespace) -> None:
    found = _all_aside(one, arguments.names)
    if arguments.output == "json":
        common.print_json([dataclasses.asdict(row) for row in found])
        return
    lines = aside_table(found, common.columns(), not arguments.no_legend)
    if not found and not arguments.no_legend:
        lines = ["No payloads are set aside."]
    common.print_lines(lines, arguments)


def aside_table(found: Sequence[AsidePayload], columns: int | None, legend: bool) -> list[str]:
    """The table of `workers --failed`."""
    rows = [
        [
            str(one.id),
            escaped(one.name),
            moment(one.created),
            str(one.tries),
            escaped(one.reason),
            escaped(one.payload),
        ]
        for one in found
    ]
    lines = table(
        ["ID", "NAME", "ACCEPTED", "TRIES", "REASON", "PAYLOAD"], rows, 5, columns, (0, 3)
    )
    return lines if legend else lines[1:]


def _decide(one: Client, arguments: Namespace) -> int:
    """--retry, --drop: exits with 1 where one of the ids is of no payload that is set aside."""
    wanted = arguments.retry or arguments.drop
    act = one.retry_payloads if arguments.retry else one.drop_payloads
    ids = [row.id for row in _all_aside(one, arguments.names)] if wanted == ALL else wanted
    done: list[int] = []
    for at in range(0, len(ids), CHUNK):
        done += act(ids[at : at + CHUNK])
    missing = [] if wanted == ALL else [number for number in ids if number not in done]
    if arguments.output == "json":
        common.print_json({"ids": done})
    elif not arguments.quiet:
        what = "Will be tried again" if arguments.retry else "Dropped"
        print(f"{what}: {len(done)}")
    for number in missing:
        print(f"bgtaskctl: no payload {number} is set aside", file=sys.stderr)
    return 1 if missing else 0
