# SPDX-License-Identifier: LGPL-2.1-or-later
"""The launcher without a daemon: this process listens where the daemon would, and asks what it would.

For tests of the launcher alone, in process mode anywhere or in scope mode as root in a container, and,
run as a program there, for its figures: ``python3 -m tests.system.brainless``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from tests.bench.floor import raw_floor

REPOSITORY: Final = Path(__file__).resolve().parents[2]
PATIENCE: Final = 30.0


class Stream:
    """One connection of NUL-ended JSON."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._data = b""
        self.closed = False

    def messages(self) -> list[dict[str, Any]]:
        """What one read brings."""
        data = self.socket.recv(1 << 20)
        self.closed = not data
        *whole, self._data = (self._data + data).split(b"\0")
        return [json.loads(one) for one in whole]


class Brainless:
    """A launcher of our own, and all that its supervisors tell."""

    def __init__(self, root: Path, mode: str = "process") -> None:
        self.root, self.mode = root, mode
        self.uid = 1000 if mode == "scope" else os.getuid()  # root's tasks need a rule
        self.run = root / "run"
        self.run.mkdir(parents=True, exist_ok=True)
        self.told: dict[tuple[int, int], list[dict[str, Any]]] = {}
        self.answers: dict[int, dict[str, Any]] = {}
        self.supervisors: dict[tuple[int, int], Stream] = {}
        self._unknown: list[Stream] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.run / "supervisors.sock"))
        self._listener.listen(4096)
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._streams: dict[int, Stream] = {}
        self._keys: dict[int, tuple[int, int]] = {}
        self._seq = 0
        self.start()

    def start(self) -> None:
        """Start the launcher, and connect."""
        argv = [sys.executable, "-m", "bgtaskd.launcher.main", f"--mode={self.mode}"]
        argv += [f"--state={self.root}", f"--run={self.run}"]
        path = self.run / "launcher.sock"
        path.unlink(missing_ok=True)
        self.launcher = subprocess.Popen(argv, cwd=REPOSITORY)
        deadline = time.monotonic() + PATIENCE
        sock = socket.socket(socket.AF_UNIX)
        while sock.connect_ex(str(path)):
            if self.launcher.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the launcher did not start")
            time.sleep(0.01)
        self._link = Stream(sock)
        self._add(self._link)

    def kill_launcher(self) -> None:
        """As kill -9 would have it."""
        self.launcher.kill()
        self.launcher.wait()
        self._drop(self._link)

    def close(self) -> None:
        """End everything that was started here."""
        for stream in list(self.supervisors.values()):
            stream.socket.close()
        self.launcher.kill()
        self.launcher.wait()
        self._listener.close()

    # --- asking -----------------------------------------------------------------------------------

    def send(self, op: str, **parameters: Any) -> int:
        """Ask; the number that the answer will have."""
        self._seq += 1
        message = {"seq": self._seq, "op": op, **parameters}
        self._link.socket.sendall(json.dumps(message).encode() + b"\0")
        return self._seq

    def send_bytes(self, data: bytes) -> None:
        """Send anything, as a message."""
        self._link.socket.sendall(data + b"\0")

    def ask(self, op: str, **parameters: Any) -> dict[str, Any]:
        """Ask, and wait for the answer."""
        seq = self.send(op, **parameters)
        self.until(lambda: seq in self.answers)
        return self.answers.pop(seq)

    def request(self, task_id: int, argv: list[str], **changes: Any) -> dict[str, Any]:
        """A good launch request."""
        return {
            "id": task_id,
            "attempt": 1,
            "name": f"task {task_id}",
            "kind": "command",
            "queue": "default",
            "uid": self.uid,
            "user": "me",
            "owner_uid": self.uid,
            "argv": argv,
            "env": {},
            "cwd": None,
            "properties": {},
            "timeout_usec": None,
            "stall_timeout_usec": None,
            "stop_timeout_usec": 2_000_000,
            "output_cap": 10 << 20,
            "journal_burst": 10_000,
            **changes,
        }

    def launch(self, task_id: int, *argv: str, **changes: Any) -> dict[str, Any]:
        """Launch, and wait till it runs."""
        return self.ask("launch", **self.request(task_id, list(argv), **changes))

    def exit_of(self, task_id: int, attempt: int = 1) -> dict[str, Any]:
        """Wait for the attempt's end, as its supervisor tells it."""
        key = (task_id, attempt)
        self.until(lambda: any("exited" in one for one in self.told.get(key, [])))
        exited: dict[str, Any] = next(one for one in self.told[key] if "exited" in one)["exited"]
        return exited

    def run_task(self, task_id: int, *argv: str, **changes: Any) -> dict[str, Any]:
        """Launch, wait for the end."""
        answer = self.launch(task_id, *argv, **changes)
        assert "ok" in answer, answer
        return self.exit_of(task_id)

    def heard(self, task_id: int, what: str, attempt: int = 1) -> list[Any]:
        """What an attempt's supervisor told under one key."""
        return [one[what] for one in self.told.get((task_id, attempt), []) if what in one]

    def tell(self, task_id: int, message: dict[str, Any], attempt: int = 1) -> None:
        """Say something to an attempt's supervisor, as the daemon would."""
        key = (task_id, attempt)
        self.until(lambda: key in self.supervisors)
        self.supervisors[key].socket.sendall(json.dumps(message).encode() + b"\0")

    def starts(self, task_id: int) -> set[int]:
        """The supervisors that have run the task; more than one would be one too many."""
        return {one["supervisor"] for one in self.heard(task_id, "hello") if one["started"]}

    def output(self, task_id: int) -> str:
        """The output file."""
        return (self.root / "tasks" / str(task_id) / "output").read_text()

    # --- hearing ----------------------------------------------------------------------------------

    def until(self, condition: Any, patience: float = PATIENCE) -> None:
        """Take what comes in until ``condition()``; fails after ``patience`` seconds."""
        deadline = time.monotonic() + patience
        while not condition():
            left = deadline - time.monotonic()
            assert left > 0, f"waited in vain; told: {self.told}"
            for fd, _ in self._poll.poll(left):
                if fd == self._listener.fileno():
                    self._add(Stream(self._listener.accept()[0]))
                else:
                    self._hear(self._streams[fd])

    def _hear(self, stream: Stream) -> None:
        try:
            messages = stream.messages()
        except ConnectionError:
            messages, stream.closed = [], True
        for message in messages:
            if stream is self._link:
                self.answers[message["seq"]] = message
                continue
            hello = message.get("hello")
            if hello is not None:
                key = self._keys[stream.socket.fileno()] = (hello["id"], hello["attempt"])
                self.supervisors[key] = stream
            self.told.setdefault(self._keys[stream.socket.fileno()], []).append(message)
        if stream.closed:
            self._drop(stream)

    def _add(self, stream: Stream) -> None:
        self._streams[stream.socket.fileno()] = stream
        self._poll.register(stream.socket, select.EPOLLIN)

    def _drop(self, stream: Stream) -> None:
        fd = stream.socket.fileno()
        del self._streams[fd]
        key = self._keys.pop(fd, None)
        if key is not None:
            self.supervisors.pop(key, None)
        self._poll.unregister(fd)
        stream.socket.close()


def rate(brain: Brainless, first: int, count: int, in_flight: int) -> float:
    """`true` tasks a second, from asking to "exited", so many at once."""
    begin = time.monotonic()
    asked = 0
    ended: set[int] = set()
    while len(ended) < count:
        while asked < count and asked - len(ended) < in_flight:
            brain.send("launch", **brain.request(first + asked, ["/bin/true"]))
            asked += 1
        before = len(ended)

        def settled(before: int = before) -> bool:
            for key, told in list(brain.told.items()):
                if any("exited" in one for one in told):
                    ended.add(key[0])
                    del brain.told[key]
            return len(ended) > before

        brain.until(settled)
    return count / (time.monotonic() - begin)


def pss_kib(pid: int) -> int:
    """Proportional set size."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))


def measure(mode: str, count: int) -> None:
    """Print the launcher's figures."""
    with tempfile.TemporaryDirectory(prefix="brainless-") as directory:
        os.chmod(directory, 0o755)
        brain = Brainless(Path(directory), mode)
        try:
            rate(brain, 1, 20, 1)
            floor = raw_floor(count).per_second if mode == "scope" else float("nan")
            print(f"raw floor: {floor:.0f}/s")
            for number, in_flight in enumerate((1, 2, 4, 8)):
                found = rate(brain, 1000 + number * count, count, in_flight)
                print(f"{in_flight} in flight: {found:.0f}/s = {found / floor:.2f} of the floor")
            for task_id in range(900_001, 900_101):
                assert "ok" in brain.launch(task_id, "/bin/sleep", "600")
            time.sleep(2)
            pids = [told[0]["hello"]["supervisor"] for told in brain.told.values()]
            sizes = sorted(pss_kib(pid) for pid in pids)
            print(
                f"{len(sizes)} idle supervisors, PSS: mean {sum(sizes) / len(sizes):.0f} KiB,",
                end="",
            )
            print(f" most {sizes[-1]} KiB; launcher {pss_kib(brain.launcher.pid)} KiB")
            for task_id in range(900_001, 900_101):
                brain.ask("kill", id=task_id, attempt=1, signal=int(signal.SIGKILL), whom="all")
            for task_id in range(900_001, 900_101):
                brain.exit_of(task_id)
        finally:
            with contextlib.suppress(OSError):
                brain.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=("scope", "process"), default="scope")
    parser.add_argument("--count", type=int, default=300)
    measure(**vars(parser.parse_args()))
