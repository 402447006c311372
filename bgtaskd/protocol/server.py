# SPDX-License-Identifier: LGPL-2.1-or-later
"""The serving end of Varlink, on asyncio. Every size and count is bounded, per connection and per user."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import bgtaskd
from bgtaskd.errors import RemoteError, TooManyRequests
from bgtaskd.protocol.codec import Decoder, MalformedMessage, encode
from bgtaskd.protocol.idl import InvalidParameter
from bgtaskd.protocol.interface import bgtaskd_interface, service_interface
from bgtaskd.protocol.peer import Peer, peer_of

log = logging.getLogger(__name__)

SERVICE: Final = "org.varlink.service"
OURS: Final = "org.bgtaskd"
OUT_MAX: Final = 4 << 20
HALF_MESSAGE_SECONDS: Final = 30.0
BACKLOG: Final = 512
# From Python 3.13 on asyncio removes the socket when it stops listening; systemd goes on listening on it.
KEEP_SOCKET: Final[dict[str, Any]] = (
    {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
)

Reply = dict[str, Any]
Streamed = tuple[Reply, bool]
"""A reply of a streaming call, and whether more will follow."""
Handler = Callable[["Call"], Awaitable[Reply] | AsyncGenerator[Streamed, None]]


@dataclass(frozen=True, slots=True)
class Call:
    """One call. ``more``: the caller takes several replies."""

    method: str
    parameters: Mapping[str, Any]
    peer: Peer
    more: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """Per user, and for all users together."""

    connections_per_user: int = 256
    requests_per_user: int = 256
    connections: int = 8192


class Server:
    """Serves ``handlers`` (method name → handler) on any number of listening sockets."""

    def __init__(self, handlers: Mapping[str, Handler], limits: Limits) -> None:
        self.handlers = handlers
        self.limits = limits
        self.connections: Counter[int] = Counter()
        self.requests: Counter[int] = Counter()
        self._listening: list[asyncio.AbstractServer] = []

    async def serve(self, sock: socket.socket) -> None:
        """Begin to accept on a bound stream socket."""
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(
            lambda: Connection(self), sock=sock, backlog=BACKLOG, **KEEP_SOCKET
        )
        self._listening.append(server)

    async def close(self) -> None:
        """Accept no more."""
        for server in self._listening:
            server.close()


class Connection(asyncio.Protocol):
    """One connection: calls are answered in order; a streaming one holds back those behind it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._decoder = Decoder()
        self._waiting: deque[dict[str, Any]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._half: asyncio.TimerHandle | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._counted = False
        self.peer = Peer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask the kernel who it is, and count."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=256 * 1024)
        self.peer = peer_of(transport.get_extra_info("socket"))
        counts, limits = self._server.connections, self._server.limits
        if (
            counts[self.peer.uid] >= limits.connections_per_user
            or counts.total() >= limits.connections
        ):
            self._refuse(f"{limits.connections_per_user} connections of one user are open already")
            return
        counts[self.peer.uid] += 1
        self._counted = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it, and cancel what it waited for."""
        if self._counted:
            self._server.connections[self.peer.uid] -= 1
            if not self._server.connections[self.peer.uid]:
                del self._server.connections[self.peer.uid]
        if self._task is not None:
            self._task.cancel()
        if self._half is not None:
            self._half.cancel()
        self._waiting.clear()
        self._writable.set()

    def pause_writing(self) -> None:
        """The peer reads slowly."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The peer reads again."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Take what came; several calls may be in it, or a part of one."""
        try:
            messages = self._decoder.feed(data)
        except MalformedMessage as error:
            self._write(
                {"error": f"{SERVICE}.InvalidParameter", "parameters": {"parameter": str(error)}}
            )
            self._transport.close()
            return
        self._watch_half_message()
        self._waiting.extend(messages)
        if len(self._waiting) > self._server.limits.requests_per_user:
            self._refuse(f"{self._server.limits.requests_per_user} requests wait already")
        elif self._waiting and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    def _watch_half_message(self) -> None:
        if self._half is not None:
            self._half.cancel()
            self._half = None
        if len(self._decoder):
            loop = asyncio.get_running_loop()
            self._half = loop.call_later(HALF_MESSAGE_SECONDS, self._transport.abort)

    def _refuse(self, reason: str) -> None:
        error = TooManyRequests(reason=reason)
        self._write({"error": error.name, "parameters": error.parameters})
        self._transport.close()

    async def _work(self) -> None:
        requests = self._server.requests
        try:
            while self._waiting and not self._transport.is_closing():
                message = self._waiting.popleft()
                requests[self.peer.uid] += 1
                try:
                    await self._answer(message)
                finally:
                    requests[self.peer.uid] -= 1
                    if not requests[self.peer.uid]:
                        del requests[self.peer.uid]
        finally:
            self._task = None

    async def _answer(self, message: dict[str, Any]) -> None:
        oneway = message.get("oneway") is True
        try:
            call = self._call(message)
            result = self._dispatch(call)
            if isinstance(result, AsyncGenerator):
                await self._stream(call, result, oneway)
                return
            reply: dict[str, Any] = {"parameters": await result}
        except RemoteError as error:
            reply = {"error": error.name, "parameters": error.parameters}
        except InvalidParameter as error:
            reply = _invalid(error)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("%s failed", message.get("method"))
            reply = {
                "error": f"{OURS}.StorageFailed",
                "parameters": {"reason": "an internal error; see the journal"},
            }
        if not oneway:
            self._write(reply)
            await self._writable.wait()

    async def _stream(
        self, call: Call, stream: AsyncGenerator[Streamed, None], oneway: bool
    ) -> None:
        """Send each reply as it comes. A caller who did not say `more` gets the first, and no other."""
        async with contextlib.aclosing(stream):
            async for reply, continues in stream:
                if not oneway:
                    self._write(
                        {"parameters": reply, "continues": True}
                        if continues and call.more
                        else {"parameters": reply}
                    )
                    await self._writable.wait()
                if not (continues and call.more) or self._transport.is_closing():
                    return

    def _call(self, message: dict[str, Any]) -> Call:
        method, parameters = message.get("method"), message.get("parameters")
        if not isinstance(method, str) or "." not in method:
            raise InvalidParameter("method", "must be the full name of a method")
        if parameters is None:
            parameters = {}
        if not isinstance(parameters, dict):
            raise InvalidParameter("parameters", "must be an object")
        return Call(method, parameters, self.peer, message.get("more") is True)

    def _dispatch(self, call: Call) -> Awaitable[Reply] | AsyncGenerator[Streamed, None]:
        interface, _, name = call.method.rpartition(".")
        if interface == SERVICE:
            return self._service(name, call)
        if interface != OURS:
            raise RemoteError(f"{SERVICE}.InterfaceNotFound", {"interface": interface[:200]})
        handler = self._server.handlers.get(name)
        if handler is None:
            raise RemoteError(f"{SERVICE}.MethodNotFound", {"method": name[:200]})
        bgtaskd_interface().check(name, call.parameters)
        if self._server.requests[self.peer.uid] > self._server.limits.requests_per_user:
            raise TooManyRequests(reason="too many requests of one user at once")
        return handler(call)

    async def _service(self, name: str, call: Call) -> Reply:
        ours, service = bgtaskd_interface(), service_interface()
        if name not in service.methods:
            raise RemoteError(f"{SERVICE}.MethodNotFound", {"method": name[:200]})
        service.check(name, call.parameters)
        if name == "GetInfo":
            return {
                "vendor": "bgtaskd",
                "product": "bgtaskd",
                "version": bgtaskd.__version__,
                "url": "man:bgtaskd(8)",
                "interfaces": [service.name, ours.name],
            }
        for one in (ours, service):
            if one.name == call.parameters["interface"]:
                return {"description": one.text}
        raise RemoteError(
            f"{SERVICE}.InterfaceNotFound", {"interface": call.parameters["interface"][:200]}
        )

    def _write(self, message: dict[str, Any]) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(encode(message))
        if self._transport.get_write_buffer_size() > OUT_MAX:
            self._transport.abort()  # it does not read; nobody else shall pay for that


def _invalid(error: InvalidParameter) -> dict[str, Any]:
    if error.parameter.startswith("spec."):
        field = error.parameter.removeprefix("spec.")
        return {
            "error": f"{OURS}.InvalidSpec",
            "parameters": {"field": field, "reason": error.reason},
        }
    return {"error": f"{SERVICE}.InvalidParameter", "parameters": {"parameter": error.parameter}}
