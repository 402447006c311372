# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make bench-peers`: Python tasks and named tasks beside Celery, RQ, Huey, Dramatiq and gearmand, in one run.

Runs as root inside a container that has bgtaskd and the peers installed. Prints tables; judges nothing.
Redis has appendonly with fsync at every write ("durable"), as bgtaskd's own disk has; then the same without.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "build/peers"
HERE = str(Path(__file__).parent)
sys.path[:0] = [str(ROOT), HERE]
sys.path.append(str(PEERS))

from tests.bench.run import as_user, heading, pss

PAYLOAD = {"n": 1, "name": "alice@example.org", "text": "x" * 100}
DONE = Path("/srv/bench/done")
TASKS_D = Path("/etc/bgtaskd/tasks.d")
ECHO = "/srv/bench/echo.sock"
DEADLINE = 60.0
SECONDS = 5.0
"""A system that is slow makes fewer calls."""
GEARMAND = ["gearmand", "--listen=localhost", "--log-file=none"]
RQ = [sys.executable, "-m", "rq.cli", "worker", "--quiet", "--path", HERE]
Call = Callable[[], object]


def main() -> None:
    """Run the parts that were asked for, all by default."""
    parts: dict[str, Callable[[argparse.Namespace], None]] = {
        "start": bench_start,
        "calls": bench_calls,
        "flat": bench_flat,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], default=[])
    parser.add_argument("--user", default="alice", help="an ordinary user in group bgtask")
    parser.add_argument("--tasks", type=int, default=300)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--payloads", type=int, default=20_000)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        be_client(arguments.client, arguments.calls, arguments.user)
    DONE.parent.mkdir(exist_ok=True)
    DONE.touch()
    os.chdir(DONE.parent)
    DONE.chmod(0o666)
    for name in arguments.parts or parts:
        parts[name](arguments)


# --- how long until a Python task's first line ---------------------------------------------------------


def bench_start(arguments: argparse.Namespace) -> None:
    """Asked → first line of the task, one at a time; then as many a second as they come."""
    count = arguments.tasks
    heading(f"Python tasks: asked → first line ({min(count, 100)} one by one), and {count} at once")
    print(f"{'':34}{'p50 ms':>9}{'p99 ms':>9}{'tasks/s':>9}")
    with as_user(arguments.user):
        jobs: Any = jobs_of("")
        for name, function in (
            ("bgtaskd, cold", jobs.cold),
            ("bgtaskd, warm", jobs.warm),
        ):
            for _ in range(5):
                function.initiate(asked=0.0).wait()
            time.sleep(1)
            start_row(name, count, asking(function))
    with redis(durable=False):
        with worker("celery", celery_worker()):
            jobs = jobs_of("celery")
            start_row(
                "Celery delay(), prefork", count, lambda: jobs.celery_began.delay(time.time())
            )
        with worker("rq", RQ):
            import redis as client
            import rq

            queue = rq.Queue(connection=client.Redis())
            start_row(
                "RQ, a fork for each job",
                count,
                lambda: queue.enqueue("peer_jobs.tell_began", time.time()),
            )


def asking(function: Any) -> Call:
    """What starts it."""
    return lambda: function.initiate(asked=time.time())


def start_row(name: str, count: int, ask: Call) -> None:
    """One system's line."""
    clear()
    ask()
    wait_lines(1)
    latencies = []
    for _ in range(min(count, 100)):
        clear()
        ask()
        latencies.append(1000 * float(wait_lines(1)[0]))
    clear()
    begin = time.monotonic()
    for _ in range(count):
        ask()
    wait_lines(count)
    rate = count / (time.monotonic() - begin)
    print(
        f"{name:34}{percentile(latencies, 50):9.2f}{percentile(latencies, 99):9.2f}{rate:9.0f}",
        flush=True,
    )


# --- named tasks ---------------------------------------------------------------------------------------


def bench_calls(arguments: argparse.Namespace) -> None:
    """Round trips, and payloads accepted and drained."""
    define("answer", "sync", "Answer", arguments.user)
    define("drain", "async", "Drain", arguments.user, backlog=5_000_000)
    heading(f"synchronous round trip ({arguments.calls} calls), with one client and with eight")
    print(f"{'':34}{'p50 µs':>9}{'p99 µs':>9}{'calls/s':>9}{'8 clients':>10}")
    count = arguments.calls
    with echo():
        round_row("bare socket, JSON echo", "echo", arguments, count)
    round_row("bgtaskd SyncTask", "bgtaskd", arguments, count)
    with worker("gearman", GEARMAND, quiet=True):
        wait_port(4730)
        with worker("gearman", [sys.executable, f"{HERE}/peer_jobs.py"]):
            round_row("gearmand, Python worker", "gearman", arguments, count)
    with redis(durable=False):
        for name, (argv, _, _) in redis_peers().items():
            with worker(name, argv):
                round_row(title(name), name, arguments, count)
    bench_durable(arguments)
    bench_fleeting(arguments)


def drain_heading(count: int, words: str) -> None:
    """The title of such a table."""
    heading(f"asynchronous: {count} payloads accepted, and drained by one process; {words}")
    print(f"{'':34}{'accepted/s':>11}{'done/s':>9}{'MiB rest':>9}")


def bench_durable(arguments: argparse.Namespace) -> None:
    """Everything that is accepted is on the disk."""
    import bgtaskd

    few = min(arguments.payloads, 5000)
    drain_heading(arguments.payloads, "durable (Redis: appendfsync always)")
    with as_user(arguments.user):
        runner = bgtaskd.Runner()
        bulk = [PAYLOAD] * 500

        def batch() -> object:
            return runner.submit("drain", bulk)

        def single() -> object:
            return runner.run("drain", PAYLOAD)

        drain_row("bgtaskd, 500 in a batch", arguments.payloads, batch, 500, ours_pids)
        drain_row("bgtaskd, one by one", few, single, 1, ours_pids)
        drain_row("bgtaskd, 8 threads, one by one", few, single, 1, ours_pids, 8)
    with redis(durable=True):
        bench_redis_peers(few)


def bench_fleeting(arguments: argparse.Namespace) -> None:
    """What is accepted is in memory only."""
    drain_heading(arguments.payloads, "not durable (gearmand's usual way; Redis without a file)")
    with redis(durable=False):
        bench_redis_peers(arguments.payloads)
    few = min(arguments.payloads, 5000)
    with worker("gearman", GEARMAND, quiet=True) as server:
        wait_port(4730)
        with worker("gearman", [sys.executable, f"{HERE}/peer_jobs.py"]) as process:
            pids = [*family(process.pid), server.pid]
            drain_row("gearmand, Python worker", few, gearman_enqueue(), 1, lambda: pids)


def bench_redis_peers(count: int) -> None:
    """A line each. Who is slow is given fewer."""
    most = {"rq": 300, "dramatiq": 2000, "celery": 5000}
    for name, (argv, _, enqueue) in redis_peers().items():
        with worker(name, argv) as process:
            pids = family(process.pid)
            some = min(count, most.get(name, count))
            drain_row(title(name), some, enqueue(), 1, lambda pids=pids: pids)  # type: ignore[misc]


def bench_flat(arguments: argparse.Namespace) -> None:
    """Whether a call costs the same after a million of them, and with a million payloads waiting."""
    import bgtaskd

    heading("cost of a call, of a payload: at first, and after a million")
    define("answer", "sync", "Answer", arguments.user)
    define("drain", "async", "Drain", arguments.user, backlog=5_000_000)
    with as_user(arguments.user):
        runner = bgtaskd.Runner()
        call = runner_call(runner)
        bulk = [PAYLOAD] * 500
        runner.run("answer", 1)
        clear()
        print(f"{'call 1 to 10,000':34}{mean_usec(call, 10_000):9.1f} µs")
        print(
            f"{'payload, none waiting':34}{mean_usec(lambda: runner.submit('drain', bulk), 20) / 500:9.1f} µs"
        )
        wait_bytes(10_000)
        for _ in range(99):
            mean_usec(call, 10_000)
        print(f"{'call 990,001 to 1,000,000':34}{mean_usec(call, 10_000):9.1f} µs")
        begin = time.monotonic()
        for _ in range(2000):
            runner.submit("drain", bulk)
        accepted = time.monotonic() - begin
        print(f"{'a million payloads accepted in':34}{accepted:9.1f} s")
        print(
            f"{'payload, many waiting':34}{mean_usec(lambda: runner.submit('drain', bulk), 20) / 500:9.1f} µs"
        )
        wait_bytes(1_020_000, 900)
        print(f"{'and done, one process':34}{1_020_000 / (time.monotonic() - begin):9.0f} a second")


def round_row(name: str, which: str, arguments: argparse.Namespace, count: int) -> None:
    """One system's line: one client; then eight."""
    with as_user(arguments.user) if which == "bgtaskd" else nullcontext():
        call = maker(which)()
        for _ in range(20):
            call()
        spent: list[float] = []
        begin = time.monotonic()
        while len(spent) < count and time.monotonic() - begin < SECONDS:
            start = time.perf_counter()
            call()
            spent.append((time.perf_counter() - start) * 1e6)
        rate = len(spent) / (time.monotonic() - begin)
    many = eight_clients(len(spent), which, arguments.user)
    p50, p99 = percentile(spent, 50), percentile(spent, 99)
    print(f"{name:34}{p50:9.0f}{p99:9.0f}{rate:9.0f}{many:10.0f}", flush=True)


def eight_clients(count: int, which: str, user: str) -> float:
    """Calls a second of all together, each in a process of its own."""
    each = max(1, count // 8)
    argv = [sys.executable, __file__, "--client", which, "--calls", str(each), "--user", user]
    some = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(8)]
    for one in some:
        assert one.stdout is not None
        one.stdout.readline()
    begin = time.monotonic()
    for one in some:
        one.communicate(b"go\n")
    return 8 * each / (time.monotonic() - begin)


def be_client(which: str, count: int, user: str) -> None:
    """One of the eight."""
    with as_user(user) if which == "bgtaskd" else nullcontext():
        call = maker(which)()
        call()
        print("ready", flush=True)
        sys.stdin.readline()
        for _ in range(count):
            call()
    os._exit(0)


def maker(which: str) -> Callable[[], Call]:
    """What makes a call of this system's."""
    import bgtaskd

    ours = {
        "echo": lambda: echo_call(ECHO),
        "bgtaskd": lambda: runner_call(bgtaskd.Runner()),
        "gearman": gearman_call,
    }
    return ours[which] if which in ours else redis_peers()[which][1]


def drain_row(
    name: str, count: int, enqueue: Call, size: int, pids: Callable[[], list[int]], clients: int = 1
) -> None:
    """One system's line: accepted a second, done a second (from the first on), memory at rest before."""
    clear()
    enqueue()
    wait_bytes(size)
    clear()
    rest = sum(pss_of(pid) for pid in pids())
    begin = time.monotonic()
    if clients == 1:
        for _ in range(count // size):
            enqueue()
    else:
        threads = [
            threading.Thread(target=lambda: [enqueue() for _ in range(count // size // clients)])
            for _ in range(clients)
        ]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    accepted = time.monotonic() - begin
    wait_bytes(count // size // clients * clients * size)
    done = time.monotonic() - begin
    print(f"{name:34}{count / accepted:11.0f}{count / done:9.0f}{rest:9.1f}", flush=True)


# --- each system's own way -----------------------------------------------------------------------------


def runner_call(runner: Any) -> Call:
    """A call of ours."""
    return lambda: runner.run("answer", PAYLOAD)


def redis_peers() -> dict[str, tuple[list[str], Callable[[], Call], Callable[[], Call]]]:
    """By name: the worker's command, what makes a call, what makes an enqueue."""

    def rq_queue() -> Any:
        import redis as client
        import rq

        return rq.Queue(connection=client.Redis())

    def rq_call() -> Call:
        queue = rq_queue()

        def call() -> object:
            job = queue.enqueue("peer_jobs.answer", PAYLOAD)
            while (result := job.return_value()) is None:
                time.sleep(0.0005)
            return result

        return call

    def rq_enqueue() -> Call:
        queue = rq_queue()
        return lambda: queue.enqueue("peer_jobs.drain", PAYLOAD, result_ttl=0)

    def celery_call() -> Call:
        job = jobs_of("celery").celery_answer
        return lambda: job.delay(PAYLOAD).get(interval=0.0005)

    def huey_call() -> Call:
        job = jobs_of("huey").huey_answer
        return lambda: job(PAYLOAD).get(blocking=True, backoff=1, max_delay=0.0005)

    def dramatiq_call() -> Call:
        job = jobs_of("dramatiq").dramatiq_answer
        return lambda: job.send(PAYLOAD).get_result(block=True)

    return {
        "celery": (
            celery_worker(),
            celery_call,
            lambda: lambda: jobs_of("celery").celery_drain.delay(PAYLOAD),
        ),
        "rq": (RQ, rq_call, rq_enqueue),
        "huey": (
            [
                sys.executable,
                "-m",
                "huey.bin.huey_consumer",
                "peer_jobs.huey",
                "-w1",
                "-kprocess",
                "-d0.001",
                "-m0.01",
                "-q",
            ],
            huey_call,
            lambda: lambda: jobs_of("huey").huey_drain(PAYLOAD),
        ),
        "dramatiq": (
            [sys.executable, "-m", "dramatiq", "peer_jobs", "-p1", "-t1", "--path", HERE],
            dramatiq_call,
            lambda: lambda: jobs_of("dramatiq").dramatiq_drain.send(PAYLOAD),
        ),
    }


def celery_worker() -> list[str]:
    """Its usual pool, one process of it doing the work."""
    return [
        *(sys.executable, "-m", "celery"),
        "-A",
        "peer_jobs",
        "worker",
        "-c1",
        "-l",
        "ERROR",
        "--without-gossip",
        "--without-mingle",
        "--without-heartbeat",
    ]


def gearman_call() -> Call:
    """A call of gearmand's."""
    gear: Any = jobs_of("gearman").gear

    class Client(gear.Client):  # type: ignore[misc]
        """Wakes who waits."""

        def handleWorkComplete(self, packet: Any) -> Any:  # noqa: N802 - gear's name
            job = super().handleWorkComplete(packet)
            done.set()
            return job

    done = threading.Event()
    client = Client("bench")
    client.addServer("localhost")
    client.waitForServer()

    def call() -> object:
        done.clear()
        job = gear.Job(b"answer", json.dumps(PAYLOAD).encode())
        client.submitJob(job)
        done.wait()
        return json.loads(b"".join(job.data))

    return call


def gearman_enqueue() -> Call:
    """A background job of gearmand's."""
    gear: Any = jobs_of("gearman").gear
    client = gear.Client("bench")
    client.addServer("localhost")
    client.waitForServer()

    def enqueue() -> None:
        client.submitJob(gear.Job(b"drain", json.dumps(PAYLOAD).encode()), background=True)

    return enqueue


def title(name: str) -> str:
    """A peer as its row is called."""
    return {
        "celery": "Celery, Redis",
        "rq": "RQ",
        "huey": "Huey, Redis",
        "dramatiq": "Dramatiq, Redis",
    }[name]


def jobs_of(who: str) -> Any:
    """peer_jobs as this peer wants it."""
    import importlib

    os.environ["BENCH_PEER"] = who
    module = sys.modules.get("peer_jobs")
    if module is None or who != module.WHO:
        sys.modules.pop("peer_jobs", None)
        module = importlib.import_module("peer_jobs")
    return module


@contextmanager
def worker(who: str, argv: list[str], quiet: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """A peer's process, and all that it starts."""
    env = {**os.environ, "BENCH_PEER": who, "PYTHONPATH": f"{HERE}:{PEERS}", "C_FORCE_ROOT": "1"}
    log = subprocess.DEVNULL if quiet else open("/srv/bench/log", "ab")  # noqa: SIM115
    process = subprocess.Popen(
        argv, env=env, cwd=HERE, stdout=log, stderr=log, start_new_session=True
    )
    try:
        time.sleep(2)
        yield process
    finally:
        os.killpg(process.pid, 15)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


@contextmanager
def redis(*, durable: bool) -> Iterator[None]:
    """A Redis of its own; ``durable``: each write is on the disk before it is answered."""
    keep = ["--appendonly", "yes", "--appendfsync", "always"] if durable else ["--save", ""]
    subprocess.run(["rm", "-rf", "/srv/bench/redis"], check=True)
    os.mkdir("/srv/bench/redis")
    argv = ["redis-server", "--dir", "/srv/bench/redis", "--loglevel", "warning", *keep]
    with worker("redis", argv, quiet=True):
        wait_port(6379)
        yield


@contextmanager
def echo() -> Iterator[None]:
    """The floor: a blocking server that reads JSON and answers with it."""
    Path(ECHO).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(ECHO)
    listener.listen(64)
    pid = os.fork()
    if pid == 0:
        serve_echo(listener)
    try:
        yield
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def serve_echo(listener: socket.socket) -> None:
    """For ever: one thread a connection, as little as can be."""

    def serve(sock: socket.socket) -> None:
        while data := sock.recv(1 << 16):
            sock.sendall(json.dumps(json.loads(data)).encode())

    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve, args=[sock], daemon=True).start()


def echo_call(path: str) -> Call:
    """A call of the floor's."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)

    def call() -> object:
        sock.sendall(json.dumps(PAYLOAD).encode())
        return json.loads(sock.recv(1 << 16))

    return call


def define(name: str, kind: str, klass: str, user: str, **more: object) -> None:
    """A named task of ours."""
    keys = {
        "class": f"peer_jobs:{klass}",
        "type": kind,
        "user": user,
        "import_path": [HERE],
        "env": {"BENCH_PEER": "bgtaskd"},
        **more,
    }
    TASKS_D.mkdir(exist_ok=True)
    (TASKS_D / f"{name}.yaml").write_text(json.dumps(keys))
    subprocess.run(["systemctl", "reload", "bgtaskd.service"], check=True)
    time.sleep(1)


# --- helpers -------------------------------------------------------------------------------------------


def clear() -> None:
    """Nothing is done yet."""
    os.truncate(DONE, 0)


def wait_lines(count: int) -> list[str]:
    """So many lines of the file, as soon as they are there."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        text = DONE.read_text()
        if text.count("\n") >= count:
            return text.splitlines()
        time.sleep(0.001)
    sys.exit(f"bench: {count} were asked for, {text.count(chr(10))} came")


def wait_bytes(count: int, deadline: float = DEADLINE) -> None:
    """Until so many payloads are done."""
    end = time.monotonic() + deadline
    while DONE.stat().st_size < count:
        if time.monotonic() > end:
            sys.exit(f"bench: {count} payloads were sent, {DONE.stat().st_size} done")
        time.sleep(0.001)


def wait_port(port: int) -> None:
    """Until somebody listens."""
    for _ in range(200):
        with socket.socket() as sock:
            if sock.connect_ex(("localhost", port)) == 0:
                return
        time.sleep(0.05)
    sys.exit(f"bench: nobody listens on port {port}")


def mean_usec(call: Call, count: int) -> float:
    """Microseconds of one call."""
    begin = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - begin) / count * 1e6


def percentile(values: list[float], which: int) -> float:
    """Milliseconds, of seconds or milliseconds as they come."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * which // 100)]


def family(pid: int) -> list[int]:
    """A process and all of its children's children."""
    out = [pid]
    for one in out:
        try:
            tasks = Path(f"/proc/{one}/task").iterdir()
            out += [
                int(child) for task in tasks for child in (task / "children").read_text().split()
            ]
        except OSError:
            continue
    return out


def ours_pids() -> list[int]:
    """Everything of bgtaskd's, the named tasks' processes too."""
    groups = [
        *Path("/sys/fs/cgroup/system.slice").glob("bgtaskd*"),
        Path("/sys/fs/cgroup/bgtask.slice"),
    ]
    return [
        int(line)
        for group in groups
        for file in group.rglob("cgroup.procs")
        for line in file.read_text().split()
    ]


def pss_of(pid: int) -> float:
    """MiB; 0 for one that may not be looked at, or is gone."""
    try:
        return pss(pid)
    except OSError:
        return 0.0


if __name__ == "__main__":
    main()
