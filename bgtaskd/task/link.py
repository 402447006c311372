# SPDX-License-Identifier: LGPL-2.1-or-later
"""A named task's connection to the daemon: payloads and merged calls in; what became of them, and counts, out.

It mends itself. What the daemon has not confirmed to be on its disk is said again after each break, so nothing
that was done is done twice because the daemon was killed.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from bgtaskd.protocol.codec import Decoder, MalformedMessage, encode

RETRY_MIN: Final = 0.05
RETRY_MAX: Final = 1.0
TELL_SECONDS: Final = 0.002
"""What becomes of payloads is told at most so late, and many at a time."""
COUNT_SECONDS: Final = 1.0
GOODBYE_SECONDS: Final = 5.0
MESSAGE_MAX: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Job:
    """A payload of the daemon's (``id``), or a call that it passes on (``call``)."""

    payload: Any
    uid: int
    id: int | None = None
    tries: int = 1
    call: int | None = None


class Watcher(Protocol):
    """What poll objects are."""

    def register(self, fd: socket.socket, eventmask: int, /) -> None:
        """Watch it."""

    def unregister(self, fd: socket.socket, /) -> None:
        """Watch it no more."""


class Link:
    """Never waits for the daemon, but at the very end."""

    def __init__(self, settings: Mapping[str, Any], poll: Watcher) -> None:
        """``poll``: where the connection is to be watched."""
        self._settings = settings
        self._watcher: Watcher | None = poll
        self._socket: socket.socket | None = None
        self._decoder = Decoder(limit=MESSAGE_MAX)
        self._out = bytearray()
        self._retry = RETRY_MIN
        self._held: set[int] = set()
        self._ends: list[list[Any]] = []
        """Not told yet: [id] of what was done, [id, failure] of what was not."""
        self._unconfirmed: dict[int, list[list[Any]]] = {}
        self._seq = 0
        self.served = self.failures = 0
        self._told = (0, 0)
        self._next_tell = self._next_count = 0.0
        self._next_connect: float | None = None
        self.is_told_to_go = False

    @property
    def deadline(self) -> float | None:
        """When tick() has something to do (monotonic), if ever."""
        # Asked after every call, so without a list.
        due = self._next_connect
        if self._ends and (due is None or self._next_tell < due):
            due = self._next_tell
        is_told = self._socket is None or self._told == (self.served, self.failures)
        if not is_told and (due is None or self._next_count < due):
            due = self._next_count
        return due

    def fileno(self) -> int:
        """The connection's descriptor; -1 while there is none."""
        return -1 if self._socket is None else self._socket.fileno()

    def connect(self) -> None:
        """Try once; tick() tries again."""
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            sock.connect(self._settings["link"])
        except OSError:
            sock.close()
            self._next_connect = time.monotonic() + self._retry
            self._retry = min(RETRY_MAX, 2 * self._retry)
            return
        sock.setblocking(False)
        self._socket = sock
        self._next_connect, self._retry = None, RETRY_MIN
        self._decoder = Decoder(limit=MESSAGE_MAX)
        self._out.clear()
        self._told = (-1, -1)
        if self._watcher is not None:
            self._watcher.register(sock, select.POLLIN)
        self._send(
            {
                "hello": {
                    "id": self._settings["id"],
                    "token": self._settings["token"],
                    "holds": sorted(self._held),
                }
            }
        )
        for seq, ends in self._unconfirmed.items():
            self._send({"ends": ends, "seq": seq})
        self.tick(time.monotonic())

    def receive(self) -> list[Job]:
        """The jobs that have come in."""
        if self._socket is None:
            return []
        try:
            data = self._socket.recv(1 << 18)
            messages = self._decoder.feed(data)
        except BlockingIOError:
            return []
        except (OSError, MalformedMessage):
            data = b""
        if not data:
            self._hang_up()
            return []
        jobs = []
        for message in messages:
            if "payloads" in message:
                jobs += [
                    Job(payload, uid, number, tries)
                    for number, tries, uid, payload in message["payloads"]
                ]
            elif "call" in message:
                number, uid, payload = message["call"]
                jobs.append(Job(payload, uid, call=number))
            elif "confirmed" in message:
                self._unconfirmed.pop(message["confirmed"], None)
            elif "go" in message:
                self.is_told_to_go = True
        self._held.update(one.id for one in jobs if one.id is not None)
        self.flush()
        return jobs

    def count(self, failed: bool) -> int:
        """One more was served; how many that makes."""
        self.served += 1
        self.failures += failed
        return self.served

    def done(self, job: Job, answer: Any) -> None:
        """A job is done."""
        if job.call is not None:
            self._answer({"answer": [job.call, True, answer]}, job.call)
        else:
            self._end(job, [job.id])

    def failed(self, job: Job, failure: Mapping[str, str]) -> None:
        """A job has raised an exception."""
        if job.call is not None:
            self._answer({"answer": [job.call, False, dict(failure)]}, job.call)
        else:
            self._end(job, [job.id, dict(failure)])

    def give_back(self, numbers: Sequence[int | None]) -> None:
        """Payloads that were not begun."""
        back = [one for one in numbers if one is not None]
        self._held.difference_update(back)
        if back:
            self._send({"back": back})

    def tick(self, now: float) -> None:
        """Whatever is due."""
        if self._next_connect is not None and now >= self._next_connect:
            self.connect()
        if self._ends and (now >= self._next_tell or len(self._ends) >= 500):
            self._tell_ends(now)
        counts = (self.served, self.failures)
        if self._socket is not None and counts != self._told and now >= self._next_count:
            self._told = counts
            self._next_count = now + COUNT_SECONDS
            self._send({"served": counts[0], "failed": counts[1]})

    def finish(self, why: str) -> None:
        """Say what is unsaid, and wait a little until the daemon has it. ``why``: idle, enough or told."""
        self.unwatch()
        self._tell_ends(time.monotonic())
        self._send({"served": self.served, "failed": self.failures, "bye": why})
        end = time.monotonic() + GOODBYE_SECONDS
        while (self._unconfirmed or self._out) and time.monotonic() < end:
            if self._socket is None:
                time.sleep(self._retry)
                self.connect()
                continue
            select.select([self._socket], [], [], 0.1)
            self.give_back([one.id for one in self.receive()])
            self.flush()
        if self._socket is not None:
            self._socket.close()

    def unwatch(self) -> None:
        """The poll object, or event loop, is going."""
        if self._socket is not None and self._watcher is not None:
            self._watcher.unregister(self._socket)
        self._watcher = None

    def flush(self) -> None:
        """Write what the socket takes."""
        while self._out and self._socket is not None:
            try:
                sent = self._socket.send(self._out)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._hang_up()
                return
            del self._out[:sent]

    def _answer(self, message: dict[str, Any], call: int) -> None:
        try:
            self._send(message)
        except (TypeError, ValueError) as error:
            failure = {
                "type": type(error).__name__,
                "message": f"the answer is not JSON: {error}",
                "traceback": "",
            }
            self._send({"answer": [call, False, failure]})

    def _end(self, job: Job, end: list[Any]) -> None:
        assert job.id is not None
        if not self._ends:
            self._next_tell = time.monotonic() + TELL_SECONDS
        self._ends.append(end)

    def _tell_ends(self, now: float) -> None:
        if not self._ends:
            return
        self._seq += 1
        self._unconfirmed[self._seq] = self._ends
        self._held.difference_update(end[0] for end in self._ends)
        self._send({"ends": self._ends, "seq": self._seq})
        self._ends = []
        self._next_tell = now + TELL_SECONDS

    def _send(self, message: dict[str, Any]) -> None:
        data = encode(message)
        if self._socket is None:
            return  # what matters is said again with the next hello
        self._out += data
        self.flush()

    def _hang_up(self) -> None:
        if self._socket is not None:
            if self._watcher is not None:
                self._watcher.unregister(self._socket)
            self._socket.close()
            self._socket = None
            self._next_connect = time.monotonic() + self._retry
