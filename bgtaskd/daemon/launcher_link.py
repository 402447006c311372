# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's end of the launcher's socket. It mends itself; what was asked and not answered is told so."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from typing import Any, Final

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = (0.02, 0.1, 0.5, 1.0)
ANSWER_SECONDS: Final = 30.0
LIMIT: Final = 4 << 20


class LauncherError(Exception):
    """The launcher refused. ``name``: its error's name."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        super().__init__(reason)


class LauncherGone(Exception):
    """The connection broke before the answer came: nobody knows whether it was done."""


class LauncherLink:
    """Requests to the launcher, any number at once."""

    def __init__(self, path: str, on_connected: Callable[[], None]) -> None:
        self._path = path
        self._on_connected = on_connected
        self._seq = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self.connected = asyncio.Event()

    async def run(self) -> None:
        """Keep a connection, for ever."""
        tries = 0
        while True:
            try:
                reader, self._writer = await asyncio.open_unix_connection(self._path, limit=LIMIT)
            except OSError as error:
                if tries == len(RETRY_SECONDS):
                    log.warning(
                        "Cannot reach the launcher at %s: %s; still trying", self._path, error
                    )
                await asyncio.sleep(RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)])
                tries += 1
                continue
            tries = 0
            self.connected.set()
            self._on_connected()
            with contextlib.suppress(
                OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
            ):
                while True:
                    self._hear(json.loads((await reader.readuntil(b"\0"))[:-1]))
            self._break()

    def _hear(self, message: dict[str, Any]) -> None:
        future = self._answers.pop(message.get("seq", -1), None)
        if future is None or future.done():
            return
        if "error" in message:
            future.set_exception(LauncherError(message["error"], message.get("reason", "")))
        else:
            future.set_result(message.get("ok", {}))

    def _break(self) -> None:
        self.connected.clear()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        for future in self._answers.values():
            if not future.done():
                future.set_exception(LauncherGone())
        self._answers.clear()

    async def ask(self, op: str, **parameters: Any) -> dict[str, Any]:
        """One request. Raises LauncherError, LauncherGone."""
        if self._writer is None:
            raise LauncherGone
        self._seq += 1
        seq = self._seq
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[seq] = future
        self._writer.write(json.dumps({"seq": seq, "op": op, **parameters}).encode() + b"\0")
        try:
            return await asyncio.wait_for(future, ANSWER_SECONDS)
        except TimeoutError:
            raise LauncherGone from None
        finally:
            self._answers.pop(seq, None)

    async def insist(self, op: str, **parameters: Any) -> dict[str, Any]:
        """One request that may be asked twice, asked until it is answered. Raises LauncherError."""
        while True:
            await self.connected.wait()
            with contextlib.suppress(LauncherGone):
                return await self.ask(op, **parameters)
            await asyncio.sleep(RETRY_SECONDS[0])
