# SPDX-License-Identifier: LGPL-2.1-or-later
"""The D-Bus door of the installed package: systemd's own client, the real bus, the real polkit."""

from __future__ import annotations

import json
import selectors
import subprocess
from collections.abc import Iterator
from typing import IO, Any

import pytest

from tests.houses.container import Container
from tests.system.test_spine import get, start, wait, wait_running
from tests.system.test_workers import House

MANAGER = ["org.bgtaskd1", "/org/bgtaskd1", "org.bgtaskd1.Manager"]
RULE = """
polkit.addRule(function(action, subject) {
    if (action.id == "org.bgtaskd1.manage" && subject.user == "carol" && action.lookup("verb") == "Pause")
        return polkit.Result.YES;
});
"""


def call(machine: Container, *argv: str, user: str | None = "alice") -> Any:
    """A method of the manager, by busctl: what it returned."""
    done = busctl(machine, *argv, user=user)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["data"] if done.stdout.strip() else None


def busctl(
    machine: Container, *argv: str, user: str | None = "alice"
) -> subprocess.CompletedProcess[str]:
    command = ["busctl", "--json=short", "call", "--", *MANAGER, *argv]
    return machine.run(command, user=user, check=False)


def listen(machine: Container, stdout: IO[str]) -> None:
    """Return once a monitor hears us. (busctl says so itself, but not in every version.)"""
    task_id = start(machine, "--", "sleep", "600")
    wait_heard(machine, stdout, task_id)
    call(machine, "Kill", "tsi", str(task_id), "all", "9")
    while "TaskFinished" not in line(stdout):
        pass


def wait_heard(machine: Container, stdout: IO[str], task_id: int) -> None:
    """Send messages to a task until a monitor tells of one."""
    lines = selectors.DefaultSelector()
    lines.register(stdout, selectors.EVENT_READ)
    for _ in range(100):
        call(machine, "Signal", "tss", str(task_id), "test", "")
        while lines.select(0.1):  # what it says first need not be a signal
            if "TaskSignaled" in line(stdout):
                return
    raise AssertionError("the monitor hears nothing")


def line(stdout: IO[str]) -> str:
    """The next line of a monitor, which gives up in the end."""
    read = stdout.readline()
    assert read
    return read


def test_busctl_introspects(machine: Container) -> None:
    out = machine.output("busctl", "--no-pager", "introspect", *MANAGER, user="carol")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert rows[".List"][:3] == ["method", "-", "a(tssssssd)"]
    assert rows[".Start"][:3] == ["method", "a{sv}", "tb"]
    assert rows[".TaskFinished"][:2] == ["signal", "tss"]
    assert rows[".Launcher"] == ["property", "s", '"scope"', "const"]


def test_busctl_monitor_sees_a_tasks_life(machine: Container) -> None:
    script = (
        "i=0; while [ $i -lt 300 ]; do i=$((i+1)); systemd-notify X_BGTASK_PROGRESS=$((i/3)); done"
    )
    match = "--match=type='signal',sender='org.bgtaskd1'"
    argv = ["timeout", "60", "busctl", "--json=short", "monitor", match]
    with machine.popen(argv) as monitor:
        assert monitor.stdout is not None
        listen(machine, monitor.stdout)
        task_id = start(machine, "--", "sh", "-c", script)
        seen: list[Any] = []
        while not seen or seen[-1]["member"] != "TaskFinished":
            message = json.loads(line(monitor.stdout))
            if message.get("interface") == MANAGER[2] and message["payload"]["data"][0] == task_id:
                seen.append(message)
    assert seen[0]["member"] == "TaskAdded"
    assert seen[-1]["payload"]["data"][1:] == ["finished", "success"]
    changes = [one["payload"]["data"][1] for one in seen if one["member"] == "TaskChanged"]
    assert len(changes) == len(seen) - 2
    percents = [one["percent"]["data"] for one in changes if "percent" in one]
    assert percents == sorted(percents)
    assert percents[-1] == 100
    task = get(machine, task_id)
    seconds = (task["ended"] - task["started"]) / 1e6
    # Ten a second, one for each of the task's states, and the last one.
    assert 3 <= len(changes) <= 10 * seconds + 4


def test_methods(machine: Container) -> None:
    task_id = start(
        machine, "--name", "sleeper", "--", "sh", "-c", "trap 'exit 3' USR1; sleep 600 & wait"
    )
    wait_running(machine, task_id)
    number = str(task_id)
    [task] = call(machine, "Get", "t", number)
    assert task["name"]["data"] == "sleeper"
    assert task["unit"]["data"] == f"bgtask-{task_id}.scope"
    [rows] = call(machine, "List")
    assert next(row for row in rows if row[0] == task_id)[2] == "running"
    assert call(machine, "Signal", "tss", number, "hello", '{"a": 1}') == [1]
    call(machine, "Pause", "t", number)
    machine.wait_for("paused", lambda: get(machine, task_id)["state"] == "paused")
    call(machine, "Resume", "t", number)
    machine.wait_for("running", lambda: get(machine, task_id)["state"] == "running")
    call(machine, "Kill", "tsi", number, "main", "10")
    task = wait(machine, task_id)
    assert (task["result"], task["exit_status"]) == ("exit-code", 3)
    refused = busctl(machine, "Pause", "t", number)
    assert refused.returncode == 1
    assert f"task {number} is failed" in refused.stderr


def refusal(machine: Container, *argv: str, user: str | None = "alice") -> str:
    """What a method says that refuses."""
    done = busctl(machine, *argv, user=user)
    assert done.returncode == 1, done.stdout
    return done.stderr


def known(values: dict[str, Any]) -> dict[str, Any]:
    """An a{sv} of busctl's as plain values."""
    return {name: one["data"] for name, one in values.items()}


def test_start_edit_retry_and_remove(machine: Container) -> None:
    script = "echo ${COLOUR-none}; read line; echo $line; exit 3"
    argv = ["argv", "as", "3", "sh", "-c", script, "stdin", "b", "true"]
    later = ["delay_usec", "x", "3600000000", "settings", "s", '{"width": [300, null]}']
    task_id, merged = call(machine, "Start", "a{sv}", "4", *argv, *later)
    assert merged is False
    task = get(machine, task_id)
    assert (task["state"], task["user"]) == ("delayed", "alice")
    assert task["settings"] == {"width": [300, None]}
    number = str(task_id)
    now = ["delay_usec", "u", "0", "env", "a{ss}", "1", "COLOUR", "blue", "priority", "i", "7"]
    call(machine, "Edit", "ta{sv}", number, "3", *now)
    wait_running(machine, task_id)
    refused = refusal(machine, "Edit", "ta{sv}", number, "1", "priority", "i", "8")
    assert f"task {number} is running: only a task that waits can be edited" in refused
    call(machine, "Send", "tsb", number, "hello\n", "true")
    task = wait(machine, task_id)
    assert (task["exit_status"], task["priority"]) == (3, 7)
    page = call(machine, "Output", "txt", number, "-12", "1000")
    assert page == ["blue\nhello\n", 0, 11, 0, True]
    call(machine, "Retry", "ta{sv}", number, "1", "argv", "as", "1", "true")
    task = wait(machine, task_id)
    assert (task["attempt"], task["result"]) == (2, "success")
    call(machine, "Remove", "t", number)
    assert "there is no task" in refusal(machine, "Get", "t", number)


def test_messages_configuration_and_reports(machine: Container) -> None:
    number = str(start(machine, "--", "sleep", "600"))
    wait_running(machine, int(number))
    for seq in (1, 2, 3):
        call(machine, "Signal", "tss", number, "hello", f"[{seq}]")
    [signals] = call(machine, "Signals", "tt", number, "1")
    assert [one[:3] for one in signals] == [[2, "hello", "[2]"], [3, "hello", "[3]"]]
    assert call(machine, "ClearSignals", "tat", number, "1", "2") == [1]
    assert call(machine, "ClearSignals", "tat", number, "0") == [2]
    assert call(machine, "GetConfig", "t", number) == ["null"]
    call(machine, "SetConfig", "ts", number, '{"speed": 2}')
    assert json.loads(call(machine, "GetConfig", "t", number)[0]) == {"speed": 2}
    told = ["percent", "d", "12.5", "message", "s", "chugging", "value", "s", '{"pages": 3}']
    call(machine, "Report", "ta{sv}", number, "3", *told)
    task = get(machine, int(number))
    assert (task["percent"], task["message"], task["value"]) == (12.5, "chugging", {"pages": 3})
    call(machine, "Kill", "tsi", number, "all", "9")
    wait(machine, int(number))
    record, _ = call(
        machine,
        "Start",
        "a{sv}",
        "3",
        "kind",
        "s",
        "record",
        "argv",
        "as",
        "0",
        "name",
        "s",
        "elsewhere",
    )
    call(machine, "Record", "tsa{sv}", str(record), "finished", "1", "message", "s", "all done")
    task = get(machine, record)
    assert (task["state"], task["message"]) == ("finished", "all done")
    records = ["2", "kinds", "as", "1", "record", "states", "as", "1", "finished"]
    [rows] = call(machine, "ListFiltered", "a{sv}", *records)
    assert [row[:3] for row in rows] == [[record, "elsewhere", "finished"]]
    [names] = call(machine, "Stats", "s", "elsewhere")
    assert [known(one)["runs"] for one in names] == [1]


def test_schedules_and_queues(machine: Container) -> None:
    spec = ["spec", "a{sv}", "1", "argv", "as", "2", "echo", "tick"]
    yearly = ["name", "s", "yearly", "calendar", "as", "1", "yearly", "overlap", "s", "queue"]
    call(machine, "AddSchedule", "a{sv}", "4", *yearly, *spec)
    timer = "bgtask-schedule@yearly.timer"
    assert machine.systemctl("is-active", timer) == "active"
    [[shown]] = call(machine, "Schedules")
    schedule = known(shown)
    assert (schedule["name"], schedule["user"], schedule["overlap"]) == ("yearly", "alice", "queue")
    assert schedule["next"] > 0
    assert "last_task" not in schedule
    [task_id] = call(machine, "FireSchedule", "s", "yearly")
    assert wait(machine, task_id)["result"] == "success"
    for argv in (["EnableSchedule", "sb", "yearly", "false"], ["RemoveSchedule", "s", "yearly"]):
        assert "belongs to another user" in refusal(machine, *argv, user="bob")
        call(machine, *argv)
        gone = machine.run(["systemctl", "is-active", timer], check=False)
        assert gone.stdout.strip() == "inactive"
    assert "there is no schedule yearly" in refusal(machine, "FireSchedule", "s", "yearly")
    wrong = ["1", *yearly[:3], "calendar", "as", "1", "when it rains", *spec]
    words = refusal(machine, "AddSchedule", "a{sv}", "3", *wrong[1:])
    assert "calendar: Invalid calendar spec" in words
    for user in ("alice", "carol"):
        assert "administrators" in refusal(machine, "PauseQueue", "s", "default", user=user)
        assert "administrators" in refusal(machine, "Clean", user=user)
    call(machine, "PauseQueue", "s", "default", user=None)
    try:
        [[queue]] = call(machine, "Queues", user="carol")
        assert (queue[0], queue[5]) == ("default", True)
    finally:
        call(machine, "ResumeQueue", "s", "default", user=None)
    assert "there is no queue none" in refusal(machine, "ResumeQueue", "s", "none", user=None)
    assert call(machine, "Clean", user=None) == [0]
    assert call(machine, "Reload", user=None) == [[]]


def test_long_living_tasks(machine: Container) -> None:
    house = House(machine)
    house.install("answers")
    house.install("notes", "async", "Notes")
    answer, number = call(
        machine, "Call", "ssst", "answers", '{"a": 1}', "", "20000000", user="bob"
    )
    assert json.loads(answer)["echo"] == {"a": 1}
    assert number == 0
    [ids] = call(machine, "Submit", "sas", "notes", "2", "[1]", "[2]")
    assert len(ids) == 2
    machine.wait_for("both are done", lambda: len(house.notes()) == 2)
    [workers] = call(machine, "Workers")
    assert {one["name"]["data"] for one in workers} == {"answers", "notes"}
    assert "may be called by" in refusal(
        machine, "Call", "ssst", "answers", "1", "", "0", user="carol"
    )
    assert call(machine, "Workers", user="carol") == [[]]
    assert "not here" in refusal(machine, "Call", "ssst", "answers", '{"do": "raise"}', "", "0")
    assert call(machine, "AsidePayloads", "stt", "", "0", "0", user=None) == [[]]
    assert call(machine, "DropPayloads", "at", "1", "77", user=None) == [[]]
    house.clear()


def test_only_the_group_has_anything_started(machine: Container) -> None:
    """On the socket the file system sees to that. Here everybody may come, and be told."""
    argv = ["argv", "as", "1", "true"]
    words = refusal(machine, "Start", "a{sv}", "1", *argv, user="carol")
    assert "not allowed: Start is for the group bgtask" in words
    schedule = ["name", "s", "hers", "calendar", "as", "1", "daily", "spec", "a{sv}", "1", *argv]
    words = refusal(machine, "AddSchedule", "a{sv}", "3", *schedule, user="carol")
    assert "not allowed: AddSchedule is for the group bgtask" in words
    words = refusal(machine, "Start", "a{sv}", "2", *argv, "user", "s", "bob")
    assert "needs a rule" in words
    secret = ["secrets", "a{ss}", "1", "word", "xyzzy"]
    assert "secrets: not over D-Bus" in refusal(machine, "Start", "a{sv}", "2", *argv, *secret)
    assert "colour: unknown" in refusal(machine, "Start", "a{sv}", "2", *argv, "colour", "s", "red")
    assert "argv: missing" in refusal(machine, "Start", "a{sv}", "0")
    assert call(machine, "List", user="carol") == [[]]


def test_strangers_neither_see_nor_steer(machine: Container) -> None:
    task_id = start(machine, "--", "sleep", "600")
    wait_running(machine, task_id)
    for user in ("bob", "carol"):
        assert call(machine, "List", user=user) == [[]]
        for argv in (["Get", "t"], ["Stop", "t"], ["Pause", "t"]):
            refused = busctl(machine, *argv, str(task_id), user=user)
            assert refused.returncode == 1
            assert "authentication required" in refused.stderr
        changes = [str(task_id), "1", "argv", "as", "1", "true"]
        for argv in (["Edit", "ta{sv}", *changes], ["Retry", "ta{sv}", *changes]):
            assert "not allowed" in refusal(machine, *argv, user=user)
    assert get(machine, task_id)["state"] == "running"
    call(machine, "Stop", "t", str(task_id), user=None)
    assert wait(machine, task_id)["result"] == "stopped"


def test_a_task_tells_listeners_nothing_of_what_it_says(machine: Container) -> None:
    """dbus-monitor as an ordinary user, on the system bus: progress, and no text."""
    match = "type='signal',interface='org.bgtaskd1.Manager'"
    argv = ["timeout", "60", "dbus-monitor", "--system", match]
    with machine.popen(argv, user="carol") as monitor:
        assert monitor.stdout is not None
        listen(machine, monitor.stdout)
        script = "systemd-notify --status='a secret' X_BGTASK_PROGRESS=50; sleep 0.3"
        task_id = start(machine, "--name", "a-secret", "--", "sh", "-c", script)
        call(machine, "Signal", "tss", str(task_id), "hello", '"a secret"')
        heard = ""
        while "TaskFinished" not in heard:
            heard += line(monitor.stdout)
    assert "double 50" in heard
    assert 'string "hello"' in heard
    assert "secret" not in heard


@pytest.fixture
def rule(machine: Container) -> Iterator[None]:
    path = "/etc/polkit-1/rules.d/10-test.rules"
    machine.write(path, RULE)
    machine.systemctl("restart", "polkit.service")
    yield
    machine.run(["rm", path])
    machine.systemctl("restart", "polkit.service")


@pytest.mark.usefixtures("rule")
def test_polkit_lets_through_whom_its_rules_name(machine: Container) -> None:
    task_id = start(machine, "--", "sleep", "600")
    wait_running(machine, task_id)
    assert busctl(machine, "Stop", "t", str(task_id), user="carol").returncode == 1
    assert busctl(machine, "Pause", "t", str(task_id), user="bob").returncode == 1
    call(machine, "Pause", "t", str(task_id), user="carol")
    machine.wait_for("paused", lambda: get(machine, task_id)["state"] == "paused")
    machine.systemctl("mask", "--now", "--runtime", "polkit.service")
    try:
        refused = busctl(machine, "Pause", "t", str(task_id), user="carol")
    finally:
        machine.systemctl("unmask", "--runtime", "polkit.service")
    assert refused.returncode == 1
    assert "belongs to another user" in refused.stderr
    call(machine, "Kill", "tsi", str(task_id), "all", "9")
    wait(machine, task_id)


def test_a_call_starts_the_daemon(machine: Container) -> None:
    units = ["bgtaskd.socket", "bgtaskd-supervisors.socket", "bgtaskd-launcher.socket"]
    machine.systemctl("stop", "bgtaskd.service", *units)
    assert call(machine, "List", user="carol") == [[]]
    assert machine.systemctl("is-active", "bgtaskd.service", *units[:2]) == "active\nactive\nactive"
    machine.systemctl("start", *units)


def test_the_bus_may_go_and_come_back(fresh_machine: Container) -> None:
    machine = fresh_machine
    task_id = start(machine, "--", "sleep", "600")
    wait_running(machine, task_id)
    pid = machine.systemctl("show", "-P", "MainPID", "bgtaskd.service")
    machine.systemctl("restart", "dbus.service")
    machine.wait_for("an answer", lambda: busctl(machine, "Get", "t", str(task_id)).returncode == 0)
    assert machine.systemctl("show", "-P", "MainPID", "bgtaskd.service") == pid
    match = "--match=type='signal',sender='org.bgtaskd1'"
    with machine.popen(["timeout", "60", "busctl", "monitor", match]) as monitor:
        assert monitor.stdout is not None
        wait_heard(machine, monitor.stdout, task_id)
