# SPDX-License-Identifier: LGPL-2.1-or-later
"""Inside of a named task whose work() is ``async``: as serving.py, with many jobs in hand at once."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from bgtaskd.protocol.codec import MESSAGE_MAX, MalformedMessage, decode, encode
from bgtaskd.task.link import Job, Link
from bgtaskd.task.serving import (
    ENOUGH,
    IDLE,
    LISTEN_FD,
    OK,
    PATIENCE_SECONDS,
    TOLD,
    call_failed,
    connections_max,
    failure_of,
    has_had_enough,
    malformed,
    payload_of,
    uid_of,
)
from bgtaskd.task.worker import Context, Worker, has_loop

HEARTBEATS: Final = 3
"""So many times within its watchdog time the event loop shows that it turns."""


class AsyncServing:
    """The loop of a task that does many things at once."""

    def __init__(self, worker: Worker, settings: Mapping[str, Any]) -> None:
        self._worker = worker
        self._settings = settings
        self._link = Link(settings, _Watcher(self._hear))
        self._jobs: deque[Job] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._callers: set[asyncio.Task[None]] = set()
        self._idle_callers: dict[asyncio.StreamWriter, asyncio.StreamReader] = {}
        """Who has not called for longest is first."""
        self._connections_max = connections_max()
        self._busy = 0
        self._last_job = time.monotonic()
        watchdog = settings["watchdog_usec"]
        self._watchdog = None if watchdog is None else watchdog / 1e6
        self._is_beating = False
        self._why = ""
        self._failure: Exception | None = None
        self._timer: asyncio.TimerHandle | None = None

    def run(self) -> int:
        """Until it is to go. The exit status."""
        asyncio.run(self._main())
        self._link.finish(self._why)
        return OK

    async def _main(self) -> None:
        loop = asyncio.get_running_loop()
        self._leaving = asyncio.Event()
        self._at_rest = asyncio.Event()
        self._slots = asyncio.Semaphore(self._worker.concurrency)
        loop.add_signal_handler(signal.SIGTERM, self._leave, TOLD)
        await _maybe(self._worker.setup())
        self._link.connect()
        self._set_timer()
        beside = [loop.create_task(self._idle())]
        if has_loop(self._worker):
            beside.append(loop.create_task(self._loop()))
        if self._watchdog is not None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        listener = None
        if self._settings["type"] == "sync":
            listener = socket.socket(fileno=LISTEN_FD)
            listener.set_inheritable(False)
            loop.add_reader(listener, self._accept, listener)
        await self._leaving.wait()
        if self._failure is not None:
            raise self._failure
        if listener is not None:
            loop.remove_reader(listener)
        self._link.give_back([one.id for one in self._jobs])
        self._jobs.clear()
        await self._serve_the_last()
        if self._running:
            await asyncio.wait(self._running)
        if self._busy:
            self._at_rest.clear()
            await self._at_rest.wait()
        for one in (*beside, *self._callers):
            one.cancel()
        await _maybe(self._worker.teardown())
        self._link.unwatch()

    def _leave(self, why: str) -> None:
        self._why = self._why or why
        self._leaving.set()

    # --- jobs -----------------------------------------------------------------------------------

    def _hear(self) -> None:
        self._jobs.extend(self._link.receive())
        if self._link.is_told_to_go:
            self._leave(TOLD)
        self._begin()
        self._set_timer()

    def _begin(self) -> None:
        while self._jobs and not self._leaving.is_set():
            if len(self._running) >= self._worker.concurrency:
                return
            task = asyncio.get_running_loop().create_task(self._do(self._jobs.popleft()))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._begin()
        self._set_timer()

    async def _do(self, job: Job) -> None:
        try:
            answer = await self._work(job.payload, job.uid, job.id, job.tries)
            self._link.done(job, answer)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is kept with the payload
            traceback.print_exc()
            self._link.failed(job, failure_of(error))

    async def _work(self, payload: Any, uid: int, number: int | None = None, tries: int = 1) -> Any:
        settings = self._settings
        context = Context(settings["name"], settings["instance"], uid, number, tries)
        failed = True
        self._busy += 1
        if not self._is_beating:
            self._beat()
        try:
            async with asyncio.timeout(self._watchdog):
                answer = await self._worker.work(payload, context)
            failed = False
        finally:
            self._busy -= 1
            if not self._busy:
                self._at_rest.set()
            self._last_job = time.monotonic()
            if has_had_enough(settings, self._link.count(failed)):
                self._leave(ENOUGH)
        return answer

    # --- calls over the socket ------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return  # another process was faster
        except OSError:  # no descriptor is left
            self._hang_up_on_the_idlest()
            return
        if len(self._callers) >= self._connections_max and not self._hang_up_on_the_idlest():
            sock.close()  # it comes again
            return
        sock.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._serve(sock, uid_of(sock)))
        self._callers.add(task)
        task.add_done_callback(self._callers.discard)

    def _hang_up_on_the_idlest(self) -> bool:
        for writer, reader in self._idle_callers.items():
            if not _has_called(reader):
                del self._idle_callers[writer]
                writer.transport.abort()
                return True
        return False

    async def _serve_the_last(self) -> None:
        """Whose call has been read gets an answer; the kernel tells all others to send theirs again."""
        while self._hang_up_on_the_idlest():
            pass
        while self._callers:
            await asyncio.wait(self._callers, timeout=PATIENCE_SECONDS)
            if not self._busy:
                return  # who is left does not read the answer

    async def _serve(self, sock: socket.socket, uid: int) -> None:
        reader, writer = await asyncio.open_connection(sock=sock, limit=MESSAGE_MAX)
        try:
            while _has_called(reader) or not self._leaving.is_set():
                self._idle_callers[writer] = reader
                data = await reader.readuntil(b"\0")
                self._idle_callers.pop(writer, None)
                writer.write(await self._answer(data[:-1], uid))
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass
        except MalformedMessage as error:
            writer.write(malformed(error))
        finally:
            self._idle_callers.pop(writer, None)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, data: bytes, uid: int) -> bytes:
        payload, wrong = payload_of(decode(data))
        if wrong is not None:
            return wrong
        async with self._slots:
            try:
                return encode({"parameters": {"answer": await self._work(payload, uid)}})
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told
                return call_failed(error)
            finally:
                self._set_timer()

    # --- clocks ---------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._link.deadline
        if deadline is not None:
            wait = max(0.0, deadline - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait, self._tick)

    def _tick(self) -> None:
        self._link.tick(time.monotonic())
        self._set_timer()

    async def _loop(self) -> None:
        try:
            while True:
                await _maybe(self._worker.loop())
                await asyncio.sleep(self._worker.loop_interval)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends the process
            self._failure = error
            self._leave(TOLD)

    async def _idle(self) -> None:
        if self._settings["idle_usec"] is None:
            return
        idle = self._settings["idle_usec"] / 1e6
        while not self._leaving.is_set():
            left = idle if self._busy else self._last_job + idle - time.monotonic()
            if left <= 0:
                self._leave(IDLE)
            await asyncio.sleep(left)

    def _beat(self) -> None:
        """While there is work, the kernel kills the process unless the event loop turns."""
        if self._watchdog is None:
            return
        signal.setitimer(signal.ITIMER_REAL, self._watchdog if self._busy else 0)
        self._is_beating = self._busy > 0
        if self._is_beating:
            asyncio.get_running_loop().call_later(self._watchdog / HEARTBEATS, self._beat)


def _has_called(reader: asyncio.StreamReader) -> bool:
    """Whether a whole call was read. Of less than one some is unread or unsent: it comes again."""
    return b"\0" in reader._buffer  # type: ignore[attr-defined]  # noqa: SLF001


class _Watcher:
    """What Link takes for a poll object."""

    def __init__(self, hear: Callable[[], None]) -> None:
        self._hear = hear

    def register(self, sock: socket.socket, _: int) -> None:
        asyncio.get_running_loop().add_reader(sock, self._hear)

    def unregister(self, sock: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(sock)


async def _maybe(result: Any) -> None:
    if inspect.isawaitable(result):
        await result
