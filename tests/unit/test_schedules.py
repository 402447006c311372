# SPDX-License-Identifier: LGPL-2.1-or-later
"""The administrator's schedules: what a file may say, and that a mistake in one is told and harms no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from bgtaskd.schedules import load_schedules

GOOD = """
calendar: [daily, "Mon 08:00"]
user: alice
command: report --all 'two words'
persistent: true
randomized_delay: 5min
overlap: queue
timeout: 1h
properties: {MemoryMax: 1G, TasksMax: 20}
env: {LEVEL: 3}
"""


def test_a_file_is_a_schedule_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "nightly-report.yaml").write_text(GOOD)
    [one], errors = load_schedules(str(tmp_path))
    assert errors == []
    assert (one.name, one.user, one.calendar) == ("nightly-report", "alice", ("daily", "Mon 08:00"))
    assert one.spec == {
        "argv": ["report", "--all", "two words"],
        "env": {"LEVEL": "3"},
        "properties": {"MemoryMax": "1G", "TasksMax": "20"},
        "timeout_usec": 3_600_000_000,
    }
    assert (one.persistent, one.randomized_delay_usec, one.overlap) == (True, 300_000_000, "queue")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("calendar: daily\nuser: alice\n", "command: must be a program"),
        ('calendar: daily\nuser: alice\ncommand: "\'"\n', ":3: command: cannot be split"),
        ("user: alice\ncommand: x\n", "calendar: must be an expression"),
        ("calendar: [1]\nuser: alice\ncommand: x\n", ":1: calendar: must be an expression"),
        ("calendar: daily\ncommand: x\n", "user: must be a text"),
        ("calendar: daily\nuser: alice\ncommand: x\nqueu: y\n", ":4: queu: no such key"),
        (
            "calendar: daily\nuser: a\ncommand: x\noverlap: maybe\n",
            ":4: overlap: must be one of skip",
        ),
        (
            "calendar: daily\nuser: a\ncommand: x\ntimeout: soon\n",
            ":4: timeout: must be a time span",
        ),
        ("calendar: daily\nuser: a\ncommand: x\npriority: true\n", ":4: priority: must be a whole"),
        ("calendar: daily\nuser: a\ncommand: x\nenv: [1]\n", ":4: env: must be a mapping"),
        ("calendar: [\n", "bad.yaml"),
        ("- a list\n", "bad.yaml"),
        ("\x00", "bad.yaml"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    (tmp_path / "good.yaml").write_text(GOOD)
    found, errors = load_schedules(str(tmp_path))
    assert [one.name for one in found] == ["good"]
    assert any(named in str(error) for error in errors), [str(error) for error in errors]


def test_a_name_is_the_names_of_units(tmp_path: Path) -> None:
    (tmp_path / "no blanks.yaml").write_text(GOOD)
    assert load_schedules(str(tmp_path))[0] == []
    assert load_schedules(str(tmp_path / "none")) == ([], [])
