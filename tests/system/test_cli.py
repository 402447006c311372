# SPDX-License-Identifier: LGPL-2.1-or-later
"""bgtaskctl as people use it: on a terminal, in a pipe, across a restart of the daemon; on the host."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bgtaskd
from bgtaskd import errors

ROOT = Path(__file__).parents[2]
CTL = [sys.executable, "-m", "bgtaskd.cli.main"]
NOTIFY = """
import os, socket, time
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
for number in range(1, 41):
    sock.sendto(f"X_BGTASK_TOTAL=40\\nX_BGTASK_FINISHED={number}\\nSTATUS=n\\x07{number}".encode(),
        os.environ["NOTIFY_SOCKET"])
    if number % 10 == 0:
        print("line", number, flush=True)
    time.sleep(0.05)
"""


class Daemon:
    """A daemon in process mode that can be restarted."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "BGTASKD_SOCKET": str(state / "control.sock"),
            "PYTHONUNBUFFERED": "1",
        }
        self.start()

    def start(self) -> None:
        argv = [sys.executable, "-m", "bgtaskd.daemon.main", "--launcher=process"]
        argv += [f"--state={self.state}", f"--socket={self.env['BGTASKD_SOCKET']}"]
        self.process = subprocess.Popen(argv, env=self.env, cwd=self.state)
        deadline = time.monotonic() + 20
        while True:
            try:
                bgtaskd.Client(self.env["BGTASKD_SOCKET"]).status()
                return
            except errors.NotReachable:
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)

    def ctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*CTL, *words], env=self.env, cwd=self.state, capture_output=True, text=True, timeout=60
        )


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    one = Daemon(tmp_path_factory.mktemp("state"))
    yield one
    one.stop()


def on_terminal(
    daemon: Daemon, *words: str, meanwhile: Callable[[bytes, int], bool] | None = None
) -> tuple[bytes, int]:
    """Run on a terminal of 80 columns; all that appeared, and the status. ``meanwhile``: called until true."""
    pid, master = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test run in the background has it ignored
        os.chdir(daemon.state)
        os.execve(CTL[0], [*CTL, *words], {**daemon.env, "TERM": "xterm", "COLUMNS": "80"})
    seen, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            data = os.read(master, 65536)
        except OSError:  # how a terminal tells that its last process has gone
            break
        seen += data
        if meanwhile is not None and meanwhile(seen, pid):
            meanwhile = None
    os.close(master)
    return seen, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_run_starts_where_the_caller_is(daemon: Daemon) -> None:
    done = daemon.ctl("run", "-f", "--", "pwd")
    assert (done.stdout.strip(), done.returncode) == (str(daemon.state), 0)


def test_follow_in_a_pipe_is_the_output_alone(daemon: Daemon) -> None:
    done = daemon.ctl("run", "-f", "--", sys.executable, "-c", NOTIFY)
    assert done.stdout == "line 10\nline 20\nline 30\nline 40\n"
    assert done.stderr == ""


def test_a_bar_below_the_output_and_nothing_of_it_left(daemon: Daemon) -> None:
    begun = time.monotonic()
    seen, status = on_terminal(daemon, "run", "-f", "--", sys.executable, "-c", NOTIFY)
    drawn = seen.count(b"\r\x1b[J[")
    assert status == 0
    assert 3 <= drawn <= 10 * (time.monotonic() - begun) + 2
    assert "█".encode() in seen
    assert b"\x07" not in seen
    assert b"\\x07" in seen
    # What a terminal would show at the end: each line without what was erased from it.
    shown = [line.rpartition(b"\x1b[J")[2].strip() for line in seen.split(b"\n")]
    assert shown[:4] == [b"line 10", b"line 20", b"line 30", b"line 40"]
    assert b"finished" in shown[4]


@pytest.mark.parametrize("option", ["--wait", "--follow"])
def test_control_c_leaves_the_task_alone(daemon: Daemon, option: str) -> None:
    def interrupt(seen: bytes, pid: int) -> bool:
        if b"ask" not in seen and b"up" not in seen:
            return False
        os.kill(pid, signal.SIGINT)
        return True

    seen, status = on_terminal(
        daemon, "run", option, "--", "sh", "-c", "echo up; exec sleep 600", meanwhile=interrupt
    )
    found = re.search(rb"Task (\d+) goes on", seen)
    assert found is not None, seen
    assert status == 130
    task_id = found[1].decode()
    assert json.loads(daemon.ctl("status", "-o", "json", task_id).stdout)["state"] == "running"
    assert daemon.ctl("stop", task_id).returncode == 0
    assert daemon.ctl("wait", task_id).returncode == 1


@pytest.mark.parametrize("option", ["--wait", "--follow"])
def test_a_restart_of_the_daemon_interrupts_nobody(daemon: Daemon, option: str) -> None:
    script = "echo one; until test -e go; do sleep 0.05; done; rm go; echo two; exit 9"
    with subprocess.Popen(
        [*CTL, "run", option, "--", "sh", "-c", script],
        env=daemon.env,
        cwd=daemon.state,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        with bgtaskd.Client(daemon.env["BGTASKD_SOCKET"]) as client:
            deadline = time.monotonic() + 20
            while not client.list(states=["running"]):
                assert time.monotonic() < deadline
                time.sleep(0.02)
        daemon.stop()
        (daemon.state / "go").touch()
        daemon.start()
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (9, b"")
    assert out == (b"one\ntwo\n" if option == "--follow" else b"")


def test_text_of_tasks_is_harmless_in_tables_and_raw_in_output(daemon: Daemon) -> None:
    script = r"printf '\033[2Jred\n'"
    done = daemon.ctl("run", "-f", "--name", "evil\x1b[2J\nname", "--", "sh", "-c", script)
    assert done.stdout == "\x1b[2Jred\n"
    for verb in (["list"], ["status", "1"], ["status", *ids(daemon)[:1]]):
        assert "\x1b" not in daemon.ctl(*verb).stdout
    assert "evil\\x1b[2J\\nname" in daemon.ctl("list").stdout


def test_a_poor_locale_is_no_reason_to_fail(daemon: Daemon) -> None:
    env = {**daemon.env, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [*CTL, "status", *ids(daemon)[:1]], env=env, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_monitor_shows_a_task_come_and_go(daemon: Daemon) -> None:
    def act(seen: bytes, pid: int) -> bool:
        if b"Ctrl-C" not in seen:
            return False
        if not act_once:
            act_once.append(daemon.ctl("run", "--name", "visitor", "--", "sleep", "0.5").stdout)
        if re.search(rb"visitor[^\n]*finished", seen) is None:
            return False
        os.kill(pid, signal.SIGINT)
        return True

    act_once: list[str] = []
    seen, status = on_terminal(daemon, "monitor", meanwhile=act)
    assert status == 130
    assert re.search(rb"visitor[^\n]*running", seen)
    assert seen.rstrip().endswith(b"\x1b[?25h")


def test_the_example_indexes_what_it_is_given(daemon: Daemon, tmp_path: Path) -> None:
    import gzip

    (tmp_path / "a.txt").write_text("Hello world")
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"hello again"))
    done = daemon.ctl(
        "run", "-f", "--", str(ROOT / "examples/index_docs.py"), str(tmp_path), "index.json"
    )
    assert done.stdout == "3 words in 2 documents, indexed in index.json\n"
    index = json.loads((daemon.state / "index.json").read_text())
    assert index["words"] == {"again": [1], "hello": [0, 1], "world": [0]}
    (task_id, *_) = ids(daemon)
    assert daemon.ctl("show", "--value", "-p", "finished,total", task_id).stdout == "2\n2\n"


def ids(daemon: Daemon) -> list[str]:
    """All tasks, the newest first."""
    return [str(one["id"]) for one in json.loads(daemon.ctl("list", "-a", "-o", "json").stdout)]
