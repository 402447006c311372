# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tasks that are forked from a process with their modules loaded: as fast, and in nothing else different."""

from __future__ import annotations

import json
import selectors
from collections.abc import Iterator
from typing import IO, Any

import pytest

from tests.houses.container import Container
from tests.system import test_spine
from tests.system.test_bus import line, listen
from tests.system.test_spine import get, wait_running

DAEMON = "bgtaskd.service"
CONF = "/etc/bgtaskd/conf.d/preload.yaml"
APP = """
import atexit, ctypes, os, resource, signal, sys, threading, time
import bgtaskd

LOADED_BY = os.getpid()

@bgtaskd.background(preload=True, name="warm")
def look(status, code=None, **_):
    atexit.register(print, "at exit")
    print("out"), print("err", file=sys.stderr), os.system("echo from a shell")
    groups = [open(f"/proc/{pid}/cgroup").read() for pid in ("self", os.getppid())]
    scope, parent = [one.strip().rpartition("/")[2] for one in groups]
    here = {"warm": LOADED_BY == os.getppid(), "pid": os.getpid(), "parent": parent, "scope": scope,
            "uid": os.getuid(), "groups": sorted(os.getgroups()), "env": dict(os.environ), "cwd": os.getcwd(),
            "umask": os.umask(0), "nice": os.nice(0), "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "leader": os.getsid(0) == os.getpid(), "secrets": dict(status.secrets), "version": VERSION,
            "stdin": os.readlink("/proc/self/fd/0")}
    if code is not None:
        sys.exit(code)
    return here

@bgtaskd.background(preload=True)
def ends(status, how):
    status.update(20, "about to")
    if how == "exception":
        raise ValueError("not this one")
    if how == "thread":
        threading.Timer(0.3, print, ["the thread's last word"]).start()
    elif how == "os":
        os._exit(9)
    elif how == "signal":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how in ("wait", "wait and die"):
        message = status.next_signal(60)
        if how == "wait and die":
            os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "reads":
        return sys.stdin.readline()
"""
GO = """
import json, sys
import {module} as app
options = json.loads(sys.argv[2])
print(getattr(app, sys.argv[1]).using(**options).initiate(**json.loads(sys.argv[3])).id)
"""


@pytest.fixture(scope="module")
def app(machine: Container) -> Iterator[Container]:
    write(machine, "app", 1)
    yield machine
    machine.sh(f"rm -f {CONF}")


def write(machine: Container, module: str, version: int, more: str = "") -> None:
    machine.write(f"/srv/{module}.py", f"VERSION = {version}\n{more}{APP}")
    machine.write(f"/srv/go_{module}.py", GO.format(module=module))


def initiate(
    machine: Container,
    name: str,
    /,
    by: str = "alice",
    module: str = "app",
    settings: Any = None,
    **options: Any,
) -> int:
    options = {"cwd": "/srv", **options}
    argv = [f"/srv/go_{module}.py", name, json.dumps(options), json.dumps(settings or {})]
    return int(machine.output("python3", *argv, user=by))


def wait(machine: Container, task_id: int) -> dict[str, Any]:
    """As root, for some are bob's."""
    return test_spine.wait(machine, task_id, "root")


def templates(machine: Container, state: str = "running") -> list[dict[str, Any]]:
    shown = machine.output("bgtaskctl", "list", "--kind", "template", "--all", "-o", "json")
    found: list[dict[str, Any]] = json.loads(shown)
    return [one for one in found if one["state"] == state]


def warm(machine: Container, /, **options: Any) -> int:
    """Have a template ready for tasks with these options; its id."""
    found: list[int] = []

    def ready() -> bool:
        value = wait(machine, initiate(machine, "look", **options))["value"]
        if value["warm"]:
            found.append(int(value["parent"].split("-")[1].split(".")[0]))
        return bool(found)

    machine.wait_for("the template is ready", ready)
    return found[0]


def test_it_is_as_if_the_task_had_been_started_anew(app: Container) -> None:
    first = wait(app, initiate(app, "look"))
    assert not first["value"]["warm"]
    warm(app)
    options: dict[str, Any] = {
        "env": {"COLOUR": "blue"},
        "properties": {"LimitNOFILE": "77", "UMask": "0027", "Nice": "5"},
    }
    cold = wait(app, initiate(app, "look", secrets={"word": "xyzzy"}, **options))
    template = warm(app, **options)
    task = wait(app, initiate(app, "look", secrets={"word": "xyzzy"}, **options))
    value, like = task["value"], cold["value"]
    assert value, task["error"]
    assert (like["warm"], value["warm"]) == (False, True)
    assert value["parent"] == f"bgtask-{template}.scope"
    assert value["scope"] == task["unit"] == f"bgtask-{task['id']}.scope"
    assert like["scope"] == cold["unit"]
    assert (value["nofile"], value["umask"], value["nice"]) == (77, 0o027, 5)
    ours = ("BGTASK_ID", "NOTIFY_SOCKET")
    assert [value["env"][name] for name in ours] != [like["env"][name] for name in ours]
    for name in ours:
        del value["env"][name], like["env"][name]
    for name in ("warm", "pid", "parent", "scope"):
        del value[name], like[name]
    assert value == like
    assert (task["result"], task["exit_status"], task["percent"]) == ("success", 0, 100)
    assert task["cpu_usec"] is not None
    output = app.output("bgtaskctl", "output", str(task["id"]))
    assert sorted(output.splitlines()) == ["at exit", "err", "from a shell", "out"]
    app.wait_for(
        "the journal has it", lambda: "from a shell" in app.output("journalctl", "-u", task["unit"])
    )
    shown = json.loads(app.output("bgtaskctl", "list", "--all", "-o", "json"))
    assert template not in [one["id"] for one in shown]
    assert (
        json.loads(app.output("bgtaskctl", "status", "-o", "json", str(template)))["kind"]
        == "template"
    )


@pytest.mark.parametrize(
    ("how", "result", "status", "killed"),
    [
        ("nothing", "success", 0, None),
        ("thread", "success", 0, None),
        ("exception", "exit-code", 1, None),
        ("os", "exit-code", 9, None),
        ("signal", "signal", None, "SIGKILL"),
    ],
)
def test_its_end_is_known(
    app: Container, how: str, result: str, status: int | None, killed: str | None
) -> None:
    warm(app)
    task = wait(app, initiate(app, "ends", settings={"how": how}))
    assert (task["result"], task["exit_status"], task["signal"]) == (result, status, killed)
    assert task["percent"] == (100 if result == "success" else 20)
    if how == "exception":
        assert task["failure"]["type"] == "ValueError"
        assert "in ends" in task["failure"]["traceback"]
    if how == "thread":
        output = app.output("bgtaskctl", "output", str(task["id"]))
        assert output == "the thread's last word"
    code = wait(app, initiate(app, "look", settings={"code": 7}))
    assert (code["result"], code["exit_status"]) == ("exit-code", 7)


def test_it_can_be_paused_stopped_killed_and_sent_text(app: Container) -> None:
    warm(app)
    task_id = initiate(app, "ends", settings={"how": "wait"})
    wait_running(app, task_id)
    for verb, state in (("pause", "paused"), ("resume", "running")):
        app.run(["bgtaskctl", verb, str(task_id)], user="alice")
        app.wait_for(state, lambda state=state: get(app, task_id)["state"] == state)  # type: ignore[misc]
    app.run(["bgtaskctl", "kill", "-s", "USR1", "--kill-whom", "main", str(task_id)], user="alice")
    killed = wait(app, task_id)
    assert (killed["result"], killed["signal"]) == ("signal", "SIGUSR1")
    task_id = initiate(app, "ends", settings={"how": "wait"})
    wait_running(app, task_id)
    app.run(["bgtaskctl", "stop", str(task_id)], user="alice")
    assert wait(app, task_id)["result"] == "stopped"
    task_id = initiate(app, "ends", settings={"how": "reads"}, stdin=True)
    wait_running(app, task_id)
    app.run(["bgtaskctl", "send", str(task_id), "a line"], user="alice")
    assert wait(app, task_id)["value"] == "a line\n"
    missing = wait(app, initiate(app, "look", cwd="/nowhere"))
    assert missing["result"] == "resources"


def test_everything_may_be_killed_while_it_runs(app: Container) -> None:
    """Daemon and launcher: nothing is noticed. The template: only how a task died, if it dies by a signal."""
    template = warm(app)
    waits = initiate(app, "ends", settings={"how": "wait"})
    dies = initiate(app, "ends", settings={"how": "wait and die"})
    for one in (waits, dies):
        wait_running(app, one)
    app.systemctl("kill", "--signal=KILL", DAEMON, "bgtaskd-launcher.service")
    assert wait(app, initiate(app, "look"))["value"]["warm"]
    app.run(["bgtaskctl", "kill", "-s", "KILL", str(template)], user="alice")
    assert wait(app, template)["state"] != "running"
    for one in (waits, dies):
        app.run(["bgtaskctl", "signal", str(one), "go"], user="alice")
    assert wait(app, waits)["result"] == "success"
    died = wait(app, dies)
    assert died["result"] == "lost", died
    assert "nobody saw" in died["error"]
    assert warm(app) > template


def test_a_changed_file_is_never_old_code(app: Container) -> None:
    write(app, "changing", 1)
    template = warm(app, module="changing")
    assert wait(app, initiate(app, "look", module="changing"))["value"]["version"] == 1
    write(app, "changing", 2)
    assert wait(app, initiate(app, "look", module="changing"))["value"]["version"] == 2
    assert wait(app, template)["result"] == "success"
    assert warm(app, module="changing") > template
    new = wait(app, initiate(app, "look", module="changing"))["value"]
    assert (new["warm"], new["version"]) == (True, 2)


def test_users_share_no_template(app: Container) -> None:
    ours, theirs = warm(app), warm(app, by="bob")
    assert ours != theirs
    value = wait(app, initiate(app, "look", by="bob"))["value"]
    assert (value["warm"], value["uid"]) == (True, int(app.output("id", "-u", "bob")))
    value = wait(app, initiate(app, "look", user="anonymous"))["value"]
    assert not value["warm"]
    status = app.run(["bgtaskctl", "stop", str(theirs)], user="alice", check=False)
    assert status.returncode != 0
    listing = app.output("ls", "-l", "/run/bgtaskd/templates")
    assert listing.count("srw------- ") == listing.count(".sock") >= 2


def test_modules_that_cannot_be_preloaded_are_no_failure(app: Container) -> None:
    thread = "import threading, time\n"
    thread += "threading.Thread(target=time.sleep, args=[9], daemon=True).start()\n"
    write(app, "threads", 1, thread)
    task_id = initiate(app, "look", module="threads", settings={"code": 0})
    assert wait(app, task_id)["result"] == "success"

    def failed() -> list[int]:
        found = templates(app, "failed")
        return [one["id"] for one in found if one["name"] == "preload threads"]

    app.wait_for("it failed", lambda: bool(failed()))
    output = app.output("bgtaskctl", "output", str(failed()[0]))
    assert "none survives a fork: Thread-1" in output
    task_id = initiate(app, "look", module="threads", settings={"code": 0})
    assert wait(app, task_id)["result"] == "success"
    assert len(failed()) == 1


def test_limits(app: Container) -> None:
    limits = "limits:\n  templates_per_user: 1\n  template_idle: 1s\n"
    for one in templates(app):
        app.run(["bgtaskctl", "stop", str(one["id"])])
        wait(app, one["id"])
    app.write(CONF, limits)
    app.systemctl("reload", DAEMON)
    write(app, "first", 1)
    write(app, "second", 1)
    first = warm(app, module="first")
    wait(app, initiate(app, "look", module="second"))
    ended = wait(app, first)
    assert ended["result"] in ("stopped", "success")
    for one in templates(app):
        assert wait(app, one["id"])["result"] == "success"
    app.write(CONF, "limits:\n  templates_per_user: 0\n")
    app.systemctl("reload", DAEMON)
    newest = json.loads(app.output("bgtaskctl", "list", "--kind", "template", "-o", "json"))[0][
        "id"
    ]
    task_id = initiate(app, "look", module="first")
    assert not wait(app, task_id)["value"]["warm"]
    after = json.loads(app.output("bgtaskctl", "list", "--kind", "template", "-o", "json"))
    assert after[0]["id"] == newest
    app.sh(f"rm {CONF}")
    app.systemctl("reload", DAEMON)


def test_listeners_hear_of_templates_only_by_their_ids(app: Container) -> None:
    """Watch, the bus, statistics: nobody has started a template, so it is in nobody's way."""
    match = "--match=type='signal',sender='org.bgtaskd1'"
    bus = app.popen(["timeout", "60", "busctl", "--json=short", "monitor", match])
    watch = app.popen(["timeout", "60", "bgtaskctl", "monitor", "-o", "json"], user="alice")
    with bus as on_the_bus, watch as watching:
        assert on_the_bus.stdout is not None
        assert watching.stdout is not None
        heard_first(app, watching.stdout)
        listen(app, on_the_bus.stdout)
        template = warm(app, env={"COLOUR": "red"})
        last = initiate(app, "look", env={"COLOUR": "red"})
        watched: list[Any] = []
        while not watched or (watched[-1]["id"], watched[-1]["state"]) != (last, "finished"):
            watched.append(json.loads(line(watching.stdout)))
        signals: list[Any] = []
        while not signals or signals[-1] != ("TaskFinished", last):
            message = json.loads(line(on_the_bus.stdout))
            if message.get("interface") == "org.bgtaskd1.Manager":
                signals.append((message["member"], message["payload"]["data"][0]))
    ids = {one["id"] for one in watched}
    assert last in ids
    assert template not in ids
    assert {one["kind"] for one in watched} <= {"python", "command"}
    assert template not in {number for _, number in signals}
    app.run(["bgtaskctl", "stop", str(template)], user="alice")
    told = app.output("python3", "-c", WATCH.format(id=template), user="alice").split()
    assert told[-1] == "finished"
    assert set(told) <= {"changed", "finished"}
    names = {one["name"] for one in json.loads(app.output("bgtaskctl", "stats", "-o", "json"))}
    ended = [one for one in templates(app, "stopped") if one["id"] == template]
    assert [one["name"] in names for one in ended] == [False]


WATCH = "import bgtaskd\nfor one in bgtaskd.Client().watch([{id}]): print(one.event)"


def heard_first(machine: Container, stdout: IO[str]) -> None:
    """Return once a `bgtaskctl monitor` hears us."""
    lines = selectors.DefaultSelector()
    lines.register(stdout, selectors.EVENT_READ)
    for _ in range(100):
        machine.run(["bgtaskctl", "run", "--wait", "--", "true"], user="alice")
        if lines.select(0.1):
            return
    raise AssertionError("the monitor hears nothing")
