# SPDX-License-Identifier: LGPL-2.1-or-later
"""Named tasks: what they promise their callers, while everything that can be killed is killed."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.houses.container import Container
from tests.system.test_spine import get

DAEMON, LAUNCHER = "bgtaskd.service", "bgtaskd-launcher.service"
OUT = "/srv/out"
APP = """
import asyncio, os, signal, sys, time
import bgtaskd

def note(name, *words):
    with open(f"/srv/out/{name}", "a") as file:
        file.write(" ".join(map(str, words)) + "\\n")

class Answers(bgtaskd.SyncTask):
    def setup(self):
        self.seen = 0
        note("setups", os.getpid())

    def teardown(self):
        note("teardowns", os.getpid())

    def work(self, payload, context):
        self.seen += 1
        what = payload.get("do") if isinstance(payload, dict) else None
        if what == "raise":
            raise LookupError("not here: é")
        if what == "set":
            return {1, 2}
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "sleep":
            time.sleep(payload["for"])
            note("slept", self.seen)
        if what == "hang":
            while True:
                pass
        if what == "grow":
            self.kept = b"x" * (80 << 20)
        if what == "env":
            return os.environ.get("COLOUR")
        return {"pid": os.getpid(), "uid": context.uid, "instance": context.instance, "echo": payload}

class Looping(Answers):
    loop_interval = 0.05
    loops = 0

    def loop(self):
        self.loops += 1

    def work(self, payload, context):
        return self.loops

class Many(bgtaskd.SyncTask):
    async def setup(self):
        self.most = self.now = 0

    async def work(self, payload, context):
        self.now += 1
        self.most = max(self.most, self.now)
        if payload == "raise":
            raise LookupError("not here")
        if payload == "block":
            time.sleep(60)
        await asyncio.sleep(payload)
        self.now -= 1
        return self.most

class Notes(bgtaskd.AsyncTask):
    def work(self, payload, context):
        if payload == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if payload == "raise":
            raise LookupError("not here")
        if payload == "hang":
            while True:
                pass
        if isinstance(payload, dict):
            time.sleep(payload["sleep"])
            payload = payload["n"]
        note("notes", payload, context.tries, context.uid, os.getpid())

class ManyNotes(bgtaskd.AsyncTask):
    async def work(self, payload, context):
        await asyncio.sleep(0.2)
        note("many", payload)
"""


class House:
    """A machine with named tasks on it."""

    def __init__(self, machine: Container) -> None:
        self.machine = machine
        machine.write("/srv/app.py", APP)
        machine.sh(f"mkdir -p {OUT} && chmod 777 {OUT}")

    def install(self, name: str, kind: str = "sync", klass: str = "Answers", **keys: Any) -> None:
        """A file for it, taken over; whatever it was before."""
        given = {"class": f"app:{klass}", "type": kind, "user": "alice", "import_path": ["/srv"]}
        self.machine.write(f"/etc/bgtaskd/tasks.d/{name}.yaml", json.dumps({**given, **keys}))
        self.machine.systemctl("reload", DAEMON)

    def clear(self) -> None:
        self.machine.sh(f"rm -f /etc/bgtaskd/tasks.d/* {OUT}/*")
        self.machine.systemctl("reload", DAEMON)
        self.machine.wait_for("no process is left", lambda: self.processes() == [])

    def python(self, script: str, user: str = "alice", timeout: float = 60) -> Any:
        """What a script says last, as JSON."""
        head = "import bgtaskd, json, sys, threading, time\nfrom bgtaskd import errors\n"
        head += "runner = bgtaskd.Runner()\ndef say(value): print(json.dumps(value))\n"
        argv = ["python3", "-c", head + script]
        done = self.machine.run(argv, user=user, timeout=timeout, cwd="/")
        return json.loads(done.stdout.splitlines()[-1])

    def call(self, name: str, payload: Any, user: str = "alice") -> Any:
        return self.python(f"say(runner.run({name!r}, {payload!r}, timeout=20))", user)

    def refused(self, code: str, user: str = "alice") -> tuple[str, str]:
        """The error that this raises: its type, its words."""
        script = f"try:\n    say([None, {code}])\nexcept Exception as error:\n"
        kind, words = self.python(script + "    say([type(error).__name__, str(error)])", user)
        return kind, words

    def workers(self) -> dict[str, dict[str, Any]]:
        said = self.python("say(bgtaskd.Client().call('Workers')['workers'])", "root")
        return {one["name"]: one for one in said}

    def processes(self) -> list[int]:
        argv = ["bgtaskctl", "list", "--kind", "worker", "--state", "running,queued", "-o", "json"]
        return [one["id"] for one in json.loads(self.machine.output(*argv))]

    def notes(self, name: str = "notes") -> list[list[str]]:
        text = self.machine.sh(f"cat {OUT}/{name} 2>/dev/null || true").stdout
        return [line.split() for line in text.splitlines()]

    def drained(self, name: str) -> None:
        def is_drained() -> bool:
            one = self.workers()[name]
            return not one["waiting"] and not any(each["held"] for each in one["processes"])

        self.machine.wait_for(f"{name} is drained", is_drained)

    def kill(self, *units: str) -> None:
        self.machine.systemctl("kill", "--signal=KILL", *units)


@pytest.fixture(scope="module")
def home(machine: Container) -> House:
    return House(machine)


@pytest.fixture
def house(home: House) -> Iterator[House]:
    yield home
    home.clear()


# --- synchronous -----------------------------------------------------------------------------------


def test_a_call_is_answered(house: House) -> None:
    house.install("answers", instances=2)
    alice = int(house.machine.output("id", "-u", "alice"))
    said = house.call("answers", {"a": [1, "é", None]})
    assert (said["uid"], said["echo"]) == (alice, {"a": [1, "é", None]})
    assert house.call("answers", None, user="bob")["uid"] == alice + 1
    kind, words = house.refused('runner.run("answers", {"do": "raise"})')
    assert (kind, words) == ("CallFailed", "LookupError: not here: é")
    assert house.refused('runner.run("answers", {"do": "set"})')[0] == "CallFailed"
    assert house.refused('runner.run("answers", object())')[0] == "TypeError"
    assert house.refused('runner.run("nobody")')[0] == "NoSuchWorker"
    assert house.refused('runner.run("../answers")')[0] == "NoSuchWorker"
    kind, words = house.refused('runner.run("answers", {"do": "sleep", "for": 5}, timeout=0.2)')
    assert kind == "TimedOut"
    assert house.refused('runner.run("answers")', user="carol")[0] == "PermissionDenied"
    spread = """
found = set()
def call():
    runner.run("answers", {"do": "sleep", "for": 0.3})
    found.add(runner.run("answers")["instance"])
while found != {1, 2}:
    threads = [threading.Thread(target=call) for _ in range(4)]
    [one.start() for one in threads]
    [one.join() for one in threads]
say(sorted(found))
"""
    assert house.python(spread) == [1, 2]
    task = get(house.machine, house.processes()[0], "root")
    assert (task["kind"], task["user"], task["name"]) == ("worker", "alice", "answers")
    where = house.machine.output("systemctl", "show", "-P", "ControlGroup", task["unit"])
    assert where.endswith(f"bgtask-default.slice/bgtask-default-answers.slice/{task['unit']}")
    shown = json.loads(house.machine.output("bgtaskctl", "list", "--all", "-o", "json"))
    assert [one for one in shown if one["kind"] == "worker"] == []


def test_calls_wait_while_everything_is_restarted(house: House) -> None:
    """Daemon and launcher are killed and restarted, the process too: no call fails, none is done twice."""
    house.install("answers")
    script = """
pids, end = [], time.monotonic() + 6
while time.monotonic() < end:
    pids.append(runner.run("answers", len(pids))["pid"])
say([len(set(pids)), len(pids)])
"""
    with house.machine.popen(
        ["python3", "-c", "import bgtaskd, json, time\nrunner = bgtaskd.Runner()\n"
         "def say(value): print(json.dumps(value))\n" + script], user="alice"
    ) as caller:  # fmt: skip
        for _ in range(3):
            house.kill(DAEMON)
            house.kill(LAUNCHER)
            time.sleep(0.3)
            house.machine.systemctl("restart", LAUNCHER, DAEMON)
            for one in house.processes():
                house.machine.run(["bgtaskctl", "stop", str(one)])
        house.install("answers", env={"COLOUR": "blue"})
        assert house.call("answers", {"do": "env"}) == "blue"
        said, _ = caller.communicate(timeout=30)
    processes, calls = json.loads(said)
    assert processes >= 4
    assert calls > 100
    assert len(house.notes("teardowns")) >= 4


def test_a_launcher_that_was_stopped_has_fresh_sockets(house: House) -> None:
    house.install("answers")
    before = house.call("answers", None)["pid"]
    house.machine.systemctl("stop", LAUNCHER, "bgtaskd-launcher.socket")
    house.machine.systemctl("start", "bgtaskd-launcher.socket")
    house.machine.wait_for(
        "a process on the new socket", lambda: house.call("answers", None)["pid"] != before
    )


def test_who_hangs_or_dies_is_replaced_and_its_caller_told(house: House) -> None:
    house.install("answers", watchdog="300ms")
    kind, words = house.refused('runner.run("answers", {"do": "die"})')
    assert (kind, "with the call in hand" in words) == ("WorkerDied", True)
    assert house.refused('runner.run("answers", {"do": "hang"})')[0] == "WorkerDied"
    assert house.call("answers", 1)["echo"] == 1
    hung = """
import threading
ends = []
def call(payload):
    try:
        ends.append(bgtaskd.Runner().run("answers", payload)["echo"])
    except errors.WorkerDied as error:
        ends.append("died")
first = threading.Thread(target=call, args=[{"do": "hang"}])
first.start()
time.sleep(0.05)
others = [threading.Thread(target=call, args=[n]) for n in range(3)]
[one.start() for one in others]
[one.join() for one in (first, *others)]
say(sorted(map(str, ends)))
"""
    assert house.python(hung) == ["0", "1", "2", "died"]


def test_thirty_callers_one_fetch(house: House) -> None:
    house.install("answers")
    script = """
answers = []
def call():
    answers.append(bgtaskd.Runner().run("answers", {"do": "sleep", "for": 1}, merge_key="page"))
threads = [threading.Thread(target=call) for _ in range(30)]
[one.start() for one in threads]
[one.join() for one in threads]
say([len(answers), len({json.dumps(one) for one in answers})])
"""
    assert house.python(script) == [30, 1]
    assert house.notes("slept") == [["1"]]
    other = 'runner.run("answers", {"do": "raise"}, merge_key="other")'
    assert house.refused(other) == ("CallFailed", "LookupError: not here: é")


def test_many_at_once(house: House) -> None:
    house.install("many", klass="Many", watchdog="400ms")
    house.install("notes", "async", "ManyNotes")
    script = """
import asyncio
async def main():
    runner = bgtaskd.AsyncRunner()
    began = time.monotonic()
    most = await asyncio.gather(*[runner.run("many", 0.3) for _ in range(50)])
    took = time.monotonic() - began
    try:
        await runner.run("many", "raise")
    except errors.CallFailed as error:
        failed = error.parameters["type"]
    say([max(most), took, failed, await runner.submit("notes", list(range(50)))])
asyncio.run(main())
"""
    most, took, failed, ids = house.python(script)
    assert (most, failed, len(ids)) == (50, "LookupError", 50)
    assert took < 5
    house.drained("notes")
    assert sorted(int(one[0]) for one in house.notes("many")) == list(range(50))
    assert house.refused('runner.run("many", "block")')[0] == "WorkerDied"
    assert house.refused('runner.run("many", 3)') == ("CallFailed", "TimeoutError: ")
    assert house.call("many", 0) >= 1


def test_a_loop_is_called_between_jobs_and_none_costs_nothing(house: House) -> None:
    house.install("looping", klass="Looping")
    house.install("answers")
    first = house.call("looping", None)
    house.machine.wait_for("loops", lambda: house.call("looping", None) >= first + 10)
    pid = house.call("answers", None)["pid"]

    def switches() -> int:
        text = house.machine.read(f"/proc/{pid}/status")
        lines = [line.split() for line in text.splitlines() if "ctxt_switches" in line]
        return sum(int(line[1]) for line in lines)

    time.sleep(1.5)  # it has told how much it has served
    before = switches()
    time.sleep(1.5)
    assert switches() == before


def test_one_is_there_only_while_it_is_called(house: House) -> None:
    house.install("answers", start="call", idle_stop="300ms")
    house.install("notes", "async", "Notes", start="call", idle_stop="300ms")
    assert house.processes() == []
    for _ in range(2):
        assert house.call("answers", 1)["echo"] == 1
        assert house.call("notes", "x") > 0
        house.machine.wait_for("it has gone", lambda: house.processes() == [])
    assert len(house.notes()) == 2


def test_enough_is_enough(house: House) -> None:
    house.install("answers", max_jobs=5)
    script = """
say([runner.run("answers")["pid"] for _ in range(20)])
"""
    pids = house.python(script)
    assert [pids.count(one) for one in sorted(set(pids), key=pids.index)] == [5, 5, 5, 5]
    house.install("answers", max_memory="60M")
    first = house.call("answers", {"do": "grow"})["pid"]
    script = 'say([runner.run("answers")["pid"] for _ in range(40)])'
    assert first not in house.python(script)[-5:]


# --- asynchronous ----------------------------------------------------------------------------------


def test_payloads_are_done_once_in_order(house: House) -> None:
    house.install("notes", "async", "Notes")
    script = """
ids = [runner.run("notes", -1)]
for n in range(10):
    ids += runner.submit("notes", list(range(200 * n, 200 * n + 200)))
say([len(ids), ids == sorted(ids)])
"""
    assert house.python(script) == [2001, True]
    house.drained("notes")
    assert [int(one[0]) for one in house.notes()] == list(range(-1, 2000))
    assert {one[1] for one in house.notes()} == {"1"}
    house.machine.wait_for(
        "it has told", lambda: house.workers()["notes"]["processes"][0]["served"] == 2001
    )


def test_nothing_is_done_twice_because_the_daemon_was_killed(house: House) -> None:
    house.install("notes", "async", "Notes", instances=2)
    script = """
sent = 0
for n in range(300):
    while True:
        try:
            runner.submit("notes", [{"n": 5 * n + m, "sleep": 0.002} for m in range(5)])
            break
        except errors.NotReachable as error:
            if "broke" not in str(error) and "hung up" not in str(error):
                continue
            sent += 1  # nobody knows whether it was accepted
            break
say(sent)
"""
    head = "import bgtaskd, json\nfrom bgtaskd import errors\nrunner = bgtaskd.Runner()\n"
    head += "def say(value): print(json.dumps(value))\n"
    with house.machine.popen(["python3", "-c", head + script], user="alice") as sender:
        for _ in range(8):
            time.sleep(random.uniform(0.05, 0.4))
            house.kill(random.choice([DAEMON, DAEMON, LAUNCHER]))
        said, _ = sender.communicate(timeout=60)
    unknown = 5 * json.loads(said)
    house.drained("notes")
    done = [int(one[0]) for one in house.notes()]
    assert len(done) == len(set(done))
    assert 1500 - unknown <= len(done) <= 1500


def test_what_kills_its_process_is_set_aside_and_blocks_nobody(house: House) -> None:
    house.install("notes", "async", "Notes", watchdog="300ms")
    house.python("""
say(runner.submit("notes", [*range(50), "die", *range(50, 100), "hang", "raise", *range(100, 150)]))
""")
    house.drained("notes")
    assert {int(one[0]) for one in house.notes()} == set(range(150))
    assert max(int(one[1]) for one in house.notes()) <= 3
    aside = house.python("say(bgtaskd.Client().call('AsidePayloads')['payloads'])", "root")
    reasons = {json.loads(one["payload"]): one for one in aside}
    assert set(reasons) == {"die", "hang", "raise"}
    assert "killed by SIGKILL" in reasons["die"]["reason"]
    assert "it hung for its watchdog time" in reasons["hang"]["reason"]
    assert reasons["die"]["tries"] == reasons["hang"]["tries"] == 3
    assert json.loads(reasons["raise"]["reason"])["type"] == "LookupError"
    assert house.workers()["notes"]["aside"] == 3
    ids = [one["id"] for one in aside]
    client = "client = bgtaskd.Client()\n"
    assert house.refused("bgtaskd.Client().call('AsidePayloads')")[0] == "PermissionDenied"
    forgiven = (
        f"{client}say(client.call('RetryPayloads', ids=[{reasons['raise']['id']}, 99999])['ids'])"
    )
    assert house.python(forgiven, "root") == [reasons["raise"]["id"]]
    house.machine.wait_for("it has failed again", lambda: house.workers()["notes"]["aside"] == 3)
    dropped = f"{client}say(client.call('DropPayloads', ids={ids})['ids'])"
    assert sorted(house.python(dropped, "root")) == sorted(ids)
    assert house.workers()["notes"]["aside"] == 0


def test_a_backlog_is_bounded(house: House) -> None:
    house.install("notes", "async", "Notes", backlog=1000, start="call")
    house.machine.systemctl("stop", LAUNCHER, "bgtaskd-launcher.socket")
    try:
        assert len(house.python('say(runner.submit("notes", list(range(1000))))')) == 1000
        kind, words = house.refused('runner.run("notes", 1)')
        assert (kind, "notes is full: 1000" in words) == ("QueueFull", True)
        assert house.refused('runner.submit("notes", [1] * 1001)')[0] == "InvalidSpec"
    finally:
        house.machine.systemctl("start", "bgtaskd-launcher.socket")
    house.drained("notes")
    assert len(house.notes()) == 1000


def test_files(house: House) -> None:
    """Changes are taken over without dropping a job; a mistake leaves what there was."""
    house.install("notes", "async", "Notes")
    house.python('say(runner.submit("notes", [{"n": n, "sleep": 0.02} for n in range(100)]))')
    house.install("notes", "async", "Notes", instances=3, env={"COLOUR": "red"})
    house.drained("notes")
    assert sorted(int(one[0]) for one in house.notes()) == list(range(100))
    assert {one[1] for one in house.notes()} == {"1"}
    assert len({one[3] for one in house.notes()}) > 1
    house.machine.wait_for("three", lambda: len(house.processes()) == 3)
    before = house.processes()
    house.install("notes", "async", "Notes", instances="many")
    assert house.processes() == before
    said = house.machine.output("journalctl", "-u", DAEMON, "-n", "20")
    assert "instances: must be a whole number" in said
    house.install("wrong", "sync", "Notes", user="alice")
    house.machine.wait_for(
        "why", lambda: "is no SyncTask" in house.machine.sh("journalctl -t wrong").stdout
    )
    house.machine.sh("rm /etc/bgtaskd/tasks.d/*")
    house.machine.systemctl("reload", DAEMON)
    house.machine.wait_for("none", lambda: house.processes() == [])
    assert house.refused('runner.run("notes", 1)')[0] == "NoSuchWorker"
    assert house.machine.sh("ls /run/bgtaskd/tasks").stdout == ""


def test_payloads_outlive_the_machine(fresh_machine: Container) -> None:
    house = House(fresh_machine)
    house.install("notes", "async", "Notes")
    house.install("answers")
    house.python('say(runner.submit("notes", [{"n": n, "sleep": 0.05} for n in range(40)]))')
    fresh_machine.wait_for("some are done", lambda: len(house.notes()) > 3)
    fresh_machine.reboot()
    house.drained("notes")
    assert {int(one[0]) for one in house.notes()} == set(range(40))
    assert len(house.notes()) <= 44  # what was in hand, and what it could not say any more
    assert house.call("answers", 1)["echo"] == 1
