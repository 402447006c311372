# SPDX-License-Identifier: LGPL-2.1-or-later
"""The launcher, its fork server and supervisors, for real, in process mode: no root, no systemd."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.system.brainless import Brainless
from tests.unit.test_launcher_input import ANYTHING, GOOD

OPERATIONS = [
    "launch", "stop", "kill", "freeze", "thaw", "slice", "set_properties", "inspect", "forget",
    "highest", "hello",
]  # fmt: skip


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brainless]:
    one = Brainless(tmp_path_factory.mktemp("brainless"))
    yield one
    one.close()


@pytest.fixture(scope="module")
def ids() -> Iterator[int]:
    return iter(range(1, 10_000))


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def record(brain: Brainless, task_id: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((brain.root / "exits" / f"{task_id}.1").read_text())
    return found


def test_a_task_runs_and_its_end_is_recorded(brain: Brainless, ids: Iterator[int]) -> None:
    task_id = next(ids)
    told = brain.run_task(task_id, "sh", "-c", "echo hello; echo oops >&2; exit 3")
    assert (told["result"], told["exit_status"]) == ("exit-code", 3)
    assert sorted(brain.output(task_id).splitlines()) == ["hello", "oops"]
    assert record(brain, task_id)["exit"] == told


def test_a_task_inherits_no_descriptor(brain: Brainless, ids: Iterator[int]) -> None:
    task_id = next(ids)
    brain.run_task(task_id, "sh", "-c", "ls /proc/$$/fd; echo .; ls -l /proc/$$/fd")
    numbers, _, long = brain.output(task_id).partition(".")
    assert numbers.split() == ["0", "1", "2"], long


def test_a_task_may_be_handed_a_text_over_a_descriptor(
    brain: Brainless, ids: Iterator[int]
) -> None:
    task_id = next(ids)
    text = json.dumps({"secret": "xyzzy" * 50_000})
    script = 'ls /proc/$$/fd; exec cat <&"$BGTASK_HANDOVER_FD"'
    told = brain.run_task(task_id, "sh", "-c", script, handover=text)
    assert told["result"] == "success"
    assert brain.output(task_id) == "0\n1\n2\n3\n" + text


def test_a_task_may_be_sent_text(brain: Brainless, ids: Iterator[int]) -> None:
    task_id = next(ids)
    # It begins to read once it is told to, so what is sent before must wait: more than a pipe holds.
    brain.launch(task_id, "sh", "-c", "until [ -e go ]; do sleep 0.02; done; wc -c; wc -c", stdin=True,
                 cwd=str(brain.root))  # fmt: skip
    large = "x" * 300_000
    for _ in range(3):
        brain.tell(task_id, {"stdin": large})
    brain.tell(task_id, {"stdin": "x" * 600_000})
    brain.tell(task_id, {"stdin": "the end", "eof": True})
    brain.until(lambda: len(brain.heard(task_id, "stdin_taken")) == 5)
    assert brain.heard(task_id, "stdin_taken") == [True, True, True, False, True]
    (brain.root / "go").touch()
    assert brain.exit_of(task_id)["result"] == "success"
    assert brain.output(task_id).split() == [str(3 * 300_000 + 7), "0"]


def test_a_task_without_a_pipe_is_sent_nothing(brain: Brainless, ids: Iterator[int]) -> None:
    task_id = next(ids)
    brain.launch(task_id, "sleep", "60")
    brain.tell(task_id, {"stdin": "anybody there?"})
    brain.until(lambda: brain.heard(task_id, "stdin_taken"))
    assert brain.heard(task_id, "stdin_taken") == [False]
    brain.ask("kill", id=task_id, attempt=1, signal=9, whom="all")
    assert brain.exit_of(task_id)["signal"] == "SIGKILL"


def test_supervisors_stand_on_builtin_modules() -> None:
    program = "import sys; import bgtaskd.launcher.forkserver; print(*sys.modules)"
    env = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    asked = subprocess.run(
        [sys.executable, "-S", "-c", program], env=env, capture_output=True, text=True, check=True
    )
    loaded = {one for one in asked.stdout.split() if not one.startswith("bgtaskd")}
    heavy = {"re", "enum", "typing", "json", "socket", "signal", "subprocess", "dataclasses"}
    assert not loaded & heavy
    assert len(loaded) < 60, sorted(loaded)


def test_no_signal_is_blocked_or_ignored(brain: Brainless, ids: Iterator[int]) -> None:
    task_id = next(ids)
    brain.run_task(task_id, "grep", "^Sig", "/proc/self/status")
    words = dict(line.split(":\t") for line in brain.output(task_id).splitlines())
    # 32 and 33 are libc's own: no program can set them, so a test run that inherited one ignored keeps it.
    programs = sum(1 << (number - 1) for number in signal.valid_signals())
    assert int(words["SigBlk"], 16) & programs == int(words["SigIgn"], 16) & programs == 0


def test_a_task_leads_a_session(brain: Brainless, ids: Iterator[int]) -> None:
    task_id = next(ids)
    brain.run_task(task_id, "cut", "-d ", "-f1,6", "/proc/self/stat")
    pid, session = brain.output(task_id).split()
    assert pid == session


def test_what_cannot_be_executed_is_said(brain: Brainless, ids: Iterator[int]) -> None:
    told = brain.run_task(next(ids), "/nonexistent")
    assert told["result"] == "resources"
    assert "'/nonexistent'" in told["error"]
    assert "No such file" in told["error"]
    assert told["exit_status"] is None


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGKILL, "SIGKILL"), (signal.SIGRTMIN + 6, "SIGRTMIN+6"), (signal.SIGUSR1, "SIGUSR1")],
)
def test_any_signal_has_a_name(
    brain: Brainless, ids: Iterator[int], number: int, name: str
) -> None:
    told = brain.run_task(next(ids), "sh", "-c", f"kill -{int(number)} $$")
    assert (told["result"], told["signal"]) == ("signal", name)


def test_no_attempt_is_launched_twice(brain: Brainless, ids: Iterator[int]) -> None:
    task_id = next(ids)
    brain.run_task(task_id, "true")
    assert brain.launch(task_id, "true")["error"] == "AlreadyLaunched"
    brain.ask("forget", attempts=[[task_id, 1]], outputs=[task_id])
    assert not (brain.root / "exits" / f"{task_id}.1").exists()
    assert not (brain.root / "tasks" / str(task_id)).exists()


def test_what_a_task_leaves_behind_is_told_and_can_be_stopped(
    brain: Brainless, ids: Iterator[int]
) -> None:
    task_id = next(ids)
    assert "ok" in brain.launch(task_id, "sh", "-c", "yes & exit 0")
    brain.until(lambda: brain.heard(task_id, "left_over"))
    assert not brain.heard(task_id, "exited")
    brain.ask("stop", id=task_id, attempt=1, stop_timeout_usec=5_000_000)
    assert brain.exit_of(task_id)["result"] == "success"


def test_what_escapes_from_a_task_cannot_keep_it_from_ending(
    brain: Brainless, ids: Iterator[int]
) -> None:
    task_id = next(ids)
    script = "setsid yes & sleep 0.3; exit 0"
    assert "ok" in brain.launch(task_id, "sh", "-c", script)
    assert brain.exit_of(task_id)["result"] == "success"  # `yes` dies by SIGPIPE then


def test_stop_is_sigterm_then_sigkill(brain: Brainless, ids: Iterator[int]) -> None:
    task_id = next(ids)
    script = "trap 'echo no' TERM; echo ready; while :; do sleep 0.001; done"
    brain.launch(task_id, "sh", "-c", script)
    brain.until(lambda: brain.heard(task_id, "output_bytes"))
    brain.ask("stop", id=task_id, attempt=1, stop_timeout_usec=300_000)
    assert brain.exit_of(task_id)["signal"] == "SIGKILL"
    assert "no" in brain.output(task_id)


def test_the_task_s_own_reports_reach_the_daemon(brain: Brainless, ids: Iterator[int]) -> None:
    task_id = next(ids)
    script = (
        "import os, socket\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "s.connect(os.environ['NOTIFY_SOCKET'])\n"
        "s.send(b'STATUS=half way\\nX_BGTASK_PROGRESS=50')\n"
        "r, w = os.pipe()\n"
        "socket.send_fds(s, [b'BARRIER=1'], [w])\n"
        "os.close(w)\n"
        "os.read(r, 1)\n"  # hangs until the supervisor closed its copy
    )
    told = brain.run_task(task_id, "/usr/bin/python3", "-c", script)
    assert told["result"] == "success"
    assert told["progress"] == {"message": "half way", "percent": 50.0}


def test_a_stalled_task_is_told_once_it_reports_no_more(
    brain: Brainless, ids: Iterator[int]
) -> None:
    task_id = next(ids)
    brain.launch(task_id, "sleep", "60", stall_timeout_usec=50_000)
    brain.until(lambda: brain.heard(task_id, "stalled"))
    brain.ask("kill", id=task_id, attempt=1, signal=9, whom="main")
    assert brain.exit_of(task_id)["result"] == "signal"


def test_a_killed_fork_server_costs_no_launch(brain: Brainless, ids: Iterator[int]) -> None:
    running, later = next(ids), next(ids)
    brain.launch(running, "sh", "-c", "while [ ! -e go ]; do sleep 0.05; done", cwd=str(brain.root))
    (server,) = children(brain.launcher.pid)
    os.kill(server, signal.SIGKILL)
    assert brain.run_task(later, "true")["result"] == "success"
    (brain.root / "go").touch()
    assert brain.exit_of(running)["result"] == "success"


def test_a_killed_launcher_costs_no_task(brain: Brainless, ids: Iterator[int]) -> None:
    running, later = next(ids), next(ids)
    brain.launch(running, "sh", "-c", "while [ ! -e on ]; do sleep 0.05; done", cwd=str(brain.root))
    asked = [next(ids) for _ in range(20)]
    for task_id in asked:
        brain.send("launch", **brain.request(task_id, ["true"]))
    brain.kill_launcher()
    brain.start()
    found = brain.ask("inspect", attempts=[[one, 1] for one in asked])["ok"]["attempts"]
    for one in found:
        # Asked again by whoever has no answer: each runs once, whatever became of the first time.
        while "ok" not in (answer := brain.launch(one["id"], "true")):
            assert answer["error"] == "AlreadyLaunched"
            if brain.starts(one["id"]):
                break
            # Its first supervisor is writing "not-started", or is about to call: either event ends this.
            brain.ask("hello")
        assert brain.exit_of(one["id"])["result"] == "success"
    for task_id in asked:
        assert len(brain.starts(task_id)) == 1
    assert brain.run_task(later, "true")["result"] == "success"
    (brain.root / "on").touch()
    assert brain.exit_of(running)["result"] == "success"


def test_a_daemon_that_comes_back_is_told_everything(brain: Brainless, ids: Iterator[int]) -> None:
    task_id = next(ids)
    brain.launch(task_id, "sh", "-c", "echo x; while [ ! -e up ]; do sleep 0.05; done",
                 cwd=str(brain.root))  # fmt: skip
    brain.until(lambda: brain.heard(task_id, "output_bytes"))
    brain.supervisors[task_id, 1].socket.shutdown(2)
    brain.until(lambda: len(brain.heard(task_id, "hello")) == 2)
    again = brain.heard(task_id, "hello")[1]
    assert again["output_bytes"] == 2
    assert again["started"]
    (brain.root / "up").touch()
    assert brain.exit_of(task_id)["result"] == "success"


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(OPERATIONS),
    st.dictionaries(
        st.sampled_from(
            ["id", "attempt", "signal", "whom", "queue", "properties", "attempts", "outputs"]
        ),
        ANYTHING
        | st.integers()
        | st.lists(st.lists(st.integers() | st.just(10**400), min_size=2, max_size=2)),
    ),
)
def test_whatever_is_asked_is_answered(
    brain: Brainless, operation: str, fields: dict[str, Any]
) -> None:
    fields = {
        key: value for key, value in fields.items() if operation != "forget" or key == "attempts"
    }
    answer = brain.ask(
        operation, **{**(GOOD if operation == "launch" else {}), **fields, "uid": -1}
    )
    assert ("ok" in answer) != ("error" in answer)
    assert answer.get("error") != "Failed", answer
    assert brain.launcher.poll() is None


@given(st.binary(max_size=200).filter(lambda data: b"\0" not in data))
@settings(max_examples=100, deadline=None)
def test_whatever_is_no_request_is_refused_by_name(brain: Brainless, data: bytes) -> None:
    brain.send_bytes(data)
    assert "ok" in brain.ask("hello")
    assert all(one["error"] == "BadMessage" for one in brain.answers.values())
    brain.answers.clear()


@pytest.mark.parametrize(
    "fields",
    [
        {"argv": ["\ud800"]},
        {"name": "\ud800"},
        {"name": "a\0b"},
        {"env": {"A": "\ud800"}},
        {"cwd": "/\udfff\ud800"},
    ],
)
def test_what_no_kernel_takes_is_refused_by_name(brain: Brainless, fields: dict[str, Any]) -> None:
    answer = brain.ask("launch", **{**brain.request(9_999_999, ["true"]), **fields})
    assert answer["error"] == "BadMessage"
    assert answer["reason"].startswith(next(iter(fields)))
