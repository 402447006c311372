# SPDX-License-Identifier: LGPL-2.1-or-later
"""A secret reaches its task, and nobody finds it anywhere else: a search of the whole machine."""

from __future__ import annotations

import json
import secrets

from tests.houses.container import Container
from tests.system.test_spine import get, wait, wait_running

PYTHON_TASK = """
import bgtaskd, os, sys, time

class Keeper(bgtaskd.BackgroundTask):
    @classmethod
    def get_secrets(cls):
        return {"token": sys.stdin.read().strip()}

    def execute(self, status):
        with open(os.path.expanduser("~/" + self.settings), "w") as file:
            file.write(self.secrets["token"][::-1])
        while True:
            time.sleep(60)

if __name__ == "__main__":
    print(Keeper.initiate("reversed").id)
"""
# Each prints where it found the secret, which it reads from its standard input.
SEARCH = """
import os, subprocess, sys
secret = sys.stdin.read().strip().encode()
def look(path):
    try:
        with open(path, "rb") as file:
            while piece := file.read(1 << 24):
                if secret in piece:
                    print(path)
                    return
    except OSError:
        pass
for pid in filter(str.isdigit, os.listdir("/proc")):
    for name in ("cmdline", "environ"):
        look(f"/proc/{pid}/{name}")
for top in ("/var", "/run", "/tmp", "/etc", "/root", "/home", "/dev/shm"):
    for where, _, names in os.walk(top):
        for name in names:
            if os.path.isfile(f"{where}/{name}"):
                look(f"{where}/{name}")
if secret in subprocess.run(["journalctl", "-o", "export", "--all"], stdout=subprocess.PIPE).stdout:
    print("journal")
"""


def places_with(machine: Container, secret: str) -> set[str]:
    """Files, processes and logs that have the secret, as root finds them."""
    machine.write("/root/search.py", SEARCH)
    found = machine.run(["python3", "/root/search.py"], input=secret, timeout=120).stdout
    return set(found.split())


def test_a_commands_secret_is_a_file_for_its_user_alone(machine: Container) -> None:
    secret = secrets.token_hex(20)
    script = (
        'wc -c <"$CREDENTIALS_DIRECTORY/token"; ls -ld "$CREDENTIALS_DIRECTORY"; exec sleep 600'
    )
    argv = ["bgtaskctl", "run", "--secret", "token:-", "--", "sh", "-c", script]
    task_id = int(machine.run(argv, user="alice", input=secret).stdout)
    wait_running(machine, task_id)
    machine.wait_for(
        "its output",
        lambda: "dr-x" in machine.output("bgtaskctl", "output", str(task_id), user="alice"),
    )
    output = machine.output("bgtaskctl", "output", str(task_id), user="alice").split()
    assert output[:2] == ["40", "dr-x------"]
    assert output[3] == "alice"
    credentials = f"/run/bgtaskd/credentials/{task_id}.1/token"
    assert places_with(machine, secret) == {f"/run/bgtaskd/secrets/{task_id}", credentials}
    for path in (credentials, f"/run/bgtaskd/secrets/{task_id}"):
        assert machine.run(["cat", path], user="bob", check=False).returncode != 0
    machine.run(["bgtaskctl", "stop", str(task_id)], user="alice")
    wait(machine, task_id)
    assert places_with(machine, secret) == set()
    refused = machine.run(["bgtaskctl", "retry", str(task_id)], user="alice", check=False)
    assert "start it anew" in refused.stderr


def test_a_python_tasks_secret_is_in_no_file_but_the_daemons(machine: Container) -> None:
    secret = secrets.token_hex(20)
    machine.write("/home/alice/keeper.py", PYTHON_TASK)
    task_id = int(
        machine.run(["python3", "keeper.py"], user="alice", input=secret, cwd="/home/alice").stdout
    )
    machine.wait_for(
        "the task",
        lambda: machine.run(["test", "-s", "/home/alice/reversed"], check=False).returncode == 0,
    )
    assert machine.read("/home/alice/reversed") == secret[::-1]
    assert places_with(machine, secret) == {f"/run/bgtaskd/secrets/{task_id}"}
    machine.run(["bgtaskctl", "kill", str(task_id)], user="alice")
    wait(machine, task_id)
    assert places_with(machine, secret) == set()


def test_neither_daemon_nor_launcher_dumps_core(machine: Container) -> None:
    machine.sh("echo /var/tmp/core.%e.%p >/proc/sys/kernel/core_pattern", check=False)
    for unit in ("bgtaskd.service", "bgtaskd-launcher.service"):
        pid = machine.systemctl("show", "-p", "MainPID", "--value", unit)
        limits = machine.read(f"/proc/{pid}/limits")
        [line] = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert line.split()[4] == "0"
    task = wait(
        machine,
        int(machine.output("bgtaskctl", "run", "--", "sh", "-c", "ulimit -c", user="alice")),
    )
    # A task's own limit is what it would be in any service.
    default = machine.output("systemctl", "show", "-p", "DefaultLimitCORESoft", "--value")
    shown = machine.output("bgtaskctl", "output", str(task["id"]), user="alice")
    assert (shown == "unlimited") == (default == "infinity")


def test_secrets_that_did_not_survive_fail_the_task_with_that_reason(machine: Container) -> None:
    argv = ["bgtaskctl", "run", "--delay", "2s", "--secret", "token:-", "--", "true"]
    task_id = int(machine.run(argv, user="alice", input="xyzzy").stdout)
    machine.run(["rm", f"/run/bgtaskd/secrets/{task_id}"])  # as a reboot does
    task = wait(machine, task_id)
    assert (task["result"], task["attempt"]) == ("resources", 1)
    assert "did not survive" in task["error"]


def test_anonymous_has_no_home_and_a_tmp_of_its_own(machine: Container) -> None:
    machine.run(["touch", "/tmp/of-alice", "/var/tmp/of-alice"], user="alice")
    script = 'id -un; echo "$HOME"; pwd; ls -A /tmp /var/tmp; touch /tmp/mine; ls /tmp; bgtaskctl run -- true'
    argv = ["bgtaskctl", "run", "--user", "anonymous", "--", "sh", "-c", script]
    task = wait(machine, int(machine.output(*argv, user="alice")))
    output = machine.output("bgtaskctl", "output", str(task["id"]), user="alice").split("\n")
    assert output[:7] == ["bgtask-anonymous", "/nonexistent", "/", "/tmp:", "", "/var/tmp:", "mine"]
    assert "not allowed" in output[7]
    assert machine.run(["test", "-e", "/tmp/mine"], check=False).returncode == 1
    refused = machine.run(
        ["bgtaskctl", "run", "--user", "anonymous", "--secret", "a:-", "--", "true"],
        user="alice", input="xyzzy", check=False,
    )  # fmt: skip
    assert "share a user" in refused.stderr
    assert "xyzzy" not in json.dumps(get(machine, task["id"]))
