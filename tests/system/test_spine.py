# SPDX-License-Identifier: LGPL-2.1-or-later
"""One task's life on real systemd, seen through bgtaskctl, systemctl, journalctl and the cgroup tree."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.houses.container import Container

TREE = "/sys/fs/cgroup/bgtask.slice"


def start(machine: Container, *argv: str, user: str = "alice") -> int:
    """`bgtaskctl run argv`: the id."""
    return int(machine.output("bgtaskctl", "run", *argv, user=user))


def get(machine: Container, task_id: int, user: str = "alice") -> dict[str, Any]:
    """The task, as `bgtaskctl status -o json` has it."""
    text = machine.output("bgtaskctl", "status", "-o", "json", str(task_id), user=user)
    task: dict[str, Any] = json.loads(text)
    return task


def wait(machine: Container, task_id: int, user: str = "alice") -> dict[str, Any]:
    """Wait for the end; the task."""
    machine.run(["bgtaskctl", "wait", str(task_id)], user=user, check=False, timeout=60)
    return get(machine, task_id, user)


def wait_running(machine: Container, task_id: int) -> dict[str, Any]:
    """Wait until the task's program runs; the task."""
    machine.wait_for(f"task {task_id}", lambda: get(machine, task_id)["state"] == "running")
    return get(machine, task_id)


def test_units_are_up_and_the_sandbox_holds(machine: Container) -> None:
    assert machine.systemctl(
        "is-active", "bgtaskd.service", "bgtaskd-launcher.service"
    ).split() == [
        "active",
        "active",
    ]
    text = machine.run(["systemd-analyze", "security", "--no-pager", "bgtaskd.service"]).stdout
    score = re.search(r"exposure level for bgtaskd.service: ([0-9.]+)", text)
    assert score is not None
    assert float(score[1]) <= 2.0


def test_a_task_runs_as_its_caller_in_its_own_scope(machine: Container) -> None:
    task_id = start(
        machine, "--", "sh", "-c", "id -un; grep ^0:: /proc/self/cgroup; exec sleep 600"
    )
    task = wait_running(machine, task_id)
    unit = f"bgtask-{task_id}.scope"
    assert task["unit"] == unit
    assert machine.systemctl("is-active", unit) == "active"
    assert machine.systemctl("show", "-P", "Slice", unit) == "bgtask-default.slice"
    procs = machine.read(f"{TREE}/bgtask-default.slice/{unit}/cgroup.procs").split()
    assert len(procs) == 1
    assert machine.read(f"/proc/{procs[0]}/comm").strip() == "sleep"
    output = machine.output("bgtaskctl", "output", str(task_id), user="alice").splitlines()
    assert output == ["alice", f"0::/bgtask.slice/bgtask-default.slice/{unit}"]
    machine.run(["bgtaskctl", "stop", str(task_id)], user="alice")
    task = wait(machine, task_id)
    assert (task["state"], task["result"]) == ("stopped", "stopped")
    assert machine.run(["systemctl", "is-active", unit], check=False).stdout.strip() == "inactive"


@pytest.mark.parametrize(
    ("script", "state", "result", "status", "signal"),
    [
        ("exit 0", "finished", "success", 0, None),
        ("exit 7", "failed", "exit-code", 7, None),
        ("kill -SEGV $$", "failed", ("signal", "core-dump"), None, "SIGSEGV"),
        ("kill -KILL $$", "failed", "signal", None, "SIGKILL"),
    ],
)
def test_ends(
    machine: Container, script: str, state: str, result: Any, status: int | None, signal: str | None
) -> None:
    task = wait(machine, start(machine, "--", "sh", "-c", script))
    assert task["state"] == state
    assert task["result"] in (result if isinstance(result, tuple) else (result,))
    assert (task["exit_status"], task["signal"]) == (status, signal)
    assert task["percent"] == (100 if state == "finished" else None)


def test_a_program_that_is_not_there_says_so(machine: Container) -> None:
    task = wait(machine, start(machine, "--", "/nonexistent/program"))
    assert (task["state"], task["result"]) == ("failed", "resources")
    assert "/nonexistent/program" in task["error"]
    assert "No such file" in task["error"]


def test_output_is_in_the_journal_under_the_unit(machine: Container) -> None:
    script = "echo out; echo err >&2; echo '<3>bad'; printf unended"
    task_id = start(machine, "--name", "talker", "--", "sh", "-c", script)
    wait(machine, task_id)
    unit = f"bgtask-{task_id}.scope"
    machine.run(["journalctl", "--sync"])
    text = machine.output("journalctl", "-u", unit, "-o", "json")
    entries = [json.loads(line) for line in text.splitlines()]
    ours = {one["MESSAGE"]: one for one in entries if "BGTASK_ID" in one}
    assert {"out", "err", "bad", "unended"} <= set(ours)
    assert [ours[line]["PRIORITY"] for line in ("out", "err", "bad")] == ["6", "4", "3"]
    one = ours["out"]
    assert one["BGTASK_ID"] == str(task_id)
    assert one["BGTASK_NAME"] == "talker"
    assert one["BGTASK_ATTEMPT"] == "1"
    assert one["BGTASK_QUEUE"] == "default"
    by_id = machine.output("journalctl", f"BGTASK_ID={task_id}", "-o", "cat")
    assert "unended" in by_id


def test_progress_by_systemd_notify(machine: Container) -> None:
    script = (
        "systemd-notify --status='half way' X_BGTASK_FINISHED=5 X_BGTASK_TOTAL=10; exec sleep 600"
    )
    task_id = start(machine, "--", "sh", "-c", script)
    machine.wait_for("the report", lambda: get(machine, task_id)["finished"] == 5)
    task = get(machine, task_id)
    assert (task["percent"], task["total"], task["message"]) == (50, 10, "half way")
    machine.run(["bgtaskctl", "kill", str(task_id)], user="alice")
    task = wait(machine, task_id)
    assert (task["result"], task["percent"]) == ("stopped", 50)


def test_a_strangers_notify_message_is_not_taken(machine: Container) -> None:
    script = "echo $NOTIFY_SOCKET; exec sleep 600"
    task_id = start(machine, "--", "sh", "-c", script)
    other = start(machine, "--", "sleep", "600")
    wait_running(machine, task_id)
    wait_running(machine, other)
    machine.wait_for(
        "the path", lambda: machine.output("bgtaskctl", "output", str(task_id), user="alice") != ""
    )
    path = machine.output("bgtaskctl", "output", str(task_id), user="alice").strip()
    send = (
        "import socket, sys, time\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "s.sendto(b'STATUS=forged', sys.argv[1])\n"
        "time.sleep(0.5)\n"
    )
    for user in ("alice", "bob"):
        machine.run(["python3", "-c", send, path], user=user, check=False)
    assert get(machine, task_id)["message"] is None
    for one in (task_id, other):
        machine.run(["bgtaskctl", "kill", str(one)], user="alice")


def test_stop_ends_all_processes_and_kills_the_stubborn(machine: Container) -> None:
    script = "trap '' TERM; (trap '' TERM; sleep 601) & sleep 602; sleep 603"
    task_id = start(machine, "--stop-timeout", "1s", "--", "bash", "-c", script)
    wait_running(machine, task_id)
    machine.run(["bgtaskctl", "stop", str(task_id)], user="alice")
    task = wait(machine, task_id)
    assert (task["state"], task["signal"]) == ("stopped", "SIGKILL")
    assert machine.run(["pgrep", "-f", "sleep 60[123]"], check=False).stdout == ""
    failed = machine.output("systemctl", "list-units", "--failed", "--no-legend", "bgtask-*")
    assert failed == ""


def test_pause_freezes_and_resume_thaws(machine: Container) -> None:
    task_id = start(machine, "--", "sleep", "600")
    unit = wait_running(machine, task_id)["unit"]
    events = f"{TREE}/bgtask-default.slice/{unit}/cgroup.events"
    machine.run(["bgtaskctl", "pause", str(task_id)], user="alice")
    machine.wait_for("paused", lambda: get(machine, task_id)["state"] == "paused")
    assert "frozen 1" in machine.read(events)
    machine.run(["bgtaskctl", "resume", str(task_id)], user="alice")
    machine.wait_for("running", lambda: get(machine, task_id)["state"] == "running")
    assert "frozen 0" in machine.read(events)
    machine.run(["bgtaskctl", "pause", str(task_id)], user="alice")
    machine.run(["bgtaskctl", "stop", str(task_id)], user="alice")
    assert wait(machine, task_id)["state"] == "stopped"


def test_time_limits(machine: Container) -> None:
    overall = start(machine, "--timeout", "1s", "--", "sleep", "600")
    stalled = start(machine, "--stall-timeout", "1s", "--", "sleep", "600")
    assert wait(machine, overall)["result"] == "timeout"
    assert wait(machine, stalled)["result"] == "watchdog"


def test_retries_with_their_own_units(machine: Container) -> None:
    options = ["--retries", "2", "--retry-delay", "100ms"]
    task_id = start(machine, *options, "--", "sh", "-c", "cat /proc/self/cgroup; exit 3")
    task = wait(machine, task_id)
    assert (task["state"], task["attempt"], task["exit_status"]) == ("failed", 3, 3)
    assert task["unit"] == f"bgtask-{task_id}.3.scope"
    assert f"bgtask-{task_id}.3.scope" in machine.output(
        "bgtaskctl", "output", str(task_id), user="alice"
    )
    machine.run(["bgtaskctl", "retry", str(task_id)], user="alice")
    assert wait(machine, task_id)["attempt"] >= 4


def test_others_see_and_steer_nothing(machine: Container) -> None:
    task_id = start(machine, "--", "sleep", "600")
    for verb in ("status", "stop", "output", "kill"):
        done = machine.run(["bgtaskctl", verb, str(task_id)], user="bob", check=False)
        assert done.returncode in (4, 5), done.stderr
    assert str(task_id) not in machine.output(
        "bgtaskctl", "list", "--all", "-o", "json", user="bob"
    ).split('"id":')
    machine.run(["bgtaskctl", "stop", str(task_id)])


def test_exit_codes(machine: Container) -> None:
    def code(*argv: str, user: str | None = "alice") -> int:
        return machine.run(["bgtaskctl", *argv], user=user, check=False).returncode

    assert code("list") == 0
    assert code("run", "--wait", "--", "sh", "-c", "exit 9") == 9
    assert code("frobnicate") == 2
    assert code("status", "999999") == 4
    assert code("run", "--user", "root", "--", "true") == 5
    done = machine.run(
        ["bgtaskctl", "list"], user="alice", env={"BGTASKD_SOCKET": "/nowhere"}, check=False
    )
    assert done.returncode == 3
    assert "/nowhere" in done.stderr


def test_a_restart_of_the_bus_is_survived(machine: Container) -> None:
    before = start(machine, "--", "sleep", "600")
    wait_running(machine, before)
    machine.systemctl("restart", "dbus.service")
    assert wait(machine, start(machine, "--", "true"))["result"] == "success"
    machine.run(["bgtaskctl", "stop", str(before)], user="alice")
    assert wait(machine, before)["result"] == "stopped"
    assert machine.systemctl("is-active", "bgtaskd-launcher.service") == "active"
