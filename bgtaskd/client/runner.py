# SPDX-License-Identifier: LGPL-2.1-or-later
"""Calls of named tasks: straight to the socket of a synchronous one, durably through the daemon otherwise."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from bgtaskd.client.blocking import Client
from bgtaskd.client.path import default_socket
from bgtaskd.client.task import Seconds, usec
from bgtaskd.errors import (
    CallFailed,
    InvalidSpec,
    NoSuchWorker,
    NotReachable,
    PermissionDenied,
    ProtocolError,
    TimedOut,
    WorkerDied,
)
from bgtaskd.protocol.codec import DEPTH_MAX, MESSAGE_MAX, Decoder, MalformedMessage, encode

METHOD: Final = "org.bgtaskd.Worker.Call"
FAILED: Final = "org.bgtaskd.Worker.CallFailed"
MALFORMED: Final = "org.bgtaskd.Worker.MalformedMessage"
ANSWER_MAX: Final = 8 << 20
AGAIN_SECONDS: Final = 0.01


class Runner:
    """Runs named tasks. Threads and forks may share one: each thread has its own connections."""

    def __init__(self, path: str | None = None) -> None:
        """``path``: the daemon's socket; the tasks' own lie beside it."""
        self.path = path or default_socket()
        self._directory = os.path.join(os.path.dirname(self.path), "tasks")
        self._threads = threading.local()

    def run(
        self,
        name: str,
        payload: Any = None,
        *,
        timeout: Seconds | None = None,
        merge_key: str | None = None,
    ) -> Any:
        """Hand a payload (any JSON) to a named task.

        A synchronous task's answer; of an asynchronous one the payload's number, once it is on the disk. A call
        waits while the task is being restarted, for ever or for ``timeout`` seconds. ``merge_key``: a call of
        the same user with this key that is under way answers this one too.

        Raises CallFailed with what work() raised, WorkerDied where the process died with the call in hand,
        TimedOut, NoSuchWorker, PermissionDenied, QueueFull; InvalidSpec for a payload of more than a mebibyte.
        """
        if merge_key is None:
            wire = self._wire(name)
            if wire is not None:
                return wire.call(payload, timeout)
        parameters = call_parameters(name, payload, timeout, merge_key)
        return result_of(self._mine().client.call("Call", **parameters))

    def submit(self, name: str, payloads: Sequence[Any]) -> list[int]:
        """Hand an asynchronous task many payloads, 1000 or a mebibyte at most: all, or none. Their numbers."""
        reply = self._mine().client.call("Submit", name=name, payloads=list(payloads))
        ids: list[int] = reply["ids"]
        return ids

    def close(self) -> None:
        """Hang up: this thread's connections at once, others' when they are not used any more."""
        self._mine().client.close()
        self._threads = threading.local()

    def _mine(self) -> _Connections:
        """This thread's connections, in this process."""
        mine: _Connections | None = getattr(self._threads, "mine", None)
        if mine is None or mine.pid != os.getpid():
            mine = self._threads.mine = _Connections(self.path)
        return mine

    def _wire(self, name: str) -> Wire | None:
        """This thread's connection to a synchronous task; None for what has no socket."""
        wires = self._mine().wires
        wire = wires.get(name)
        if wire is None:
            path = path_of(self._directory, name)
            if not os.path.exists(path):
                return None
            wire = wires[name] = Wire(name, path)
        return wire


class _Connections:
    """One thread's."""

    def __init__(self, path: str) -> None:
        self.pid = os.getpid()
        self.client = Client(path)
        self.wires: dict[str, Wire] = {}


def path_of(directory: str, name: str) -> str:
    """The socket of a named task. Raises NoSuchWorker for what can be no name."""
    if not name or not name.replace("_", "a").isalnum() or len(name) > 64:
        raise NoSuchWorker(name=name)
    return os.path.join(directory, f"{name}.sock")


def call_parameters(
    name: str, payload: Any, timeout: Seconds | None, merge_key: str | None
) -> dict[str, Any]:
    """Those of a Call that goes through the daemon."""
    parameters: dict[str, Any] = {"name": name, "payload": payload}
    if merge_key is not None:
        parameters["merge_key"] = merge_key
    if timeout is not None:
        parameters["timeout_usec"] = usec(timeout)
    return parameters


def result_of(reply: Mapping[str, Any]) -> Any:
    """What the daemon's reply to a Call stands for: the answer, or the payload's number."""
    return reply.get("answer") if reply.get("id") is None else reply["id"]


def request(payload: Any) -> bytes:
    """A call on the wire. Raises ValueError, TypeError for what is no JSON, InvalidSpec for too much of it."""
    data = encode({"method": METHOD, "parameters": {"payload": payload}})
    if len(data) > MESSAGE_MAX:
        raise InvalidSpec(field="payload", reason=f"a call is at most {MESSAGE_MAX} bytes long")
    return data


def answer_of(message: dict[str, Any]) -> Any:
    """What a reply says. Raises CallFailed, ProtocolError."""
    parameters = message.get("parameters")
    if not isinstance(parameters, dict):
        raise ProtocolError("the named task's reply makes no sense")
    error = message.get("error")
    if error is None:
        return parameters.get("answer")
    if error == FAILED:
        raise CallFailed(**{key: parameters.get(key, "") for key in CallFailed.fields})
    if error == MALFORMED:
        raise InvalidSpec(field="payload", reason=str(parameters.get("reason")))
    raise ProtocolError(f"the named task refused: {error} {parameters}")


def refused(name: str, path: str, error: OSError) -> PermissionDenied | NotReachable:
    """Why the kernel let nobody through to a named task."""
    if isinstance(error, PermissionError):
        return PermissionDenied(
            reason=f"{name} may be called by its user, and its group: ls -l {path}"
        )
    return NotReachable.because(path, error)


class Wire:
    """One connection to a synchronous task, made when it is needed. For one thread."""

    def __init__(self, name: str, path: str) -> None:
        self._name = name
        self._path = path
        self._socket: socket.socket | None = None
        self._decoder = Decoder(limit=ANSWER_MAX, depth=2 * DEPTH_MAX)

    def call(self, payload: Any, timeout: Seconds | None = None) -> Any:
        """Send a payload and wait for the answer."""
        data = request(payload)
        end = None if timeout is None else time.monotonic() + usec(timeout) / 1e6
        while True:
            fresh = self._socket is None
            try:
                sock = self._connected(end)
                if end is not None or sock.gettimeout() is not None:
                    sock.settimeout(_left(end))
                sock.sendall(data)
                return answer_of(self._receive(sock))
            except TimeoutError:
                self._hang_up()
                raise TimedOut(timeout_usec=usec(timeout or 0)) from None
            except (BrokenPipeError, ConnectionResetError):
                # So says the kernel where nobody has read it all: nothing was begun, it may be sent again.
                self._hang_up()
                if fresh:
                    time.sleep(AGAIN_SECONDS)
            except EOFError:
                self._hang_up()
                raise WorkerDied(name=self._name, reason="its process ended") from None

    def _receive(self, sock: socket.socket) -> dict[str, Any]:
        while True:
            data = sock.recv(1 << 18)
            if not data:
                raise EOFError
            try:
                messages = self._decoder.feed(data)
            except MalformedMessage as error:
                self._hang_up()
                raise ProtocolError(f"the named task's reply makes no sense: {error}") from None
            if messages:
                return messages[0]

    def _connected(self, end: float | None) -> socket.socket:
        if self._socket is not None:
            return self._socket
        while True:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.settimeout(_left(end))
                sock.connect(self._path)
                break
            except BlockingIOError:  # as many wait already as may; the kernel tells nobody of room
                sock.close()
                time.sleep(AGAIN_SECONDS)
            except TimeoutError:
                sock.close()
                raise
            except OSError as error:
                sock.close()
                raise refused(self._name, self._path, error) from None
        self._socket = sock
        self._decoder = Decoder(limit=ANSWER_MAX, depth=2 * DEPTH_MAX)
        return sock

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _left(end: float | None) -> float | None:
    if end is None:
        return None
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
