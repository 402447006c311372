# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make bench`: every figure the README claims, beside its floor and its peer, in one run.

Runs as root inside a container that has bgtaskd installed and a user who is in the group bgtask.
Prints one table; judges nothing: figures on a busy machine are read, not asserted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bgtaskd

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.bench.floor import raw_floor, systemd_run

SERVICES = ("bgtaskd.service", "bgtaskd-launcher.service")
STATE = Path("/var/lib/bgtaskd/state")
CONF = Path("/etc/bgtaskd/conf.d/bench.yaml")


def main() -> None:
    """Run the parts that were asked for, all by default."""
    parts: dict[str, Callable[[argparse.Namespace], None]] = {
        "rate": bench_rate,
        "rest": bench_rest,
        "many": bench_many,
        "million": bench_million,
        "pages": bench_pages,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], default=[])
    parser.add_argument("--user", default="alice", help="an ordinary user in group bgtask")
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    for name in arguments.parts or parts:
        parts[name](arguments)


# --- rate and latency --------------------------------------------------------------------------------


def bench_rate(arguments: argparse.Namespace) -> None:
    """Tasks a second and submit → exec, beside the floor and systemd-run."""
    count = arguments.tasks
    heading(f"{count} × true: tasks a second, and submit → exec")
    floor = raw_floor(count)
    peer = systemd_run(count)
    with as_user(arguments.user):
        ours = submit_all(count)
        latency = submit_one_by_one(min(count, 300))
    print(f"{'':34}{'tasks/s':>9}{'of floor':>10}{'p50 ms':>9}{'p99 ms':>9}{'of floor':>10}")
    row(
        "raw floor (fork+scope+wait)", floor.per_second, floor.per_second, floor.exec_latency, floor
    )
    row("systemd-run --scope", peer.per_second, floor.per_second, [], floor)
    row("bgtaskd", ours, floor.per_second, latency, floor)
    print(f"bgtaskd is {ours / peer.per_second:.1f}× systemd-run --scope")


def submit_all(count: int) -> float:
    """Submit, then wait for the last to end: tasks a second."""
    with bgtaskd.Client() as client:
        begin = time.monotonic()
        ids = [client.start(["/bin/true"], name="bench") for _ in range(count)]
        results = [task.result for task in client.wait_all(ids)]
        spent = time.monotonic() - begin
    if results != ["success"] * count:
        sys.exit(f"bench: not every task succeeded: {set(results)}")
    return count / spent


def submit_one_by_one(count: int) -> list[float]:
    """Seconds from the call of start() to the program's exec, one task at a time; sorted."""
    latencies: list[float] = []
    with bgtaskd.Client() as client:
        for _ in range(count):
            asked = time.time()
            task = client.wait(client.start(["/bin/true"], name="bench"))
            if task.started is None:
                sys.exit(f"bench: task {task.id} never started: {task.error}")
            latencies.append(task.started / 1e6 - asked)
    return sorted(latencies)


# --- at rest -----------------------------------------------------------------------------------------


def bench_rest(arguments: argparse.Namespace) -> None:
    """Memory at rest, and how often the processes wake up with nothing to do."""
    heading("at rest")
    subprocess.run(["systemctl", "restart", *SERVICES], check=True)
    with as_user(arguments.user), bgtaskd.Client() as client:
        client.wait(client.start(["/bin/true"]))
    pids = service_pids()
    seconds = 60
    time.sleep(5)
    before = {pid: switches(pid) for pid in pids}
    time.sleep(seconds)
    total = 0.0
    for pid, name in pids.items():
        size = pss(pid)
        total += size
        woken = switches(pid) - before[pid]
        print(f"{name:34}{size:9.1f} MiB PSS{woken:9} wake-ups in {seconds} s")
    print(f"{'together':34}{total:9.1f} MiB PSS")


# --- a thousand at once ------------------------------------------------------------------------------


def bench_many(arguments: argparse.Namespace) -> None:
    """Memory and answer times while many tasks run."""
    count = arguments.tasks
    heading(f"{count} tasks running at once")
    CONF.write_text(f"queues:\n  bench:\n    slots: {count}\n")
    subprocess.run(["systemctl", "reload", "bgtaskd.service"], check=True)
    with as_user(arguments.user), bgtaskd.Client() as client:
        begin = time.monotonic()
        ids = [client.start(["/bin/sleep", "3600"], queue="bench") for _ in range(count)]
        running: set[int] = set()
        for event in client.watch(ids):
            if event.task.state == "running":
                running.add(event.task.id)
            if len(running) == count:
                break
        print(f"{'all of them running after':34}{time.monotonic() - begin:9.1f} s")
        lists = timed(100, lambda: client.list(limit=100))
        gets = timed(1000, lambda: client.get(ids[count // 2]))
    ours = {**service_pids(), **supervisor_pids()}
    by_name: dict[str, list[float]] = {}
    for pid, name in ours.items():
        by_name.setdefault(name, []).append(pss(pid))
    for name, sizes in by_name.items():
        print(f"{name:34}{sum(sizes):9.1f} MiB PSS, {len(sizes)} × {sum(sizes) / len(sizes):.2f}")
    print(f"{'list (100 rows), p50/p99':34}{lists[50] * 1e3:9.2f} / {lists[98] * 1e3:.2f} ms")
    print(f"{'status of one, p50/p99':34}{gets[500] * 1e3:9.2f} / {gets[989] * 1e3:.2f} ms")
    with as_user(arguments.user), bgtaskd.Client() as client:
        for task_id in ids:
            client.stop(task_id)
        client.wait_all(ids)


# --- a million rows ----------------------------------------------------------------------------------


def bench_million(arguments: argparse.Namespace) -> None:
    """Start-up and list with very many ended tasks in the database."""
    heading(f"{arguments.rows:,} ended rows in the database")
    subprocess.run(["systemctl", "stop", "bgtaskd.socket", "bgtaskd.service"], check=True)
    fill(arguments.rows, pwd.getpwnam(arguments.user))
    subprocess.run(["systemctl", "start", "bgtaskd.socket"], check=True)
    begin = time.monotonic()
    subprocess.run(["systemctl", "start", "bgtaskd.service"], check=True)
    print(f"{'start-up, until READY=1':34}{time.monotonic() - begin:9.2f} s")
    with as_user(arguments.user), bgtaskd.Client() as client:
        lists = timed(100, lambda: client.list(limit=100))
        print(f"{'list (100 rows), p50/p99':34}{lists[50] * 1e3:9.2f} / {lists[98] * 1e3:.2f} ms")
        sums = timed(20, client.stats)
        print(f"{'stats (the last 20,000), p50':34}{sums[10] * 1e3:9.2f} ms")
        task = client.wait(client.start(["/bin/true"]))
        print(f"{'next id, its result':34}{task.id:9} {task.result}")


def fill(rows: int, user: pwd.struct_passwd) -> None:
    """Ended tasks, written through the store's own interface, owned by the service's user."""
    from bgtaskd.model import Result, State, Task, TaskSpec
    from bgtaskd.storage.interface import PutTask
    from bgtaskd.storage.sqlite import open_storage

    now = time.time_ns() // 1000
    spec = TaskSpec(name="old", argv=("/bin/true",))
    storage, _ = open_storage(STATE / "state.db")
    first = storage.next_task_id()
    for start in range(first, first + rows, 10_000):
        batch = [
            PutTask(
                Task(
                    id=task_id,
                    spec=spec,
                    uid=user.pw_uid,
                    user=user.pw_name,
                    owner_uid=user.pw_uid,
                    state=State.FINISHED,
                    created=now,
                    updated=now,
                    attempt=1,
                    result=Result.SUCCESS,
                    exit_status=0,
                    percent=100.0,
                    started=now,
                    ended=now,
                )
            )
            for task_id in range(start, min(start + 10_000, first + rows))
        ]
        storage.apply(batch)
    storage.close()
    owner = pwd.getpwnam("bgtaskd")
    for path in STATE.iterdir():
        os.chown(path, owner.pw_uid, owner.pw_gid)


# --- helpers -----------------------------------------------------------------------------------------


def bench_pages(arguments: argparse.Namespace) -> None:
    """What 500 open pages cost one worker of an app."""
    heading("500 pages open on one worker of an app")
    program = Path(__file__).with_name("pages.py")
    subprocess.run(["runuser", "-u", arguments.user, "--", sys.executable, program], check=True)


def heading(text: str) -> None:
    """A title between the tables."""
    print(f"\n== {text}", flush=True)


def row(name: str, rate: float, base: float, latency: list[float], floor: Any) -> None:
    """One line of the rate table."""
    line = f"{name:34}{rate:9.0f}{rate / base:9.2f}×"
    if latency:
        p50, p99 = latency[len(latency) // 2], latency[int(len(latency) * 0.99)]
        ratio = p50 / floor.exec_latency[len(floor.exec_latency) // 2]
        line += f"{p50 * 1e3:9.2f}{p99 * 1e3:9.2f}{ratio:9.2f}×"
    print(line, flush=True)


def timed(count: int, call: Callable[[], object]) -> list[float]:
    """Seconds of each of so many calls, sorted."""
    spent: list[float] = []
    for _ in range(count):
        begin = time.monotonic()
        call()
        spent.append(time.monotonic() - begin)
    return sorted(spent)


@contextlib.contextmanager
def as_user(name: str) -> Iterator[None]:
    """Be an ordinary user for a while: effective ids and groups, which is what the socket sees."""
    user = pwd.getpwnam(name)
    groups = os.getgroups()
    os.initgroups(name, user.pw_gid)
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def pss(pid: int) -> float:
    """Proportional set size, MiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return (
        next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024
    )


def switches(pid: int) -> int:
    """How often the process has gone to sleep by itself: once for each time it was woken."""
    text = Path(f"/proc/{pid}/status").read_text()
    return next(
        int(line.split()[1])
        for line in text.splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


def service_pids() -> dict[int, str]:
    """The processes of both services and the fork server's scope, by pid."""
    found: dict[int, str] = {}
    for unit in SERVICES:
        for pid in cgroup_pids(Path("/sys/fs/cgroup/system.slice") / unit):
            found[pid] = unit
    return found


def supervisor_pids() -> dict[int, str]:
    """The fork server and the supervisors, by pid."""
    scopes = Path("/sys/fs/cgroup/system.slice").glob("bgtaskd-supervisors-*.scope")
    return {pid: "supervisors" for scope in scopes for pid in cgroup_pids(scope)}


def cgroup_pids(path: Path) -> list[int]:
    """The processes of a cgroup and of those below it."""
    return [int(line) for file in path.rglob("cgroup.procs") for line in file.read_text().split()]


if __name__ == "__main__":
    main()
