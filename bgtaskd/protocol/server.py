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
from bgtaskd.protocol.codec import MESSAGE_MAX, Decoder, MalformedMessage, decode, encode
from bgtaskd.protocol.idl import InvalidParameter
from bgtaskd.protocol.interface import bgtaskd_interface, service_interface
from bgtaskd.protocol.peer import Peer, peer_of

log = logging.getLogger(__name__)

SERVICE: Final = "org.varlink.service"
OURS: Final = "org.bgtaskd"
OUT_MAX: Final = 4 << 20
# What one connection may have waiting: more is not read, or refused while a streaming call is in the way.
IN_MAX: Final = 2 * MESSAGE_MAX
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
    """One connection: calls are answered in order; a streaming one holds back those behind it.

    What was sent whole is done, even where the peer has gone meanwhile; only a stream ends with its reader,
    and what waits behind it.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._decoder = Decoder()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._malformed: MalformedMessage | None = None
        self._streaming = False
        self._gone = False
        self._no_more_calls = False
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
        """End its stream; what else was asked for is still done, with nobody to tell."""
        self._gone = True
        if self._half is not None:
            self._half.cancel()
        self._writable.set()
        if self._task is None:
            self._forget()
        elif self._streaming:
            self._task.cancel()

    def eof_received(self) -> bool:
        """The peer sends no more, but may still read: answer what it has asked."""
        self._no_more_calls = True
        if self._streaming:
            return (
                False  # most often it is gone altogether, and a watch is for somebody who is there
            )
        return self._task is not None

    def _forget(self) -> None:
        if self._counted:
            self._counted = False
            self._server.connections[self.peer.uid] -= 1
            if not self._server.connections[self.peer.uid]:
                del self._server.connections[self.peer.uid]

    def pause_writing(self) -> None:
        """The peer reads slowly."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The peer reads again."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Take what came; several calls may be in it, or a part of one."""
        if self._malformed is not None or self._transport.is_closing():
            return
        held = len(self._decoder)
        try:
            frames = self._decoder.frames(data)
        except MalformedMessage as error:
            frames, self._malformed = error.before, error
            if self._streaming:
                self._end_malformed()
                return
            self._transport.pause_reading()
        self._watch_half_message(begun=bool(frames) or not held)
        self._waiting.extend(frames)
        self._waiting_bytes += sum(map(len, frames))
        if self._is_full() and self._malformed is None:
            if self._streaming:
                self._refuse("too much waits behind a streaming call")
                return
            self._transport.pause_reading()
        if self._task is None and (self._waiting or self._malformed is not None):
            self._task = asyncio.get_running_loop().create_task(self._work())

    def _is_full(self) -> bool:
        return (
            len(self._waiting) > self._server.limits.requests_per_user
            or self._waiting_bytes > IN_MAX
        )

    def _watch_half_message(self, begun: bool) -> None:
        """``begun``: it is another message than before. One that drips in gets no more time for each drop."""
        if self._half is not None and (begun or not len(self._decoder)):
            self._half.cancel()
            self._half = None
        if len(self._decoder) and self._half is None:
            loop = asyncio.get_running_loop()
            self._half = loop.call_later(HALF_MESSAGE_SECONDS, self._half_message_over)

    def _half_message_over(self) -> None:
        self._half = None
        if self._is_full():  # it is we who do not read
            self._watch_half_message(begun=True)
            return
        self._malformed = MalformedMessage("half a message, and no more for too long")
        if self._streaming or self._task is None:
            self._end_malformed()

    def _end_malformed(self) -> None:
        parameters = {"parameter": str(self._malformed)}
        self._write({"error": f"{SERVICE}.InvalidParameter", "parameters": parameters})
        self._transport.close()

    def _refuse(self, reason: str) -> None:
        error = TooManyRequests(reason=reason)
        self._write({"error": error.name, "parameters": error.parameters})
        self._transport.close()

    async def _work(self) -> None:
        requests = self._server.requests
        try:
            while self._waiting:
                frame = self._waiting.popleft()
                self._waiting_bytes -= len(frame)
                if not self._is_full() and self._malformed is None and not self._gone:
                    self._transport.resume_reading()
                requests[self.peer.uid] += 1
                try:
                    await self._answer(decode(frame))
                except MalformedMessage as error:
                    self._malformed = error
                    self._waiting.clear()
                finally:
                    requests[self.peer.uid] -= 1
                    if not requests[self.peer.uid]:
                        del requests[self.peer.uid]
        finally:
            self._task = None
            if self._gone:
                self._forget()
        if self._malformed is not None:
            self._end_malformed()
        elif self._no_more_calls:
            self._transport.close()

    async def _answer(self, message: dict[str, Any]) -> None:
        oneway = message.get("oneway") is True
        try:
            call = self._call(message)
            result = self._dispatch(call)
            if isinstance(result, AsyncGenerator):
                await self._stream(call, result, oneway)
                return
            reply = encode({"parameters": await result})
        except RemoteError as error:
            reply = encode({"error": error.name, "parameters": error.parameters})
        except InvalidParameter as error:
            reply = encode(_invalid(error))
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("%s failed", message.get("method"))
            parameters = {"reason": "an internal error; see the journal"}
            reply = encode({"error": f"{OURS}.StorageFailed", "parameters": parameters})
        if not oneway:
            self._send(reply)
            await self._writable.wait()

    async def _stream(
        self, call: Call, stream: AsyncGenerator[Streamed, None], oneway: bool
    ) -> None:
        """Send each reply as it comes. A caller who did not say `more` gets the first, and no other."""
        if self._gone:
            return
        if self._is_full():  # nothing is read then, so nobody would notice that the peer has gone
            raise TooManyRequests(reason="too much waits behind a streaming call")
        self._streaming = True
        try:
            async with contextlib.aclosing(stream):
                async for reply, continues in stream:
                    more = continues and call.more
                    if not oneway:
                        self._write(
                            {"parameters": reply, "continues": True}
                            if more
                            else {"parameters": reply}
                        )
                        await self._writable.wait()
                    if not more or self._transport.is_closing():
                        return
        finally:
            self._streaming = False

    def _call(self, message: dict[str, Any]) -> Call:
        method, parameters = message.get("method"), message.get("parameters")
        if not isinstance(method, str) or "." not in method:
            raise InvalidParameter("method", "must be the full name of a method")
        if parameters is None:
            parameters = {}
        if not isinstance(parameters, dict):
            raise InvalidParameter("parameters", "must be an object")
        if message.get("upgrade") is True:
            raise InvalidParameter("upgrade", "no method has a protocol of its own")
        return Call(method, parameters, self.peer, message.get("more") is True)

    def _dispatch(self, call: Call) -> Awaitable[Reply] | AsyncGenerator[Streamed, None]:
        interface, _, name = call.method.rpartition(".")
        if interface == SERVICE:
            return self._service(name, call)
        if interface != OURS:
            raise RemoteError(f"{SERVICE}.InterfaceNotFound", {"interface": interface[:200]})
        handler = self._server.handlers.get(name)
        if handler is None:
            known = name in bgtaskd_interface().methods
            error = "MethodNotImplemented" if known else "MethodNotFound"
            raise RemoteError(f"{SERVICE}.{error}", {"method": name[:200]})
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
        self._send(encode(message))

    def _send(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(data)
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
