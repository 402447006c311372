# SPDX-License-Identifier: LGPL-2.1-or-later
"""The app to mount: what it answers, to whom, and what it makes of a daemon that comes and goes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.houses.container import Container

INSIDE = Path(__file__).with_name("page_inside.py")
FOLLOW = """
import json, sys
sys.path.insert(0, "/home/alice")
from page_inside import *
for one in frames(page(events=True), ref(int(sys.argv[1]))):
    print(json.dumps(one), flush=True)
"""


def test_inside(machine: Container) -> None:
    machine.write("/home/alice/test_page_inside.py", INSIDE.read_text())
    argv = "python3 -m pytest -q -p no:cacheprovider -W error test_page_inside.py".split()
    done = machine.run(argv, user="alice", cwd="/home/alice", check=False, timeout=240)
    assert done.returncode == 0, done.stdout


def test_open_pages_outlive_a_daemon_that_was_killed(machine: Container) -> None:
    machine.write("/home/alice/page_inside.py", INSIDE.read_text())
    task_id = machine.output("bgtaskctl", "run", "-q", "--", "sleep", "600", user="alice").strip()
    argv = ["python3", "-c", FOLLOW, task_id]
    with machine.popen(argv, user="alice") as process:
        assert until(process, "running")["percent"] is None
        machine.systemctl("kill", "-s", "KILL", "bgtaskd.service")
        until(process, "unreachable")
        until(process, "running")
        machine.run(["bgtaskctl", "update", "--id", task_id, "--progress", "20"], user="alice")
        while until(process, "running")["percent"] != 20:
            pass
        machine.systemctl("restart", "bgtaskd.service")
        machine.run(["bgtaskctl", "stop", task_id], user="alice")
        until(process, "stopped")
        assert process.wait(30) == 0


def test_the_administrators_page_is_off_and_says_what_it_needs(machine: Container) -> None:
    unit = "bgtaskd-web.service"
    assert machine.sh(f"systemctl is-enabled {unit}", check=False).stdout == "disabled\n"
    machine.run(["systemctl", "start", unit], check=False)
    machine.wait_for(
        "the page to give up", lambda: "ActiveState=failed" in machine.systemctl("show", unit)
    )
    assert "ExecMainStatus=78" in machine.systemctl("show", unit)  # and it is not tried again
    assert "apt install python3-waitress" in machine.journal("--unit", unit)
    machine.systemctl("reset-failed", unit)


def until(process: subprocess.Popen[str], state: str) -> dict[str, Any]:
    assert process.stdout
    for line in process.stdout:
        said: dict[str, Any] = json.loads(line)
        if said["state"] == state:
            return said
    raise AssertionError(f"it never said {state}")
