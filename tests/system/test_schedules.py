# SPDX-License-Identifier: LGPL-2.1-or-later
"""Recurring tasks by real timers: due, skipped, queued, replaced; once a moment though all is killed."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.houses.container import Container
from tests.system.test_crash import DAEMON, LAUNCHER, kill
from tests.system.test_spine import get, wait, wait_running

FILES = "/etc/bgtaskd/schedules.d"


def schedules(machine: Container, user: str = "alice") -> dict[str, dict[str, Any]]:
    text = machine.output("bgtaskctl", "schedule", "-o", "json", "list", user=user)
    return {one["name"]: one for one in json.loads(text)}


def add(machine: Container, name: str, *argv: str, user: str = "alice") -> None:
    machine.run(["bgtaskctl", "schedule", "add", name, *argv], user=user)


def remove(machine: Container, name: str) -> None:
    machine.run(["bgtaskctl", "schedule", "rm", name], user="alice")


def tasks_of(machine: Container, name: str) -> list[dict[str, Any]]:
    argv = ["bgtaskctl", "list", "-a", "--name", name, "-o", "json"]
    found: list[dict[str, Any]] = json.loads(machine.output(*argv))
    return found[::-1]


def test_a_timer_of_systemds_starts_it_again_and_again(machine: Container) -> None:
    add(machine, "ticks", "--calendar", "*-*-* *:*:*", "--", "sh", "-c", "id -un >>~/ticks")
    timer = "bgtask-schedule@ticks.timer"
    assert machine.systemctl("is-active", timer) == "active"
    machine.wait_for("three", lambda: len(tasks_of(machine, "ticks")) >= 3)
    one = schedules(machine)["ticks"]
    assert (one["user"], one["calendar"]) == ("alice", ["*-*-* *:*:*"])
    # At the moment at which it elapses there is none.
    machine.wait_for("the next", lambda: schedules(machine)["ticks"]["next"] is not None)
    assert one["last_task"] in [task["id"] for task in tasks_of(machine, "ticks")]
    assert "ticks" not in schedules(machine, "bob")
    refused = machine.run(["bgtaskctl", "schedule", "rm", "ticks"], user="bob", check=False)
    assert refused.returncode == 5
    machine.run(["bgtaskctl", "schedule", "disable", "ticks"], user="alice")
    assert machine.run(["systemctl", "is-active", timer], check=False).stdout.strip() == "inactive"
    machine.run(["bgtaskctl", "schedule", "enable", "ticks"], user="alice")
    assert machine.systemctl("is-active", timer) == "active"
    remove(machine, "ticks")
    assert machine.run(["systemctl", "is-active", timer], check=False).stdout.strip() == "inactive"
    assert {task["result"] for task in tasks_of(machine, "ticks") if task["ended"]} == {"success"}


def test_systemd_says_what_is_wrong_with_a_calendar(machine: Container) -> None:
    argv = ["bgtaskctl", "schedule", "add", "never", "--calendar", "when it rains", "--", "true"]
    done = machine.run(argv, user="alice", check=False)
    assert (done.returncode, "calendar: Invalid calendar spec" in done.stderr) == (1, True), (
        done.stderr
    )
    add(machine, "good", "--calendar", "daily", "--", "true")
    argv = ["bgtaskctl", "schedule", "add", "good", "--calendar", "when it rains", "--", "true"]
    assert machine.run(argv, user="alice", check=False).returncode == 1
    assert schedules(machine)["good"]["calendar"] == ["daily"]
    assert machine.systemctl("is-active", "bgtask-schedule@good.timer") == "active"
    remove(machine, "good")


def run_now(machine: Container, name: str) -> str:
    return machine.output("bgtaskctl", "schedule", "run", name, user="alice")


def test_what_if_the_last_has_not_ended(machine: Container) -> None:
    for overlap in ("skip", "queue", "replace"):
        add(machine, overlap, "--calendar", "yearly", "--overlap", overlap, "--", "sleep", "600")
        first = int(run_now(machine, overlap))
        wait_running(machine, first)
        if overlap == "skip":
            assert run_now(machine, overlap) == "The last one has not ended."
        else:
            second = int(run_now(machine, overlap))
            if overlap == "queue":
                assert get(machine, second)["state"] == "queued"
                machine.run(["bgtaskctl", "stop", str(first)], user="alice")
            wait_running(machine, second)
            assert wait(machine, first)["state"] == "stopped"
            machine.run(["bgtaskctl", "stop", str(second)], user="alice")
        machine.run(["bgtaskctl", "stop", str(first)], user="alice", check=False)
        remove(machine, overlap)


def test_the_administrators_files(machine: Container) -> None:
    machine.run(["mkdir", "-p", FILES])
    machine.write(
        f"{FILES}/backup.yaml", "calendar: daily\nuser: alice\ncommand: id -un\npersistent: true\n"
    )
    machine.write(f"{FILES}/broken.yaml", "calendar: daily\nuser: alice\n")
    machine.write(f"{FILES}/rainy.yaml", "calendar: when it rains\nuser: alice\ncommand: 'true'\n")
    machine.systemctl("reload", "bgtaskd.service")
    machine.wait_for(
        "them", lambda: (schedules(machine).get("rainy") or {}).get("error") is not None
    )
    found = schedules(machine)
    assert found["backup"]["file"] == f"{FILES}/backup.yaml"
    assert "Invalid calendar spec" in found["rainy"]["error"]
    assert "broken" not in found
    checked = machine.run(["bgtaskctl", "check-config"], check=False)
    assert f"{FILES}/broken.yaml: command: must be a program" in checked.stderr.replace(":0", "")
    task = wait(machine, int(run_now(machine, "backup")))
    assert (task["user"], task["result"]) == ("alice", "success")
    refused = machine.run(["bgtaskctl", "schedule", "rm", "backup"], user="alice", check=False)
    assert f"kept in {FILES}/backup.yaml" in refused.stderr
    machine.sh(f"rm {FILES}/*")
    machine.systemctl("reload", "bgtaskd.service")
    machine.wait_for("no files", lambda: "backup" not in schedules(machine))


def test_once_a_moment_though_all_is_killed(machine: Container) -> None:
    machine.sh("rm -f ~alice/moments")
    script = "date +%s >>~/moments"
    add(
        machine,
        "moments",
        "--calendar",
        "*-*-* *:*:*",
        "--overlap",
        "queue",
        "--",
        "sh",
        "-c",
        script,
    )
    begun = time.monotonic()
    while time.monotonic() - begun < 6:
        kill(machine, DAEMON, LAUNCHER)
        time.sleep(0.7)  # the clock that is tested
    before = len(tasks_of(machine, "moments"))
    machine.wait_for("more", lambda: len(tasks_of(machine, "moments")) > before)
    remove(machine, "moments")
    tasks = tasks_of(machine, "moments")
    for task in tasks:
        assert wait(machine, task["id"])["result"] == "success"
    # A timer's calls are a second apart; had one been answered twice, there would be more than seconds.
    seconds = (tasks[-1]["created"] - tasks[0]["created"]) / 1e6
    assert 3 <= len(tasks) <= seconds + 2
    assert len(machine.read("/home/alice/moments").split()) == len(tasks)


def test_timers_are_back_after_a_reboot_and_make_up_for_what_was_missed(
    fresh_machine: Container,
) -> None:
    machine = fresh_machine
    add(machine, "often", "--calendar", "*-*-* *:*:0/5", "--persistent", "--", "true")
    machine.wait_for("the first", lambda: tasks_of(machine, "often") != [])
    before = len(tasks_of(machine, "often"))
    machine.reboot()
    machine.wait_for("its return", lambda: "often" in schedules(machine))
    assert machine.systemctl("is-active", "bgtask-schedule@often.timer") == "active"
    machine.wait_for("the next", lambda: len(tasks_of(machine, "often")) > before)
