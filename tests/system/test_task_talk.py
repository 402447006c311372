# SPDX-License-Identifier: LGPL-2.1-or-later
"""A running task is told things: messages and configuration, durable, in order, across a killed daemon."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.houses.container import Container
from tests.system.test_spine import get, start, wait, wait_running

DAEMON = "bgtaskd.service"
APP = """
import os, threading, time
import bgtaskd

@bgtaskd.background
def takes(status, most):
    "Take so many messages, as they come."
    status.update(message="listening")
    taken = []
    while len(taken) < most:
        one = status.next_signal(60)
        taken.append([one.seq, one.name, one.payload])
    return {"taken": taken, "left": len(status.signals())}

@bgtaskd.background
def handles(status):
    "Handlers, a listener to the configuration, and a message that nobody handles."
    heard, done = [], threading.Event()

    @status.on_signal("reload")
    def reload(message):
        heard.append(["reload", message.payload])
        if message.payload == {"x": 0}:
            raise RuntimeError("a handler's own mistake")
        status.on_signal("other", late)  # one has come already, and was passed over

    def late(message):
        heard.append(["other", None])
        status.update(message="other heard")

    @status.on_signal("stop")
    def stop(message):
        heard.append(["stop", None])
        done.set()
        threading.Event().wait(0.3)  # its message is still in the mailbox, but nobody else's

    @status.on_config
    def changed(config):
        heard.append(["config", config])
        status.update(message=f"config {config['n']}")

    status.update(message="listening")
    assert done.wait(60)
    names = [one.name for one in status.signals(clear=True)]
    return {"heard": heard, "left": names, "config": status.config, "after": status.signals()}

@bgtaskd.background
def takes_until_end(status):
    status.update(message="listening")
    taken = []
    while (one := status.next_signal(60)).name != "end":
        taken.append(one.payload)
    return taken

@bgtaskd.background
def looks(status):
    return [status.info.user, status.config, status.next_signal(0.05), [one.name for one in status.signals()]]

if __name__ == "__main__":
    import sys
    name, user, settings = sys.argv[1], sys.argv[2] or None, eval(sys.argv[3])
    print(globals()[name].using(user=user, cwd="/").initiate(**settings).id)
"""


@pytest.fixture(scope="module")
def app(machine: Container) -> Container:
    machine.write("/srv/talk.py", APP)
    return machine


def initiate(
    machine: Container, name: str, by: str = "alice", run_as: str = "", **settings: Any
) -> int:
    return int(machine.output("python3", "/srv/talk.py", name, run_as, repr(settings), user=by))


def send(machine: Container, task_id: int, name: str, payload: object = None) -> None:
    words = [] if payload is None else [json.dumps(payload)]
    machine.run(["bgtaskctl", "signal", str(task_id), name, *words], user="alice")


def says(machine: Container, task_id: int, message: str) -> Callable[[], bool]:
    return lambda: bool(get(machine, task_id)["message"] == message)


def kill(machine: Container) -> None:
    machine.systemctl("kill", "--signal=KILL", DAEMON)


def test_messages_are_taken_one_by_one_in_order(app: Container) -> None:
    """Those from before it ran, those that it waits for, those sent while the daemon was killed."""
    app.systemctl("stop", "bgtaskd-launcher.socket", "bgtaskd-launcher.service")
    task_id = initiate(app, "takes", most=5)
    send(app, task_id, "early", {"n": 1})
    app.systemctl("start", "bgtaskd-launcher.socket")
    wait_running(app, task_id)
    app.wait_for("it listens", says(app, task_id, "listening"))
    send(app, task_id, "second", [1, "é"])
    kill(app)
    for number in range(3):
        send(app, task_id, f"n{number}")
    value = wait(app, task_id)["value"]
    expected = [["early", {"n": 1}], ["second", [1, "é"]], ["n0", None], ["n1", None], ["n2", None]]
    assert [one[1:] for one in value["taken"]] == expected
    assert [one[0] for one in value["taken"]] == [1, 2, 3, 4, 5]
    assert value["left"] == 0


def test_handlers_hear_of_messages_and_configuration(app: Container) -> None:
    task_id = initiate(app, "handles")
    app.wait_for("it listens", says(app, task_id, "listening"))
    send(app, task_id, "reload", {"x": 0})
    send(app, task_id, "other")
    app.run(["bgtaskctl", "config", str(task_id), '{"n": 1}'], user="alice")
    app.wait_for("it has the configuration", says(app, task_id, "config 1"))
    kill(app)
    app.run(["bgtaskctl", "config", str(task_id), '{"n": 2}'], user="alice")
    app.wait_for("it has the next one", says(app, task_id, "config 2"))
    send(app, task_id, "nobody")
    send(app, task_id, "reload", {"x": 1})
    app.wait_for("it has heard the other one", says(app, task_id, "other heard"))
    send(app, task_id, "stop")
    value = wait(app, task_id)["value"]
    messages = [one for one in value["heard"] if one[0] != "config"]
    configs = [one for one in value["heard"] if one[0] == "config"]
    expected = [["reload", {"x": 0}], ["reload", {"x": 1}], ["other", None], ["stop", None]]
    assert messages == expected
    assert configs == [["config", {"n": 1}], ["config", {"n": 2}]]
    assert (value["left"], value["config"], value["after"]) == (["nobody"], {"n": 2}, [])
    output = app.output("bgtaskctl", "output", str(task_id), user="alice")
    assert "a handler's own mistake" in output


def test_a_task_of_a_user_who_may_start_none_reaches_itself(app: Container) -> None:
    """carol is not in group bgtask; root has the task run as her."""
    task_id = initiate(app, "looks", by="root", run_as="carol")
    task = wait(app, task_id, user="root")
    assert task["value"] == ["carol", None, None, []], task


def test_the_tasks_socket_starts_and_steers_nothing(app: Container) -> None:
    theirs = start(app, "--", "sleep", "600")
    asked = ["varlinkctl", "call", "/run/bgtaskd/tasks.sock", "org.bgtaskd.Get", '{"id": 1}']
    if app.release >= 13:
        assert "none runs as you" in app.run(asked, user="carol", check=False).stdout
    hers = int(app.output("bgtaskctl", "run", "--user", "carol", "--", "sleep", "600"))
    ctl = ["env", "BGTASKD_SOCKET=/run/bgtaskd/tasks.sock", "bgtaskctl"]
    for words, why in (
        (["run", "--", "true"], "group bgtask"),
        (["stop", str(theirs)], "group bgtask"),
        (["list"], "group bgtask"),
        (["status", str(theirs)], "belongs to another user"),
        (["update", "--id", str(theirs), "--progress", "5"], "belongs to another user"),
        (["output", str(theirs)], "belongs to another user"),
        (["signals", str(theirs)], "belongs to another user"),
        (["config", str(theirs)], "belongs to another user"),
    ):
        done = app.run([*ctl, *words], user="carol", check=False)
        assert done.returncode == 5, words
        assert why in done.stderr
    done = app.run([*ctl, "update", "--id", str(hers), "by herself"], user="carol")
    assert get(app, hers, user="root")["message"] == "by herself"
    app.run(["bgtaskctl", "stop", str(theirs), str(hers)])


def test_a_shell_task_waits_for_a_message(app: Container) -> None:
    script = "bgtaskctl update ready; bgtaskctl signals --wait --clear; "
    script += "bgtaskctl signals --timeout 100ms || echo none"
    task_id = start(app, "--", "sh", "-c", script)
    app.wait_for("it is ready", says(app, task_id, "ready"))
    send(app, task_id, "go", {"n": 1})
    wait(app, task_id)
    output = app.output("bgtaskctl", "output", str(task_id), user="alice").splitlines()
    assert output == ['1 go {"n": 1}', "bgtaskctl: timed out", "none"]


def ctl(machine: Container, *words: str, check: bool = True) -> str:
    done = machine.run(["bgtaskctl", *words], user="alice", check=False)
    assert (done.returncode == 0) == check, done.stderr
    return (done.stdout + done.stderr).strip()


def test_a_record_is_told_by_hand_and_outlives_the_daemon(app: Container) -> None:
    task_id = int(ctl(app, "record", "add", "Nightly import", "--settings", '{"a": 1}'))
    record = get(app, task_id)
    assert (record["kind"], record["state"], record["unit"]) == ("record", "queued", "")
    kill(app)
    ctl(app, "update", "--id", str(task_id), "--finished", "1", "--total", "4", "row 1")
    assert get(app, task_id)["state"] == "running"
    kill(app)
    record = get(app, task_id)
    assert record["state"] in (
        "running",
        "queued",
    )  # what was reported is on the disk within a second
    ctl(app, "record", "started", str(task_id), "again")
    kill(app)
    record = get(app, task_id)
    assert (record["state"], record["message"], record["attempt"]) == ("running", "again", 0)
    ctl(app, "record", "finished", str(task_id), "--value", '{"rows": 4}')
    kill(app)
    record = get(app, task_id)
    assert (record["state"], record["result"], record["value"], record["percent"]) == (
        "finished",
        "success",
        {"rows": 4},
        100,
    )
    assert "record - Nightly import" in ctl(app, "status", str(task_id))
    assert "it has ended already" in ctl(app, "record", "started", str(task_id), check=False)


def test_a_record_can_be_stopped_and_nothing_else_be_done_to_it(app: Container) -> None:
    task_id = ctl(app, "record", "add", "elsewhere")
    ctl(app, "record", "started", task_id)
    for verb in ("pause", "kill"):
        assert "work is done elsewhere" in ctl(app, verb, task_id, check=False)
    ctl(app, "stop", task_id)
    record = get(app, int(task_id))
    assert (record["state"], record["result"]) == ("stopped", "stopped")
    assert "stopped" in ctl(app, "update", "--id", task_id, "more", check=False)
    assert "work is done elsewhere" in ctl(app, "retry", task_id, check=False)
    ctl(app, "rm", task_id)
    failed = ctl(app, "record", "add", "elsewhere")
    ctl(app, "record", "failed", failed, "disk full")
    assert "failed (error)" in ctl(app, "list")
    assert "disk full" in ctl(app, "status", failed)
    task = start(app, "--", "sleep", "600")
    assert "it is no record" in ctl(app, "record", "finished", str(task), check=False)
    assert "belongs to another" in (
        app.run(["bgtaskctl", "record", "add", "x"], user="bob").stdout
        and app.run(["bgtaskctl", "record", "finished", str(task)], user="bob", check=False).stderr
    )
    ctl(app, "stop", str(task))


SENDER = """
import sys, time
import bgtaskd
from bgtaskd.errors import NotReachable

client, sent, unknown = bgtaskd.Client(), [], []
for number in range(150):
    try:
        client.signal(int(sys.argv[1]), "n", number)
        sent.append(number)
    except NotReachable:  # whether it was kept nobody knows
        unknown.append(number)
    time.sleep(0.005)
while True:
    try:
        client.signal(int(sys.argv[1]), "end")
        break
    except NotReachable:
        pass
print([sent, unknown])
"""


def test_kills_at_any_moment_lose_no_message_and_double_none(app: Container) -> None:
    task_id = initiate(app, "takes_until_end")
    app.write("/srv/sender.py", SENDER)
    app.wait_for("it listens", says(app, task_id, "listening"))
    with app.popen(["python3", "/srv/sender.py", str(task_id)], user="alice") as sender:
        rng = random.Random(7)
        for _ in range(6):
            time.sleep(rng.uniform(0.05, 0.2))
            kill(app)
            app.run(["bgtaskctl", "status"], user="alice")  # it is back
        assert sender.stdout is not None
        sent, unknown = json.loads(sender.stdout.read())
    taken = wait(app, task_id)["value"]
    assert len(sent) > 50
    assert taken == sorted(set(taken))  # in order, none twice
    assert set(sent) <= set(taken) <= set(sent) | set(unknown)
