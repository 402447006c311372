# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tasks written in Python, as a web developer writes them, on real systemd."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.houses.container import Container
from tests.system.test_spine import get, wait, wait_running

APP = """
import os, sys, time
import bgtaskd

class Resize(bgtaskd.BackgroundTask):
    options = {"name": "resize", "properties": {"TasksMax": "50"}}

    def execute(self, status):
        print("resizing \\x1b[1mto\\x1b[0m", self.settings["width"])
        status.operations(4)
        for number in range(1, 5):
            status.increment()
            status.update(message=f"step {number}")
        return {
            "settings": status.settings, "id": status.id, "current": bgtaskd.current().id,
            "user": os.getuid(), "cwd": os.getcwd(), "prefix": sys.prefix, "output": status.output,
            "cgroup": open("/proc/self/cgroup").read().strip(), "percentage": status.percentage,
        }

class Broken(bgtaskd.BackgroundTask):
    def execute(self, status):
        status.update(30)
        raise LookupError("nö such thing\\nreally")

@bgtaskd.background
def reticulate(status, n):
    return n * 2

@bgtaskd.background(timeout=50)
async def later(status):
    return "later"

@bgtaskd.background
def fails(status):
    try:
        status.fail("no more")
    except Exception:
        return "not here"

@bgtaskd.background
def returns(status, what):
    return {"object": object(), "nan": float("nan"), "big": "x" * 300_000, "none": None}[what]

@bgtaskd.background
def leaves(status, code):
    sys.exit(code)

@bgtaskd.background
def waits(status, path):
    print("waiting", flush=True)
    while not os.path.exists(path):
        time.sleep(0.02)
    return {"path": path}
"""


@pytest.fixture(scope="module")
def app(machine: Container) -> Container:
    """A package of an app, at a place that only its own import path names."""
    machine.write("/srv/app/shop/__init__.py", "")
    machine.write("/srv/app/shop/tasks.py", APP)
    return machine


def python(
    machine: Container,
    text: str,
    *,
    user: str = "alice",
    interpreter: Sequence[str] = ("python3",),
    check: bool = True,
    cwd: str = "/srv/app",
) -> Any:
    """Run a script that prints one JSON value, as a module beside the app would be run."""
    head = "import json, sys\nimport bgtaskd\nfrom shop import tasks\n"
    machine.write("/srv/app/main.py", head + text)
    done = machine.run([*interpreter, "/srv/app/main.py"], user=user, check=check, cwd=cwd)
    return json.loads(done.stdout) if check else done


SHOW = (
    "print(json.dumps({'id': s.id, 'state': s.state, 'result': s.result, 'value': s.result_value,"
    "'status_text': s.status_text, 'output_text': s.output_text, 'percentage': s.percentage,"
    "'message': s.message, 'error': s.error, 'output': s.output,"
    "'failure': s.failure and vars_(s.failure)}))"
)
VARS = "def vars_(f): return {'type': f.type, 'message': f.message, 'traceback': f.traceback}\n"


def run(machine: Container, expression: str, **options: Any) -> Any:
    """Start a task from the app, wait for it, and say what its status says."""
    return python(machine, f"{VARS}s = {expression}\ns.wait(60)\n{SHOW}\n", **options)


def test_a_class_runs_outside_with_everything_its_caller_had(app: Container) -> None:
    seen = run(app, "tasks.Resize.initiate({'width': 300, 'é': [None]})", cwd="/usr/share")
    value = seen["value"]
    assert (seen["state"], seen["result"], seen["percentage"]) == ("finished", "success", 100)
    assert value["settings"] == {"width": 300, "é": [None]}
    assert value["id"] == value["current"] == seen["id"]
    assert value["user"] == app.account("alice").uid
    assert value["cwd"] == "/usr/share"
    assert value["output"] == seen["output"] == "resizing \x1b[1mto\x1b[0m 300\n"
    assert value["cgroup"].endswith(f"/bgtask-{seen['id']}.scope")
    assert (seen["message"], value["percentage"]) == ("step 4", 100)
    assert seen["status_text"] == "step 4"
    assert seen["output_text"] == "resizing to 300\n"
    task = get(app, seen["id"])
    assert (task["kind"], task["target"], task["name"]) == ("python", "shop.tasks:Resize", "resize")
    assert (task["finished"], task["total"]) == (4, 4)
    text = app.output("bgtaskctl", "status", str(seen["id"]), user="alice")
    assert "python shop.tasks:Resize" in text
    assert '"width": 300' in text  # the value


def test_functions_plain_and_async(app: Container) -> None:
    assert run(app, "tasks.reticulate.initiate(n=21)")["value"] == 42
    assert run(app, "tasks.later.using(queue='default').initiate()")["value"] == "later"


def test_from_the_shell(app: Container) -> None:
    run_it = ["bgtaskctl", "run", "--wait", "-o", "json", "--target"]
    words = [*run_it, "shop.tasks:reticulate", "--settings", '{"n": 4}']
    task = json.loads(app.run(words, user="alice", cwd="/srv/app").stdout)
    assert (task["name"], task["value"]) == ("reticulate", 8)
    words = [
        *run_it,
        "shop/tasks.py:Resize",
        "--settings",
        '{"width": 3}',
        "--",
        "/usr/bin/python3",
    ]
    task = json.loads(app.run(words, user="alice", cwd="/srv/app").stdout)
    assert task["value"]["settings"] == {"width": 3}
    show = ["bgtaskctl", "output", str(task["id"])]
    assert app.output(*show, user="alice") == "resizing \x1b[1mto\x1b[0m 3"
    assert app.output(*show, "--text", user="alice") == "resizing to 3"


def test_a_script_is_run_again_under_another_name(app: Container) -> None:
    app.write(
        "/srv/script.py",
        "import bgtaskd\n"
        "class Hello(bgtaskd.BackgroundTask):\n"
        "    def execute(self, status):\n"
        "        import concurrent.futures, multiprocessing\n"
        "        spawn = multiprocessing.get_context('spawn')\n"
        "        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:\n"
        "            doubled = pool.submit(double, 4).result()\n"
        "        return [__name__, __import__('__main__').Hello is Hello, doubled]\n"
        "def double(n): return 2 * n\n"
        "if __name__ == '__main__':\n"
        "    print(Hello.initiate().wait(60).result_value)\n",
    )
    printed = app.output("python3", "/srv/script.py", user="alice")
    assert printed == "['__mp_main__', True, 8]"


def test_it_runs_in_the_callers_virtualenv(app: Container) -> None:
    """One that has no bgtaskd of its own: the caller's comes from its import path."""
    app.run(["python3", "-m", "venv", "--without-pip", "/srv/venv"])
    libraries = "/usr/lib/python3/dist-packages"
    interpreter = ("env", f"PYTHONPATH={libraries}", "/srv/venv/bin/python")
    seen = run(app, "tasks.Resize.initiate({'width': 1})", interpreter=interpreter)
    assert seen["value"]["prefix"] == "/srv/venv"


def test_an_exception_is_told_to_the_caller_and_to_the_journal_once(app: Container) -> None:
    seen = run(app, "tasks.Broken.initiate()")
    assert (seen["state"], seen["result"], seen["percentage"]) == ("failed", "exit-code", 30)
    failure = seen["failure"]
    assert failure["type"] == "LookupError"
    assert failure["message"] == "nö such thing\nreally"
    assert 'File "/srv/app/shop/tasks.py"' in failure["traceback"]
    assert "/bgtaskd/task/" not in failure["traceback"]
    assert seen["error"] == "LookupError: nö such thing"
    assert seen["output"] == failure["traceback"]
    app.run(["journalctl", "--sync"])
    journal = app.output("journalctl", f"BGTASK_ID={seen['id']}", "-o", "cat")
    assert journal.count("LookupError: nö such thing") == 1
    text = app.output("bgtaskctl", "status", str(seen["id"]), user="alice")
    assert "Error: LookupError: nö such thing" in text
    listed = json.loads(app.output("bgtaskctl", "list", "-o", "json", user="alice"))
    assert next(one for one in listed if one["id"] == seen["id"])["failure"]["traceback"] == ""


@pytest.mark.parametrize(
    ("expression", "kind", "words"),
    [
        ("tasks.fails.initiate()", "TaskFailed", "no more"),
        ("tasks.returns.initiate(what='object')", "InvalidResult", "object that is not JSON"),
        ("tasks.returns.initiate(what='nan')", "InvalidResult", "not JSON"),
        ("tasks.returns.initiate(what='big')", "InvalidResult", "262144 bytes"),
        ("tasks.leaves.initiate(code=3)", "SystemExit", "3"),
    ],
)
def test_what_fails_says_why(app: Container, expression: str, kind: str, words: str) -> None:
    seen = run(app, expression)
    assert (seen["state"], seen["value"]) == ("failed", None)
    assert seen["failure"]["type"] == kind
    assert words in seen["failure"]["message"]
    assert get(app, seen["id"])["exit_status"] == (3 if kind == "SystemExit" else 1)


def test_what_succeeds_without_a_value(app: Container) -> None:
    for expression in ("tasks.returns.initiate(what='none')", "tasks.leaves.initiate(code=0)"):
        seen = run(app, expression)
        assert (seen["state"], seen["value"], seen["failure"]) == ("finished", None, None)


def test_a_target_that_is_gone_says_so(app: Container) -> None:
    app.write("/srv/app/shop/gone.py", "import bgtaskd\n@bgtaskd.background\ndef job(s): pass\n")
    done = python(
        app,
        "from shop import gone\nstatus = gone.job.using(delay=0.3).initiate()\nprint(status.id)\n",
    )
    app.run(["rm", "-r", "/srv/app/shop/gone.py"])
    task = wait(app, int(done))
    assert task["failure"]["type"] == "ModuleNotFoundError"
    assert "shop.gone" in task["error"]


def test_what_cannot_run_in_the_background_is_refused_at_once(app: Container) -> None:
    done = python(
        app,
        "def make():\n    n = 3\n    @bgtaskd.background\n    def inner(status): return n\n"
        "    return inner\n"
        "try: make().initiate()\n"
        "except bgtaskd.BgtaskdError as error: print(json.dumps(str(error)))\n",
    )
    assert "inside of make" in done


@pytest.mark.parametrize("units", ["bgtaskd.service", "bgtaskd.service bgtaskd-launcher.service"])
def test_a_killed_daemon_loses_no_result(app: Container, units: str) -> None:
    """The daemon is killed while the task hands its value over."""
    app.run(["rm", "-f", "go"], user="alice")
    task_id = int(python(app, "print(tasks.waits.initiate(path='/home/alice/go').id)"))
    wait_running(app, task_id)
    app.sh(f"systemctl kill --signal=KILL {units}; runuser -u alice touch /home/alice/go")
    app.sh(f"for n in 1 2 3; do systemctl kill --signal=KILL {units} || true; sleep 0.05; done")
    app.systemctl("reset-failed", "bgtaskd.service", "bgtaskd-launcher.service")
    app.systemctl("start", "bgtaskd.service")
    task = wait(app, task_id)
    assert (task["state"], task["value"]) == ("finished", {"path": "/home/alice/go"})
    assert task["attempt"] == 1
