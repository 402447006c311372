# SPDX-License-Identifier: LGPL-2.1-or-later
"""Any process may be killed between any two lines: nothing is lost, nothing runs twice."""

from __future__ import annotations

import json
import random
import threading
import time

import pytest

from tests.houses.container import Container
from tests.system.test_spine import get, start, wait, wait_running

DAEMON, LAUNCHER = "bgtaskd.service", "bgtaskd-launcher.service"
KILLS = [[DAEMON], [LAUNCHER], [DAEMON, LAUNCHER]]
STATE = "/var/lib/bgtaskd/state"


def kill(machine: Container, *units: str) -> None:
    """SIGKILL, as nobody can catch."""
    machine.run(["systemctl", "kill", "--signal=KILL", *units], check=False)


@pytest.mark.parametrize("units", KILLS, ids=["daemon", "launcher", "both"])
def test_a_running_task_goes_on(machine: Container, units: list[str]) -> None:
    script = (
        "echo before; until [ -e ~/go ]; do sleep 0.05; done; "
        "systemd-notify X_BGTASK_PROGRESS=70 --status=after; echo after; exit 5"
    )
    machine.run(["rm", "-f", "go"], user="alice")
    task_id = start(machine, "--", "sh", "-c", script)
    wait_running(machine, task_id)
    kill(machine, *units)
    machine.run(["touch", "go"], user="alice")
    task = wait(machine, task_id)
    assert (task["state"], task["result"], task["exit_status"]) == ("failed", "exit-code", 5)
    assert (task["attempt"], task["percent"], task["message"]) == (1, 70, "after")
    assert task["cpu_usec"] > 0
    output = machine.output("bgtaskctl", "output", str(task_id), user="alice")
    assert output.split() == ["before", "after"]


def test_what_ends_while_the_daemon_is_down_is_known_afterwards(machine: Container) -> None:
    task_id = start(machine, "--", "sh", "-c", "sleep 1; exit 6")
    wait_running(machine, task_id)
    machine.systemctl("stop", "bgtaskd.socket", "bgtaskd-supervisors.socket", DAEMON)
    unit = f"bgtask-{task_id}.scope"
    machine.wait_for(
        "its end",
        lambda: machine.run(["systemctl", "is-active", unit], check=False).returncode != 0,
    )
    machine.systemctl("start", "bgtaskd.socket", DAEMON)
    task = wait(machine, task_id)
    assert (task["result"], task["exit_status"], task["attempt"]) == ("exit-code", 6, 1)


def test_kills_at_random_moments_lose_nothing_and_double_nothing(machine: Container) -> None:
    machine.run(["rm", "-f", "ran"], user="alice")
    done = threading.Event()
    accepted: list[int] = []

    def submit() -> None:
        while len(accepted) < 60:
            argv = ["bgtaskctl", "run", "--", "sh", "-c", 'echo "$BGTASK_ID" >> ~/ran']
            answer = machine.run(argv, user="alice", check=False)
            if answer.returncode == 0:
                accepted.append(int(answer.stdout))
        done.set()

    submitter = threading.Thread(target=submit)
    submitter.start()
    chance = random.Random(7)
    while not done.wait(chance.uniform(0.02, 0.3)):
        kill(machine, *chance.choice(KILLS))
    submitter.join()
    results = {task_id: wait(machine, task_id) for task_id in accepted}
    assert {(task["result"], task["error"]) for task in results.values()} == {("success", None)}
    ran = [int(line) for line in machine.read("/home/alice/ran").split()]
    assert len(ran) == len(set(ran)), "some task ran twice"
    assert set(accepted) <= set(ran)


def insist(machine: Container, *argv: str) -> str:
    """bgtaskctl, again until it is answered."""
    while True:
        answer = machine.run(["bgtaskctl", *argv], user="alice", check=False)
        if answer.returncode == 0:
            return answer.stdout
        assert answer.returncode == 3 or "connection broke" in answer.stderr, answer.stderr


def test_one_key_is_one_task_and_a_configuration_that_was_taken_stays(machine: Container) -> None:
    machine.sh("rm -f ~alice/open ~alice/merged")
    script = 'until [ -e ~/open ]; do sleep 0.05; done; echo "$BGTASK_ID" >>~/merged'
    chance = random.Random(3)
    ids: list[int] = []
    for number in range(6):
        answers: set[int] = set()
        for _ in range(3):
            argv = ["run", "--merge-key", f"key {number}", "--", "sh", "-c", script]
            answers.add(int(insist(machine, *argv)))
            if chance.random() < 0.6:
                kill(machine, *chance.choice(KILLS))
        assert len(answers) == 1
        ids += answers
        told = f'{{"level": {number}}}'
        insist(machine, "config", str(ids[0]), told)
        kill(machine, DAEMON)
        assert json.loads(insist(machine, "config", "-o", "json", str(ids[0]))) == json.loads(told)
    machine.sh("touch ~alice/open")
    results = {wait(machine, one)["result"] for one in ids}
    assert results == {"success"}
    ran = [int(line) for line in machine.read("/home/alice/merged").split()]
    assert sorted(ran) == sorted(ids)


def test_a_killed_supervisor_is_admitted(machine: Container) -> None:
    task_id = start(machine, "--", "sleep", "604")
    wait_running(machine, task_id)
    machine.sh("kill -9 $(ps -o ppid= -p $(pgrep -xf 'sleep 604'))")
    task = wait(machine, task_id)
    assert (task["state"], task["result"]) == ("failed", "lost")
    machine.wait_for(
        "nothing of it left",
        lambda: machine.run(["pgrep", "-xf", "sleep 604"], check=False).stdout == "",
    )


def test_a_stop_outlives_the_daemon(machine: Container) -> None:
    task_id = start(machine, "--", "sleep", "600")
    wait_running(machine, task_id)
    machine.run(["bgtaskctl", "stop", str(task_id)], user="alice")
    kill(machine, DAEMON)
    task = wait(machine, task_id)
    assert (task["state"], task["result"]) == ("stopped", "stopped")


def test_delays_and_retries_outlive_the_daemon(machine: Container) -> None:
    delayed = start(machine, "--delay", "2s", "--", "true")
    again = start(machine, "--retries", "1", "--retry-delay", "1s", "--", "false")
    machine.wait_for("a retry", lambda: get(machine, again)["state"] == "delayed")
    kill(machine, DAEMON)
    assert wait(machine, delayed)["result"] == "success"
    task = wait(machine, again)
    assert (task["result"], task["attempt"]) == ("exit-code", 2)


def test_a_corrupt_database_is_moved_aside(fresh_machine: Container) -> None:
    machine = fresh_machine
    ended = start(machine, "--", "true")
    wait(machine, ended)
    running = start(machine, "--name", "survivor", "--", "sh", "-c", "sleep 4; exit 8")
    wait_running(machine, running)
    machine.systemctl("stop", "bgtaskd.socket", DAEMON)
    machine.sh(
        f"rm -f {STATE}/state.db-*; "
        f"dd if=/dev/urandom of={STATE}/state.db bs=4096 count=1 conv=notrunc status=none"
    )
    machine.systemctl("start", "bgtaskd.socket", DAEMON)
    assert machine.sh(f"ls {STATE}/state.db.corrupt-*").stdout
    loud = machine.journal("-u", DAEMON, "-p", "crit")
    assert "corrupt" in loud
    task = wait(machine, running)
    assert (task["name"], task["result"], task["exit_status"]) == ("survivor", "exit-code", 8)
    assert start(machine, "--", "true") > running


def test_a_full_disk_refuses_new_work_and_loses_nothing(fresh_machine: Container) -> None:
    machine = fresh_machine
    machine.systemctl("stop", "bgtaskd.socket", DAEMON)
    machine.sh(
        f"mount -t tmpfs -o size=1M,mode=700,uid=$(id -u bgtaskd),gid=$(id -g bgtaskd) t {STATE}"
    )
    machine.systemctl("start", "bgtaskd.socket", DAEMON)
    running = start(machine, "--", "sh", "-c", "sleep 3; exit 4")
    wait_running(machine, running)
    machine.run(["sh", "-c", f"cat /dev/zero > {STATE}/filler"], check=False)
    refused = machine.run(["bgtaskctl", "run", "--", "true"], user="alice", check=False)
    tries = 0
    while refused.returncode == 0 and tries < 200:  # room in the pages it has already
        refused = machine.run(["bgtaskctl", "run", "--", "true"], user="alice", check=False)
        tries += 1
    assert refused.returncode == 1
    assert "cannot be written" in refused.stderr
    assert "Traceback" not in refused.stderr
    time.sleep(
        3.5
    )  # the task ends meanwhile: an event that nothing announces while the disk is full
    machine.run(["rm", f"{STATE}/filler"])
    task = wait(machine, running)
    assert (task["result"], task["exit_status"]) == ("exit-code", 4)
    assert wait(machine, start(machine, "--", "true"))["result"] == "success"


def test_a_reboot_interrupts_what_ran_and_runs_what_waited(fresh_machine: Container) -> None:
    machine = fresh_machine
    running = start(machine, "--", "sleep", "600")
    again = start(machine, "--retries", "1", "--retry-delay", "0", "--", "sleep", "601")
    waiting = start(machine, "--delay", "4s", "--", "true")
    for task_id in (running, again):
        wait_running(machine, task_id)
    machine.reboot()
    task = wait(machine, running)
    assert (task["state"], task["result"]) == ("failed", "interrupted")
    # The two are settled one after the other: for a moment the other still stands as it was.
    machine.wait_for("its second attempt", lambda: get(machine, again)["attempt"] == 2)
    wait_running(machine, again)
    assert wait(machine, waiting)["result"] == "success"
