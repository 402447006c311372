# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hostile and clumsy clients and tasks. Whatever they do, the daemon answers others meanwhile."""

from __future__ import annotations

import json

import pytest

from tests.houses.container import Container

SOCKET = "/run/bgtaskd/control.sock"

# Each script does its harm, then prints "done"; it runs inside the container as alice.
HALF_A_MESSAGE = """
import socket
s = socket.socket(socket.AF_UNIX); s.connect(SOCKET)
s.sendall(b'{"method": "org.bgtaskd.Li')
print("ready", flush=True)
input()
"""

TEN_THOUSAND_CONNECTIONS = """
import resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[1:] * 2)
open_ones, refused = [], 0
for _ in range(10_000):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(5)
    try:
        s.connect(SOCKET)
    except OSError:
        refused += 1
        continue
    open_ones.append(s)
print("ready", flush=True)
input()
"""

HUNDRED_MEBIBYTES = """
import socket
s = socket.socket(socket.AF_UNIX); s.connect(SOCKET)
sent = 0
try:
    s.sendall(b'{"method": "')
    for _ in range(100):
        s.sendall(b"x" * 1048576)
        sent += 1
    s.sendall(b'"}\\0')
except OSError as error:
    pass
s.settimeout(10)
try:
    answer = s.recv(65536)
except OSError:
    answer = b""
print("sent", sent, "MiB; answer", answer[:200], flush=True)
print("ready", flush=True)
input()
"""


def daemon_rss(machine: Container) -> int:
    """Resident memory of the daemon, KiB."""
    pid = machine.systemctl("show", "-P", "MainPID", "bgtaskd.service")
    return int(machine.sh(f"awk '/VmRSS/ {{print $2}}' /proc/{pid}/status").stdout)


def answers(machine: Container, user: str = "bob") -> None:
    """Somebody else's task is accepted, runs and ends, while the harm goes on."""
    done = machine.run(
        ["bgtaskctl", "run", "--wait", "--", "true"], user=user, check=False, timeout=20
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "script",
    [HALF_A_MESSAGE, TEN_THOUSAND_CONNECTIONS, HUNDRED_MEBIBYTES],
    ids=["half", "10000", "100MiB"],
)
def test_a_hostile_client_disturbs_nobody(machine: Container, script: str) -> None:
    pid = machine.systemctl("show", "-P", "MainPID", "bgtaskd.service")
    before = daemon_rss(machine)
    program = script.replace("SOCKET", repr(SOCKET))
    with machine.popen(["python3", "-c", program], user="alice") as client:
        assert client.stdout is not None
        for line in client.stdout:
            if line.strip() == "ready":
                break
        else:
            pytest.fail("the hostile client died before it did its harm")
        answers(machine)
        grown = daemon_rss(machine) - before
        assert grown < 40 * 1024, f"the daemon grew by {grown} KiB"
    answers(machine, user="alice")
    assert machine.systemctl("show", "-P", "MainPID", "bgtaskd.service") == pid


def test_a_task_that_prints_a_gibibyte(machine: Container) -> None:
    task_id = machine.output(
        "bgtaskctl", "run", "--", "sh", "-c", "yes 0123456789 | head -c 1073741824", user="alice"
    )
    answers(machine)
    machine.run(["bgtaskctl", "wait", task_id], user="alice", timeout=300)
    size = int(machine.output("stat", "-c", "%s", f"/var/lib/bgtaskd/tasks/{task_id}/output"))
    assert 5 * 1024**2 < size <= 10 * 1024**2 + 200
    text = machine.sh(f"bgtaskctl output {task_id} | head -c 20", user="alice").stdout
    assert text.startswith("0123456789\n")
    assert (
        "dropped"
        in machine.sh(f"bgtaskctl output {task_id} | grep -a dropped", user="alice").stdout
    )


def test_a_task_that_leaves_a_thousand_children(machine: Container) -> None:
    script = "for i in $(seq 1000); do sleep 3600 & done"
    task_id = machine.output("bgtaskctl", "run", "--", "sh", "-c", script, user="alice")
    machine.run(["bgtaskctl", "wait", task_id], user="alice", timeout=60, check=False)
    left = machine.run(["pgrep", "-u", "alice", "-f", "sleep 3600"], check=False).stdout.split()
    assert left == []
    task = json.loads(machine.output("bgtaskctl", "status", "-o", "json", task_id, user="alice"))
    assert task["state"] == "finished"
    answers(machine)


def test_names_with_newlines_and_escapes_are_shown_escaped(machine: Container) -> None:
    name = "evil\n\x1b[31mred\x07"
    argv = ["bgtaskctl", "run", "--wait", "--name", name, "--", "true"]
    machine.run(argv, user="alice")
    tasks = json.loads(machine.output("bgtaskctl", "list", "--all", "-o", "json", user="alice"))
    task = next(task for task in tasks if task["name"] == name)
    for verb in (["list", "--all"], ["status", str(task["id"])], ["show", str(task["id"])]):
        text = machine.output("bgtaskctl", *verb, user="alice")
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "evil\n" not in text
    journal = machine.output("journalctl", f"BGTASK_ID={task['id']}", "-o", "cat")
    assert "\x1b" not in journal


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["-p", "MemoryMax=lots"], "MemoryMax"),
        (["-p", "MemroyMax=1G"], "MemroyMax"),
        (["-p", "CPUQuota=-3%"], "CPUQuota"),
        (["--queue", "nosuchqueue"], "nosuchqueue"),
        (["--user", "nosuchuser"], "user"),
        (["--name", "x" * 1000], "name"),
    ],
)
def test_a_refusal_names_the_field(machine: Container, options: list[str], named: str) -> None:
    argv = ["bgtaskctl", "run", *options, "--", "true"]
    done = machine.run(argv, user="alice", check=False)
    assert done.returncode != 0
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2


def test_a_mistake_in_the_configuration_is_told_and_no_task_suffers(
    machine: Container,
) -> None:
    task = machine.output("bgtaskctl", "run", "--", "sleep", "600", user="bob")
    conf = "/etc/bgtaskd/conf.d/mistake.yaml"
    machine.write(conf, "queues:\n  slow:\n    slots: many\n")
    machine.run(["systemctl", "restart", "bgtaskd.service"], check=False)
    told = machine.journal("-u", "bgtaskd.service", "-n", "20")
    assert f"{conf}:3: queues.slow.slots" in told
    assert "status=78/CONFIG" in told
    shown = machine.systemctl("show", "-p", "NRestarts", "bgtaskd.service")
    assert shown == "NRestarts=0"
    # The supervisor's calls have it started again, every other second; so the mistake need only be mended.
    machine.run(["rm", conf])
    machine.wait_for(
        "the daemon",
        lambda: (
            machine.run(["systemctl", "is-active", "bgtaskd.service"], check=False).returncode == 0
        ),
    )
    assert "running" in machine.output("bgtaskctl", "status", task, user="bob")
    machine.run(["bgtaskctl", "stop", task], user="bob")
