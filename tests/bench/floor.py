# SPDX-License-Identifier: LGPL-2.1-or-later
"""What no task runner on systemd can beat one by one, and what a user would type instead.

Both run as root, in the container, in the same run as bgtaskd's own figures.
"""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from pystemd.dbuslib import DBus
from pystemd.systemd1 import Manager


@dataclass(frozen=True)
class Rate:
    """Tasks a second; the seconds from asking to the program's exec, sorted (empty: not measured)."""

    per_second: float
    exec_latency: list[float]


def raw_floor(count: int) -> Rate:
    """Fork, StartTransientUnit by pystemd, wait for its job, open the gate, exec true, wait: one by one."""
    latencies: list[float] = []
    removed: set[bytes] = set()

    def on_job_removed(message: Any, error: Any = None, userdata: Any = None) -> None:
        message.process_reply(False)
        removed.add(message.body[1])

    with DBus() as bus, Manager(bus=bus) as manager:
        bus.match_signal(
            manager.destination,
            manager.path,
            b"org.freedesktop.systemd1.Manager",
            b"JobRemoved",
            on_job_removed,
            None,
        )
        manager.Manager.Subscribe()
        begin = time.monotonic()
        for number in range(count):
            asked = time.monotonic()
            pid, gate, execed = _gated_true()
            unit = f"bench-floor-{os.getpid()}-{number}.scope".encode()
            # pystemd has no name for PIDs=; "_custom" is its own way out.
            pids = {b"_custom": (b"PIDs", b"au", [pid])}
            job = manager.Manager.StartTransientUnit(unit, b"fail", pids)
            while job not in removed:
                bus.process()
                if job not in removed:
                    bus.wait(1_000_000)
            os.write(gate, b"g")
            os.close(gate)
            os.read(execed, 1)
            latencies.append(time.monotonic() - asked)
            os.close(execed)
            os.waitpid(pid, 0)
        spent = time.monotonic() - begin
    return Rate(count / spent, sorted(latencies))


def _gated_true() -> tuple[int, int, int]:
    """A child that will exec true: its pid, the pipe that lets it, and one that ends when it has."""
    gate_read, gate_write = os.pipe()
    execed_read, execed_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.read(gate_read, 1)
            os.execv("/bin/true", ["true"])
        finally:
            os._exit(127)
    os.close(gate_read)
    os.close(execed_write)
    return pid, gate_write, execed_read


def systemd_run(count: int) -> Rate:
    """`systemd-run --scope true` in a loop, as a shell would have it."""
    begin = time.monotonic()
    for _ in range(count):
        subprocess.run(["systemd-run", "--quiet", "--scope", "true"], check=True)
    return Rate(count / (time.monotonic() - begin), [])
