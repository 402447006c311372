# SPDX-License-Identifier: LGPL-2.1-or-later
"""tasks.d: what a file may say, what it means, and that a mistake is told with its place and harms no other."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bgtaskd.workers import KEYS, WorkerFile, load_worker, load_workers

ROOT = Path(__file__).parents[2]
NEEDED = "class: shop.mail:MailSender\ntype: async\nuser: www-data\n"
EXAMPLE = ROOT / "examples/tasks.d/example.yaml"
VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.lists(st.integers())


def save(tmp_path: Path, text: str, name: str = "mail.yaml") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def mistakes(tmp_path: Path, text: str, name: str = "mail.yaml") -> list[tuple[int, str, str]]:
    found, errors = load_worker(save(tmp_path, text, name))
    assert found is None
    return [(one.line, one.key, one.reason) for one in errors]


def test_every_key_says_what_it_says(tmp_path: Path) -> None:
    path = save(
        tmp_path,
        NEEDED + "python: /venv/bin/python\nimport_path: [/srv]\ncwd: /srv\nenv: {A: 1}\n"
        "instances: 2\nqueue: mail\nproperties: {MemoryMax: 500M}\ngroup: staff\n"
        'mode: "0600"\nmax_jobs: 9\nmax_memory: 1K\nstart: call\nidle_stop: 1min\n'
        "watchdog: 2\nstop_timeout: 500ms\nbacklog: 7\ntries: 1\n",
    )
    found, errors = load_worker(path)
    assert errors == []
    assert found == WorkerFile(
        name="mail",
        path=path,
        target="shop.mail:MailSender",
        type="async",
        user="www-data",
        python="/venv/bin/python",
        import_path=("/srv",),
        cwd="/srv",
        env={"A": "1"},
        instances=2,
        queue="mail",
        properties={"MemoryMax": "500M"},
        group="staff",
        mode=0o600,
        max_jobs=9,
        max_memory=1024,
        start="call",
        idle_stop_usec=60_000_000,
        watchdog_usec=2_000_000,
        stop_timeout_usec=500_000,
        backlog=7,
        tries=1,
    )


def test_the_example_shows_every_key_with_its_default(tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    plain, errors = load_worker(save(tmp_path, text))
    assert (plain is None, errors) == (False, [])
    shown = re.sub(r"^#(?=\w+: )", "", text, flags=re.MULTILINE)
    assert set(yaml.safe_load(shown)) == set(KEYS)
    assert load_worker(save(tmp_path, shown)) == (plain, [])


@pytest.mark.parametrize("key", KEYS)
def test_the_manual_has_every_key(key: str) -> None:
    assert f"\n.TP\n.B {key}\n" in (ROOT / "man/bgtaskd-tasks.5").read_text()


@pytest.mark.parametrize(
    ("line", "key", "reason"),
    [
        ("colour: red", "colour", "no such key"),
        ("python: python3", "python", "absolute path"),
        ("instances: 65", "instances", "from 1 to 64"),
        ("instances: yes", "instances", "whole number"),
        ("start: never", "start", "boot, call"),
        ("mode: 0660", "mode", "octal number in quotes"),
        ("watchdog: soon", "watchdog", "time span"),
        ("max_memory: much", "max_memory", "size"),
        ("properties: {Delegate: 'yes'}", "properties", "Delegate"),
        ("import_path: [srv]", "import_path", "absolute paths"),
        ("env: [A]", "env", "mapping"),
        ('cwd: "/a\\0b"', "cwd", "a text"),
    ],
)
def test_mistakes(tmp_path: Path, line: str, key: str, reason: str) -> None:
    [(where, what, why)] = mistakes(tmp_path, f"{NEEDED}{line}\n")
    assert (where, what) == (4, key)
    assert reason in why


def test_all_mistakes_of_a_file_are_told(tmp_path: Path) -> None:
    found = mistakes(tmp_path, "class: nothing\ntype: slow\n", "no-name.yaml")
    assert [key for _, key, _ in found] == ["", "class", "type", "user"]


def test_a_mistake_in_one_harms_no_other(tmp_path: Path) -> None:
    save(tmp_path, NEEDED, "good.yaml")
    save(tmp_path, "{", "bad.yaml")
    found, errors = load_workers(str(tmp_path))
    assert (list(found), [Path(one.path).name for one in errors]) == (["good"], ["bad.yaml"])


def test_what_is_another_definition(tmp_path: Path) -> None:
    """Processes are replaced where they would be others; not who may call, nor how many."""
    one, _ = load_worker(save(tmp_path, NEEDED))
    assert one is not None
    same = replace(one, instances=5, group="staff", mode=0o600, start="call", backlog=1, tries=1)
    assert same.digest() == one.digest()
    for changed in ({"user": "bob"}, {"env": {"A": "1"}}, {"max_jobs": 1}, {"watchdog_usec": 1}):
        assert replace(one, **changed).digest() != one.digest()


@settings(suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(KEYS), VALUES))
def test_any_values_are_read_or_refused(tmp_path: Path, data: dict[str, object]) -> None:
    found, errors = load_worker(save(tmp_path, yaml.safe_dump(data)))
    assert bool(found) != bool(errors)
