# SPDX-License-Identifier: LGPL-2.1-or-later
"""Calls of named tasks from asyncio: see runner.py."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from bgtaskd.client.aio import AsyncClient
from bgtaskd.client.path import default_socket
from bgtaskd.client.runner import (
    AGAIN_SECONDS,
    ANSWER_MAX,
    answer_of,
    call_parameters,
    path_of,
    refused,
    request,
    result_of,
)
from bgtaskd.client.task import Seconds, usec
from bgtaskd.errors import ProtocolError, TimedOut, WorkerDied
from bgtaskd.protocol.codec import DEPTH_MAX, MalformedMessage, decode

IDLE_MAX = 100
"""So many connections to one task are kept for the next calls."""
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class AsyncRunner:
    """Runs named tasks; as many calls at once as are awaited."""

    def __init__(self, client: AsyncClient | None = None) -> None:
        self._client = client or AsyncClient(default_socket())
        self._directory = os.path.join(os.path.dirname(self._client.path), "tasks")
        self._idle: dict[str, list[Streams]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(
        self,
        name: str,
        payload: Any = None,
        *,
        timeout: Seconds | None = None,  # noqa: ASYNC109 - it is part of the call
        merge_key: str | None = None,
    ) -> Any:
        """Hand a payload (any JSON) to a named task: see Runner.run()."""
        path = path_of(self._directory, name)
        if merge_key is None and os.path.exists(path):  # noqa: ASYNC240 - /run is in memory
            try:
                async with asyncio.timeout(None if timeout is None else usec(timeout) / 1e6):
                    return await self._call(name, path, request(payload))
            except TimeoutError:
                raise TimedOut(timeout_usec=usec(timeout or 0)) from None
        parameters = call_parameters(name, payload, timeout, merge_key)
        return result_of(await self._client.call("Call", **parameters))

    async def submit(self, name: str, payloads: Sequence[Any]) -> list[int]:
        """Hand many payloads to an asynchronous task: see Runner.submit()."""
        reply = await self._client.call("Submit", name=name, payloads=list(payloads))
        ids: list[int] = reply["ids"]
        return ids

    async def close(self) -> None:
        """Hang up."""
        for streams in self._idle.values():
            for _, writer in streams:
                writer.close()
        self._idle.clear()

    async def _call(self, name: str, path: str, data: bytes) -> Any:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # connections are of the loop that made them
            self._loop, self._idle = loop, {}
        while True:
            idle = self._idle.setdefault(name, [])
            streams = idle.pop() if idle else await _connect(name, path)
            reader, writer = streams
            good = False
            try:
                writer.write(data)
                await writer.drain()
                message = decode((await reader.readuntil(b"\0"))[:-1], 2 * DEPTH_MAX)
                good = True
            except (BrokenPipeError, ConnectionResetError):
                # So says the kernel where nobody has read it all: nothing was begun, it may be sent again.
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            except asyncio.IncompleteReadError:
                raise WorkerDied(name=name, reason="its process ended") from None
            except (asyncio.LimitOverrunError, MalformedMessage) as error:
                raise ProtocolError(f"the named task's reply makes no sense: {error}") from None
            finally:
                if good and len(idle) < IDLE_MAX:
                    idle.append(streams)
                else:
                    writer.close()
            return answer_of(message)


async def _connect(name: str, path: str) -> Streams:
    while True:
        try:
            return await asyncio.open_unix_connection(path, limit=ANSWER_MAX)
        except BlockingIOError:  # as many wait already as may; the kernel tells nobody of room
            await asyncio.sleep(AGAIN_SECONDS)
        except OSError as error:
            raise refused(name, path, error) from None
