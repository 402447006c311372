# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `list`, `status` and `monitor` print: it fits, it is harmless, and it says what is so."""

from __future__ import annotations

import unicodedata
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgtaskd.cli import show
from bgtaskd.cli.monitor import screenful
from bgtaskd.cli.render import cut, escaped, moment, progress_bar, width
from bgtaskd.client.task import TaskInfo

BASE: dict[str, Any] = {
    **{one.name: None for one in fields(TaskInfo)},
    "id": 42,
    "name": "convert",
    "kind": "command",
    "state": "running",
    "queue": "default",
    "user": "alice",
    "priority": 0,
    "attempt": 1,
    "unit": "bgtask-42.scope",
    "created": 1_700_000_000_000_000,
    "started": 1_700_000_000_000_000,
    "updated": 1_700_000_000_000_000,
}
STATES = ("delayed", "queued", "running", "paused", "finished", "failed", "stopped")


def task(**values: Any) -> TaskInfo:
    return TaskInfo(**{**BASE, **values})


def harmless(line: str) -> bool:
    return all(unicodedata.category(one) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for one in line)


tasks = st.builds(
    task,
    id=st.integers(1, 10**9),
    name=st.text(min_size=1),
    state=st.sampled_from(STATES),
    result=st.sampled_from([None, "success", "exit-code", "signal", "interrupted"]),
    percent=st.none() | st.floats(0, 100),
    total=st.none() | st.integers(0, 2**63),
    finished=st.none() | st.integers(0, 2**63),
    message=st.none() | st.text(),
    error=st.none() | st.text(),
    user=st.sampled_from(["alice", "a\x1b[2Jb"]),
    not_before=st.none() | st.integers(0, 2**63),
)


@given(st.lists(tasks, max_size=8), st.integers(20, 200), st.booleans())
def test_a_list_never_wraps_and_never_steers(
    found: list[TaskInfo], columns: int, legend: bool
) -> None:
    lines = show.task_table(found, columns, False, legend)
    assert len(lines) == len(found) + legend
    assert all(width(line) <= columns for line in lines)
    assert all(harmless(line) for line in lines)


@given(st.lists(tasks, min_size=1, max_size=8))
def test_in_a_pipe_nothing_is_cut(found: list[TaskInfo]) -> None:
    for one, line in zip(found, show.task_table(found, None, False, False), strict=True):
        assert escaped(one.name).strip() in line
        assert "█" not in line


@given(tasks, st.binary(), st.integers(40, 200))
def test_the_status_of_anything_is_printable(one: TaskInfo, output: bytes, columns: int) -> None:
    assert all(harmless(line) for line in show.task_status(one, output, columns, False))


@given(tasks, st.integers(1, 200))
def test_a_progress_line_fits(one: TaskInfo, columns: int) -> None:
    assert width(show.progress_line(one, columns)) <= columns


@given(st.lists(tasks, max_size=40), st.lists(tasks, max_size=9), st.integers(5, 50))
def test_the_monitor_keeps_to_the_screen(
    live: list[TaskInfo], ended: list[TaskInfo], lines: int
) -> None:
    live = [replace(one, state="running") for one in live]
    ended = [replace(one, state="finished") for one in ended]
    assert len(screenful(live, ended, 80, lines, False)) <= lines


def test_a_colour_is_the_states_and_not_a_name_s() -> None:
    (line,) = show.task_table([task(name="running")], 80, True, False)
    assert line.split()[:3] == ["42", "running", "\x1b[32mrunning\x1b[0m"]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"state": "running"}, "running"),
        ({"state": "failed", "result": "exit-code", "exit_status": 3}, "failed (exit 3)"),
        ({"state": "failed", "result": "signal", "signal": "SIGKILL"}, "failed (SIGKILL)"),
        ({"state": "failed", "result": "oom-kill", "signal": "SIGKILL"}, "failed (oom-kill)"),
    ],
)
def test_why_it_failed(values: dict[str, Any], text: str) -> None:
    assert show.what(task(**values)) == text


def test_a_bar_is_full_only_when_all_is_done() -> None:
    assert progress_bar(99.9, 8) == "███████░"
    assert show.percent_of(task(percent=99.9)) == "99%"
    assert progress_bar(100, 8) == "█" * 8


def test_wide_and_combining_characters_count_as_a_terminal_counts() -> None:
    assert (width("日本"), width("e\u0301"), width("ก็"), width("한")) == (4, 1, 1, 2)
    assert cut("日本語", 5) == "日本…"
    assert cut("日本語", 4) == "日…"


def test_the_last_ten_lines_of_output_as_they_were_last_seen() -> None:
    output = b"".join(b"%d\n" % number for number in range(20)) + b"10%\r90%\r\n\xff\x1b[2J"
    lines = show.output_lines(output)
    assert lines == [*[str(number) for number in range(12, 20)], "90%", "\ufffd\x1b[2J"]
    assert show.task_status(task(), output, 80, False)[-1] == "\ufffd\\x1b[2J"


def test_a_time_beyond_the_calendar_is_no_crash() -> None:
    assert moment(2**63) == "in a distant year"


def test_a_status_shows_what_is_run_and_what_it_waits_for() -> None:
    one = task(
        state="queued", kind="command", argv=["sh", "-c", "a  b\x1b"], group="thumbs", after=[3, 7]
    )
    lines = show.task_status(one, b"", 40, False)
    assert "    Command: sh -c 'a  b\\x1b'" in lines
    assert "      Group: thumbs" in lines
    assert "      After: 3, 7" in lines
    long = show.task_status(task(kind="command", argv=["x" * 99]), b"", 40, False)
    [command] = [line for line in long if "Command:" in line]
    assert len(command) == 40
