# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line: what is understood, what is refused, and with which exit status."""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgtaskd import errors
from bgtaskd.cli import main as cli
from bgtaskd.cli import patient, starting
from bgtaskd.cli.options import parser
from bgtaskd.cli.patient import patiently
from bgtaskd.client.blocking import Client
from bgtaskd.client.task import StartedId
from tests.unit.test_cli_show import task

ROOT = Path(__file__).parents[2]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, Any]]]:
    calls: list[tuple[list[str], dict[str, Any]]] = []

    def start(self: Client, argv: list[str], **options: Any) -> StartedId:
        calls.append((argv, {key: one for key, one in options.items() if one is not None}))
        return StartedId(7)

    monkeypatch.setattr(Client, "start", start)
    return calls


def test_run_prints_the_id_alone(
    started: list[tuple[list[str], dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        cli.main(["run", "--name", "x", "-E", "A=b=c", "-E", "NOT_SET_HERE", "--", "ls", "-l"]) == 0
    )
    assert capsys.readouterr() == ("7\n", "")
    argv, options = started[0]
    assert argv == ["ls", "-l"]
    assert options == {"name": "x", "env": {"A": "b=c"}, "cwd": str(Path.cwd())}


def test_options_after_the_command_are_the_commands(
    started: list[tuple[list[str], dict[str, Any]]],
) -> None:
    assert cli.main(["run", "--delay", "1min 30s", "grep", "-f", "--", "x"]) == 0
    assert started[0][0] == ["grep", "-f", "--", "x"]
    assert started[0][1]["delay"] == 90


def test_somebody_else_starts_in_their_own_home(
    started: list[tuple[list[str], dict[str, Any]]],
) -> None:
    cli.main(["run", "--user", "bob", "--", "true"])
    assert started[0][1] == {"user": "bob"}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.NoSuchTask(id=1), 4),
        (errors.PermissionDenied(reason="no"), 5),
        (errors.NotReachable("/run/bgtaskd/control.sock", "No such file or directory"), 3),
        (errors.NotReachable("/run/bgtaskd/control.sock", "Permission denied"), 5),
        (errors.QueueFull(queue="default", limit=3), 1),
        (errors.RemoteError("org.varlink.service.InvalidParameter", {"parameter": "x"}), 1),
        (BrokenPipeError(), 0),
        (OSError(28, "No space left on device"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_statuses_are_those_of_the_manual(
    error: BaseException,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(self: Client, task_id: int) -> None:
        raise error

    monkeypatch.setattr(Client, "stop", fail)
    monkeypatch.setattr("os.dup2", lambda *_: None)
    assert cli.main(["stop", "1"]) == status
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert text.startswith("bgtaskctl: ") or status in (0, 130)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["stop"],
        ["stop", "x"],
        ["stop", "-1"],
        ["stop", "42.scope"],
        ["list", "--state", "asleep"],
        ["run", "--timeout", "soon", "--", "true"],
        ["run", "--settings", "{", "--", "true"],
        ["run", "-p", "MemoryMax", "--", "true"],
        ["run", "--name", "\udcff", "--", "true"],
        ["signal", "1", "name", "not json"],
        ["signal", "1", "name", "NaN"],
        ["signal", "1", "name", "[" * 100_000],
        ["signal", "1", "name", '"\udcff"'],
        ["workers", "--retry", "all", "--drop", "all"],
    ],
)
def test_wrong_usage_is_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("bgtaskctl: ")


@pytest.mark.parametrize("payload", ["{", "NaN", "[" * 100_000, '"\\ud800"'])
def test_a_payload_is_json(payload: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["call", "name", payload]) == 1
    assert capsys.readouterr().err.startswith("bgtaskctl: the payload is not JSON: ")


def test_ids_as_units_have_them() -> None:
    parse = parser().parse_args
    assert parse(["stop", "42", "bgtask-43", "bgtask-44.scope", "bgtask-45.2.scope"]).ids == [
        42,
        43,
        44,
        45,
    ]


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({"state": "finished", "result": "success", "exit_status": 0}, 0),
        ({"state": "failed", "result": "exit-code", "exit_status": 7}, 7),
        ({"state": "failed", "result": "signal", "signal": "SIGTERM"}, 143),
        ({"state": "failed", "result": "timeout", "exit_status": 0}, 1),
        ({"state": "failed", "result": "lost"}, 1),
        ({"state": "stopped", "result": "stopped", "signal": "SIGTERM"}, 1),
    ],
)
def test_the_tasks_own_status(values: dict[str, Any], status: int) -> None:
    assert starting.exit_status(task(**values)) == status


def test_one_failure_keeps_no_other_task_from_its_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = []

    def stop(self: Client, task_id: int) -> None:
        if task_id == 1:
            raise errors.NoSuchTask(id=1)
        stopped.append(task_id)

    monkeypatch.setattr(Client, "stop", stop)
    assert cli.main(["stop", "1", "2", "3"]) == 4
    assert stopped == [2, 3]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["1"], ["BGTASK_ID=1", "+", "UNIT=bgtask-1.scope"]),
        (["1", "-o", "cat"], ["-o", "cat", "BGTASK_ID=1", "+", "UNIT=bgtask-1.scope"]),
        (["1", "--", "-r"], ["-r", "BGTASK_ID=1", "+", "UNIT=bgtask-1.scope"]),
        (
            ["-f", "-n", "3", "1"],
            ["--follow", "--lines=3", "BGTASK_ID=1", "+", "UNIT=bgtask-1.scope"],
        ),
    ],
)
def test_logs_asks_journalctl(
    argv: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(Client, "get", lambda self, task_id: task(id=task_id))
    monkeypatch.setattr("os.execvp", lambda _, words: ran.append(words))
    assert cli.main(["logs", *argv]) == 0
    assert ran == [["journalctl", *words]]


# --- waiting outlives the daemon ----------------------------------------------------------------------


def gone() -> errors.NotReachable:
    return errors.NotReachable("/x", "Connection refused")


def test_a_stream_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient, "AGAIN_SECONDS", 0)
    tries: list[list[int | Exception]] = [[1, gone()], [gone()], [2]]

    def begin() -> Iterator[int]:
        for one in tries.pop(0):
            if isinstance(one, Exception):
                raise one
            yield one

    assert list(patiently(begin)) == [1, 2]


def test_nobody_is_waited_for_who_never_was_there() -> None:
    def begin() -> Iterator[int]:
        raise gone()

    with pytest.raises(errors.NotReachable):
        list(patiently(begin))


def test_a_wait_goes_on_with_those_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient, "AGAIN_SECONDS", 0)
    asked = []

    class Daemon(Client):
        def wait_all(self, ids: Any, timeout: Any = None) -> Iterator[Any]:
            asked.append(list(ids))
            yield task(id=ids[0])
            raise gone()

    found = [one.id for one in patient.wait_all(Daemon("/x"), [3, 1, 3, 2])]
    assert (found, asked) == ([3, 1, 2], [[3, 1, 2], [1, 2], [2]])


# --- what is shipped beside ---------------------------------------------------------------------------


def subparsers() -> dict[str, argparse.ArgumentParser]:
    (action,) = [one for one in parser()._actions if isinstance(one, argparse._SubParsersAction)]
    return dict(action.choices)


@pytest.mark.parametrize("verb", list(subparsers()))
def test_the_manual_knows_every_verb_and_option(verb: str) -> None:
    manual = (ROOT / "man/bgtaskctl.1").read_text().replace("\\-", "-")
    assert re.search(rf"\\fB{verb}\\fR", manual)
    for action in subparsers()[verb]._actions:
        longs = [one for one in action.option_strings if one.startswith("--")]
        assert not longs or "--help" in longs or any(f"\\fB{one}\\fR" in manual for one in longs)


def test_the_completions_know_every_verb() -> None:
    for name in ("completions/bgtaskctl.bash", "completions/_bgtaskctl"):
        text = (ROOT / name).read_text()
        assert [verb for verb in subparsers() if not re.search(rf"\b{verb}\b", text)] == []


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH on which bgtaskctl knows two tasks and two queues, and the states it was asked for."""
    program = tmp_path / "bgtaskctl"
    program.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        "list*--state\\ paused*) echo ' 9 sleeper paused' ;;\n"
        "list*) echo ' 7 a: b running'; echo '42 c finished' ;;\n"
        "queues*) echo 'default 4'; echo 'video 1' ;;\n"
        "workers*) echo 'cache 1'; echo 'cache 2'; echo 'mail 1' ;;\n"
        "run\\ --help) echo '  --name X  --nice' ;;\n"
        "esac\n"
    )
    program.chmod(0o755)
    return f"{tmp_path}:/usr/bin:/bin"


@pytest.mark.parametrize(
    ("words", "replies"),
    [
        (["pa"], ["pause"]),
        (["stop", ""], ["7", "42"]),
        (["resume", ""], ["9"]),
        (["status", "4"], ["42"]),
        (["run", "--queue", "v"], ["video"]),
        (["queues", "pause", "d"], ["default"]),
        (["run", "--na"], ["--name"]),
        (["call", ""], ["cache", "mail"]),
        (["workers", "m"], ["mail"]),
        (["list", "--state", "pa"], ["paused"]),
        (["run", "--", "bgtaskc"], ["bgtaskctl"]),
        (["--socket", "/x", "resu"], ["resume"]),
    ],
)
def test_bash_completes(path: str, words: list[str], replies: list[str]) -> None:
    script = (
        'source "$1"; shift; COMP_WORDS=(bgtaskctl "$@"); COMP_CWORD=$#; _bgtaskctl; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        [
            "/bin/bash",
            "--norc",
            "-c",
            script,
            "-",
            str(ROOT / "completions/bgtaskctl.bash"),
            *words,
        ],
        env={"PATH": path},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.stdout.split(), done.stderr) == (replies, "")
