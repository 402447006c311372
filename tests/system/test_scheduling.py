# SPDX-License-Identifier: LGPL-2.1-or-later
"""After, groups, edits, retries with changes, hooks, standard input; nothing lost or doubled by kill -9."""

from __future__ import annotations

import json
from typing import Any

from tests.houses.container import Container
from tests.system.test_spine import get, start, wait, wait_running

CONF = "/etc/bgtaskd/conf.d/scheduling.yaml"
QUEUES = """
queues:
  narrow:
    slots: 2
  slow:
    slots: 9
    rate: 2/2s
resources:
  gpu: 1
limits:
  waiting_per_user: 50
"""


def ctl(machine: Container, *argv: str, user: str = "alice") -> tuple[int, str]:
    """`bgtaskctl argv`: status, and what it printed."""
    done = machine.run(["bgtaskctl", *argv], user=user, check=False)
    return done.returncode, done.stdout + done.stderr


def configure(machine: Container) -> None:
    machine.write(CONF, QUEUES)
    machine.systemctl("reload", "bgtaskd.service")


def kill_daemon(machine: Container) -> None:
    pid = machine.systemctl("show", "-p", "MainPID", "--value", "bgtaskd.service")
    machine.run(["kill", "-KILL", pid])


def test_after_waits_and_a_failure_is_handed_on(machine: Container) -> None:
    first = start(machine, "--", "sh", "-c", "until [ -e ~/on ]; do sleep 0.05; done")
    second = start(machine, "--after", str(first), "--", "true")
    third = start(
        machine, "--after", f"{second}", "--on-end", "touch /home/alice/third", "--", "false"
    )
    fourth = start(machine, "--after", str(third), "--", "true")
    whatever = start(machine, "--after", f"{first},{fourth}", "--after-any", "--", "true")
    wait_running(machine, first)
    kill_daemon(machine)  # what waits for whom is on the disk
    assert {get(machine, one)["state"] for one in (second, third, fourth, whatever)} == {"queued"}
    machine.sh("touch ~alice/on")
    assert wait(machine, second)["result"] == "success"
    assert wait(machine, third)["result"] == "exit-code"
    failed = wait(machine, fourth)
    assert (failed["state"], failed["result"], failed["attempt"]) == ("failed", "dependency", 0)
    assert f"task {third} (false) did not succeed first: exit-code" in failed["error"]
    assert wait(machine, whatever)["result"] == "success"
    hooked = ["test", "-e", "/home/alice/third"]
    machine.wait_for("the hook", lambda: machine.run(hooked, check=False).returncode == 0)
    assert ctl(machine, "run", "--after", "999999", "--", "true")[0] == 4
    assert ctl(machine, "run", "--after", str(first), "--", "true", user="bob")[0] == 4


def test_groups_are_listed_waited_for_and_stopped(machine: Container) -> None:
    configure(machine)
    ids = [
        start(machine, "--group", "thumbs", "--queue", "narrow", "--", "sleep", "600")
        for _ in range(5)
    ]
    listed = json.loads(ctl(machine, "list", "--group", "thumbs", "-o", "json")[1])
    assert sorted(task["id"] for task in listed) == ids
    assert ctl(machine, "stop", "--group", "thumbs") == (0, "")
    assert ctl(machine, "wait", "-q", "--group", "thumbs", "--timeout", "20s")[0] in (0, 1)
    tasks = [get(machine, one) for one in ids]
    assert {task["state"] for task in tasks} == {"stopped"}
    assert sum(task["attempt"] for task in tasks) == 2  # those that waited never began
    assert ctl(machine, "stop")[0] == 2


def test_weights_resources_and_rates(machine: Container) -> None:
    configure(machine)
    heavy = start(machine, "--queue", "narrow", "--weight", "2", "--", "sleep", "600")
    light = start(machine, "--queue", "narrow", "--", "true")
    wait_running(machine, heavy)
    assert get(machine, light)["state"] == "queued"
    status, said = ctl(machine, "run", "--queue", "narrow", "--weight", "3", "--", "true")
    assert (status, "2 slots in all" in said) == (1, True)
    gpu = start(machine, "--needs", "gpu=1", "--", "sleep", "600")
    other = start(machine, "--needs", "gpu=1", "--", "true")
    assert wait(machine, start(machine, "--", "true"))["result"] == "success"
    assert get(machine, other)["state"] == "queued"
    assert "there are: gpu" in ctl(machine, "run", "--needs", "tpu=1", "--", "true")[1]
    ctl(machine, "stop", str(heavy), str(gpu))
    assert wait(machine, light)["result"] == wait(machine, other)["result"] == "success"
    ids = [start(machine, "--queue", "slow", "--", "true") for _ in range(5)]
    starts = sorted(wait(machine, one)["started"] for one in ids)
    assert all(late - early > 1_900_000 for early, late in zip(starts, starts[2:], strict=False))


def test_what_waits_can_be_edited_and_what_has_ended_retried_with_changes(
    machine: Container,
) -> None:
    task = start(machine, "--delay", "1h", "--", "sh", "-c", 'test "$BGTASK_NAME" = new')
    assert ctl(machine, "edit", "--name", "new", "--priority", "7", "--delay", "0s", str(task)) == (
        0,
        "",
    )
    ended = wait(machine, task)
    assert (ended["name"], ended["priority"], ended["result"]) == ("new", 7, "success")
    assert ctl(machine, "edit", "--priority", "1", str(task))[0] == 1
    assert ctl(machine, "retry", "--name", "old", "--settings", '{"x": 1}', str(task)) == (0, "")
    again = wait(machine, task)
    assert (again["name"], again["settings"], again["result"], again["attempt"]) == (
        "old", {"x": 1}, "exit-code", 2,
    )  # fmt: skip
    kill_daemon(machine)
    assert get(machine, task)["name"] == "old"
    assert "no queue nowhere" in ctl(machine, "retry", "--queue", "nowhere", str(task))[1]
    keyed = start(machine, "--merge-key", "k", "--", "true")
    wait(machine, keyed)
    holder = start(machine, "--merge-key", "k", "--delay", "1h", "--", "true")
    assert str(holder) in ctl(machine, "retry", str(keyed))[1]
    ctl(machine, "stop", str(holder))


def test_a_start_that_is_merged_is_told_so(machine: Container) -> None:
    def run(*options: str) -> tuple[str, str]:
        argv = ["bgtaskctl", "run", *options, "--merge-key", "told", "--delay", "1h", "--", "true"]
        done = machine.run(argv, user="alice")
        return done.stdout, done.stderr

    first, second = (json.loads(run("-o", "json")[0]) for _ in range(2))
    assert (first["merged"], second) == (False, {"id": first["id"], "merged": True})
    said = f"Merged with task {first['id']}, which has not ended.\n"
    assert run() == (f"{first['id']}\n", said)
    assert run("-q") == (f"{first['id']}\n", "")
    ctl(machine, "stop", str(first["id"]))


def test_an_edit_asks_the_policy_again(machine: Container) -> None:
    """What may no longer be started as somebody else must not get there by an edit."""

    def allow(user: str) -> None:
        rule = f"policy:\n  run_as:\n    - users: [{user}]\n      as: [carol]\n"
        machine.write("/etc/bgtaskd/conf.d/rule.yaml", rule)
        machine.systemctl("reload", "bgtaskd.service")

    try:
        allow("alice")
        task = start(machine, "--user", "carol", "--delay", "1h", "--", "true")
        assert ctl(machine, "edit", "--name", "mine", str(task)) == (0, "")
        allow("bob")
        status, said = ctl(machine, "edit", "--name", "still", str(task))
        assert (status, "running as carol needs a rule" in said) == (5, True)
        assert get(machine, task)["name"] == "mine"
        assert ctl(machine, "stop", str(task)) == (0, "")
    finally:
        machine.sh("rm -f /etc/bgtaskd/conf.d/rule.yaml")
        machine.systemctl("reload", "bgtaskd.service")


def test_one_user_cannot_fill_a_queue(machine: Container) -> None:
    configure(machine)
    script = (
        "for n in $(seq 60); do bgtaskctl run -q --group flood --delay 1h -- true || exit 9; done"
    )
    done = machine.run(["sh", "-c", script], user="bob", check=False)
    assert (done.returncode, "50 of your tasks wait already" in done.stderr) == (9, True)
    assert wait(machine, start(machine, "--", "true"))["result"] == "success"
    machine.run(["bgtaskctl", "stop", "--group", "flood"], user="bob")


def test_text_reaches_standard_input(machine: Container) -> None:
    task = start(machine, "--stdin", "--", "sh", "-c", "read line; echo got $line; wc -c")
    wait_running(machine, task)
    assert ctl(machine, "send", str(task), "hello", "there") == (0, "")
    machine.run(["bgtaskctl", "send", str(task)], user="alice", input="x" * 100_000)
    assert wait(machine, task)["result"] == "success"
    output = machine.output("bgtaskctl", "output", str(task), user="alice")
    assert output.split("\n") == ["got hello there", "100000"]
    deaf = start(machine, "--", "sleep", "600")
    wait_running(machine, deaf)
    status, said = ctl(machine, "send", str(deaf), "hello")
    assert (status, "was not started with stdin" in said) == (1, True)
    ctl(machine, "stop", str(deaf))


def test_a_hook_runs_once_though_the_daemon_is_killed(machine: Container) -> None:
    machine.sh("rm -f ~alice/hooks")
    ids: list[int] = []
    for number in range(12):
        hook = 'sh -c "echo $BGTASK_ENDED_ID >>~/hooks"'
        ids.append(start(machine, "--on-end", hook, "--", "sleep", f"0.{number % 4}"))
        if number % 3 == 2:
            kill_daemon(machine)
    for one in ids:
        assert wait(machine, one)["result"] == "success"

    def hooks() -> list[int]:
        text = machine.run(["cat", "/home/alice/hooks"], check=False).stdout
        return sorted(int(line) for line in text.split())

    machine.wait_for("the hooks", lambda: len(hooks()) >= len(ids))
    machine.run(
        ["bgtaskctl", "wait", *map(str, range(ids[0], ids[-1] + 1))], user="alice", check=False
    )
    assert hooks() == ids


def test_statistics_and_cleaning(machine: Container) -> None:
    for code in (0, 0, 1):
        wait(machine, start(machine, "--name", "counted", "--", "sh", "-c", f"exit {code}"))
    [row] = json.loads(ctl(machine, "stats", "--name", "counted", "-o", "json")[1])
    told: dict[str, Any] = row
    assert (told["runs"], told["failures"]) == (3, 1)
    assert told["p95_usec"] >= told["p50_usec"] > 0
    assert "counted" in ctl(machine, "stats")[1]
    assert (
        json.loads(ctl(machine, "stats", "-o", "json", user="bob")[1]) == []
        or "counted" not in ctl(machine, "stats", user="bob")[1]
    )
    assert ctl(machine, "clean")[0] == 5
    assert machine.output("bgtaskctl", "clean") == "Forgot 0 tasks whose retention was over."
