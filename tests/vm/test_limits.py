# SPDX-License-Identifier: LGPL-2.1-or-later
"""Limits and accounting with real cgroup controllers, and a true reboot: only a VM has them here."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.houses.machine import Machine

EAT_MEMORY = "data = bytearray(400 * 1024 * 1024); print(len(data))"
FORK_MUCH = """
import os, time
made = 0
try:
    while made < 200:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
except BlockingIOError:
    pass
print("made", made, flush=True)
"""
BURN = """
import time
end = time.monotonic() + 6
while time.monotonic() < end:
    pass
"""


def run_task(vm: Machine, *argv: str) -> dict[str, Any]:
    """Run `bgtaskctl run argv` as alice, wait for the end, and return the task."""
    task_id = vm.output("bgtaskctl", "run", *argv, user="alice")
    vm.run(["bgtaskctl", "wait", task_id], user="alice", check=False, timeout=120)
    return status(vm, task_id)


def status(vm: Machine, task_id: str) -> dict[str, Any]:
    """The task as `bgtaskctl status -o json` has it."""
    task: dict[str, Any] = json.loads(
        vm.output("bgtaskctl", "status", "-o", "json", task_id, user="alice")
    )
    return task


def test_memory_max_ends_a_task_with_oom_kill(vm: Machine) -> None:
    limits = ["-p", "MemoryMax=100M", "-p", "MemorySwapMax=0"]
    task = run_task(vm, *limits, "--", "python3", "-c", EAT_MEMORY)
    assert (task["state"], task["result"]) == ("failed", "oom-kill")
    assert task["signal"] == "SIGKILL"


def test_oom_is_not_retried_by_default(vm: Machine) -> None:
    limits = ["-p", "MemoryMax=100M", "-p", "MemorySwapMax=0", "--retries", "3"]
    task = run_task(vm, *limits, "--", "python3", "-c", EAT_MEMORY)
    assert (task["result"], task["attempt"]) == ("oom-kill", 1)


def test_oom_kill_is_known_even_where_the_cgroup_was_gone_first(vm: Machine) -> None:
    limits = ["-p", "MemoryMax=100M", "-p", "MemorySwapMax=0"]
    script = f"until [ -e ~/eat ]; do sleep 0.1; done; exec python3 -c '{EAT_MEMORY}'"
    task_id = vm.output("bgtaskctl", "run", *limits, "--", "sh", "-c", script, user="alice")
    vm.wait_for("its start", lambda: status(vm, task_id)["state"] == "running")
    supervisor = json.loads(vm.read(f"/var/lib/bgtaskd/exits/{task_id}.1"))["supervisor"]["pid"]
    vm.run(["kill", "-STOP", str(supervisor)])
    vm.sh("touch ~alice/eat")
    cgroup = f"/sys/fs/cgroup/bgtask.slice/bgtask-default.slice/bgtask-{task_id}.scope"
    gone = ["test", "!", "-e", cgroup]
    vm.wait_for("its cgroup to go", lambda: vm.run(gone, check=False).returncode == 0)
    vm.run(["kill", "-CONT", str(supervisor)])
    vm.run(["bgtaskctl", "wait", task_id], user="alice", check=False, timeout=120)
    assert status(vm, task_id)["result"] == "oom-kill"


def test_peak_memory_and_io_are_the_cgroups(vm: Machine) -> None:
    script = "head -c 60000000 /dev/zero > ~/big; sync ~/big; rm ~/big"
    task = run_task(vm, "--", "sh", "-c", f"python3 -c 'bytearray(50 << 20)'; {script}; sleep 0.5")
    assert task["result"] == "success"
    assert task["memory_peak"] > 50 << 20
    assert task["cpu_usec"] > 0
    assert task["io_write_bytes"] >= 60_000_000


def test_tasks_max_stops_a_fork_bomb(vm: Machine) -> None:
    task = run_task(vm, "-p", "TasksMax=20", "--", "python3", "-c", FORK_MUCH)
    output = vm.output("bgtaskctl", "output", str(task["id"]), user="alice")
    made = int(output.split()[-1])
    assert made < 20


def test_cpu_quota_is_kept(vm: Machine) -> None:
    task = run_task(vm, "-p", "CPUQuota=20%", "--", "python3", "-c", BURN)
    used = task["cpu_usec"] / (task["ended"] - task["started"])
    assert used < 0.35


def test_runtime_max_is_a_timeout(vm: Machine) -> None:
    task = run_task(vm, "-p", "RuntimeMaxSec=2s", "--", "sleep", "600")
    assert (task["state"], task["result"]) == ("failed", "timeout")


def test_a_queues_limits_hold_for_all_its_tasks(vm: Machine) -> None:
    vm.write(
        "/etc/bgtaskd/conf.d/small.yaml",
        "queues:\n  small:\n    slots: 2\n    properties:\n      MemoryMax: 120M\n"
        "      MemorySwapMax: '0'\n",
    )
    vm.systemctl("reload", "bgtaskd.service")
    assert vm.systemctl("show", "-P", "MemoryMax", "bgtask-small.slice") == str(120 << 20)
    task = run_task(vm, "--queue", "small", "--", "python3", "-c", EAT_MEMORY)
    assert task["result"] == "oom-kill"


@pytest.mark.parametrize("how", ["reboot", "power cut"])
def test_a_reboot_interrupts_what_ran_and_runs_what_waited(vm: Machine, how: str) -> None:
    running = vm.output("bgtaskctl", "run", "--", "sleep", "3600", user="alice")
    again = vm.output("bgtaskctl", "run", "--retries", "1", "--", "sleep", "3601", user="alice")
    waiting = vm.output("bgtaskctl", "run", "--delay", "20s", "--", "true", user="alice")
    for task_id in (running, again):
        vm.wait_for(f"task {task_id}", lambda one=task_id: status(vm, one)["state"] == "running")  # type: ignore[misc]
    if how == "reboot":
        vm.reboot()
    else:
        vm.cut_power()
        vm.start()
    vm.wait_for("the verdict", lambda: status(vm, running)["ended"] is not None, timeout=60)
    task = status(vm, running)
    if how == "reboot":
        # An orderly shutdown ends the task before the machine goes down.
        assert task["result"] in ("interrupted", "signal")
    else:
        assert (task["state"], task["result"]) == ("failed", "interrupted")
    vm.wait_for("the retry", lambda: status(vm, again)["state"] == "running", timeout=60)
    assert status(vm, again)["attempt"] == 2
    vm.run(["bgtaskctl", "wait", waiting], user="alice", timeout=60)
    assert status(vm, waiting)["result"] == "success"
    vm.run(["bgtaskctl", "stop", again], user="alice")
