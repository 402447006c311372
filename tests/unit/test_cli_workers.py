# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `workers` and `monitor` print of named tasks."""

from __future__ import annotations

import json
from dataclasses import replace

from bgtaskd.cli import monitor, workers
from bgtaskd.cli.render import width
from bgtaskd.client.task import Failure
from bgtaskd.client.workers import AsidePayload, ProcessInfo, WorkerInfo
from tests.unit.test_cli_show import harmless


def process(number: int, state: str = "running") -> ProcessInfo:
    return ProcessInfo(
        id=number,
        instance=number,
        state=state,
        started=1_700_000_000_000_000,
        served=1000 * number,
        failed=number,
        held=10,
        memory_current=(number << 20) or None,
        memory_peak=None,
        cpu_usec=3_000_000,
    )


def named(name: str, *processes: ProcessInfo, wanted: int = 1, waiting: int = 0) -> WorkerInfo:
    return WorkerInfo(name, "async", "m:C", "alice", wanted, waiting, 0, None, processes)


FOUND = [
    named("cache", process(1), process(2, "leaving"), waiting=5),
    named("later", wanted=0),
    named("broken", waiting=7),
]


def test_a_line_for_each_process_and_their_sum() -> None:
    head, *rows, total = workers.worker_table(FOUND, None, False, True)
    assert head.split() == workers.HEAD
    cells = [row.split() for row in rows]
    assert [row[:3] for row in cells] == [
        ["cache", "1", "running"],
        ["cache", "2", "leaving"],
        ["later", "-", "idle"],
        ["broken", "-", "down"],
    ]
    assert "25" in cells[0], "waiting: what is in hand is not done yet"
    assert cells[3][6] == "7"
    assert total.split() == ["total", "3", "2", "3000", "3", "32", "3.0M", "-", "6s"]


def test_what_somebody_should_look_at() -> None:
    assert workers.hints(FOUND) == []
    broken = replace(named("broken"), error="process 7 ended:\n\x1b", aside=2)
    assert workers.hints([*FOUND, broken]) == [
        "",
        r"broken is not ready: process 7 ended:\n\x1b",
        "Set aside: 2. See them: bgtaskctl workers --failed",
    ]


def test_it_fits_and_without_legend_it_is_rows_alone() -> None:
    for columns in (20, 40, 80):
        assert all(
            width(one) <= columns for one in workers.worker_table(FOUND, columns, False, True)
        )
    assert len(workers.worker_table(FOUND, None, False, False)) == 4
    assert workers.worker_table([], None, False, False) == []


def test_the_reason_of_what_was_set_aside() -> None:
    wire = {
        "id": 7,
        "name": "mail",
        "uid": 1000,
        "payload": '"\x1b"',
        "tries": 1,
        "created": 0,
        "reason": json.dumps({"type": "KeyError", "message": "to", "traceback": "…"}),
        "a newer daemon says more": 1,
    }
    one = AsidePayload.from_wire(wire)
    assert (one.failure, one.reason) == (Failure("KeyError", "to", "…"), "KeyError: to")
    died = AsidePayload.from_wire({**wire, "reason": "killed by SIGKILL"})
    assert (died.failure, died.reason) == (None, "killed by SIGKILL")
    for number in ("3", "[1]", '{"type": 1}'):
        assert AsidePayload.from_wire({**wire, "reason": number}).reason == number
    assert all(harmless(line) for line in workers.aside_table([one, died], None, True))


def test_monitor_keeps_room_for_tasks_and_the_sum() -> None:
    many = [named(f"task{number}", process(number)) for number in range(50)]
    lines = monitor.screenful([], [], 100, 24, False, many)
    assert len(lines) <= 24
    assert lines[-1].startswith("total 50")
    assert monitor.screenful([], [], 100, 24, False)[1:] == []
