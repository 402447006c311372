# SPDX-License-Identifier: LGPL-2.1-or-later
"""A connection to the bus on which strangers may send us anything: dbus-next's, with its doors closed.

dbus-next decodes whatever comes, a value at a time in Python, in one go; it drops the connection at what it
does not know, and at a bus that is slow to read. Anybody on the system bus could stop the daemon for minutes
with one message of 32 MiB. So here: only bodies of plain values (strings and numbers) are decoded, unless
they answer a question of ours, and what else is not too large is left to bus_reader; a flood is read in
helpings, between which the daemon goes on with its work; what cannot be read is skipped; what cannot be written
waits.

The insides that are replaced are those of dbus-next 0.2.3, whose upstream is dormant; the tests fail should
they ever change.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import struct
from collections import OrderedDict
from typing import Any, Final

from dbus_next import Message, MessageType
from dbus_next._private.unmarshaller import MarshallerStreamEndError, Unmarshaller
from dbus_next.aio.message_bus import MessageBus, _MessageWriter

from bgtaskd.daemon.bus_reader import BODY_MAX, FLAT, RawBody
from bgtaskd.protocol.peer import NOBODY, Peer

logger = logging.getLogger(__name__)

ARGUMENTS_MAX: Final = 8
MESSAGES_A_TURN: Final = 32
"""How many messages are taken before everybody else in the daemon gets a turn."""
ASK_TIMEOUT: Final = 10.0
"""Seconds for an answer from the bus itself or from a service on it."""
PEERS_REMEMBERED: Final = 512

_LENGTHS: Final = {ord("l"): struct.Struct("<III"), ord("B"): struct.Struct(">III")}
_FIXED_HEADER: Final = 16
_UNREADABLE: Final = object()


class BusError(Exception):
    """The other side answered with an error, or not at all. ``name`` is D-Bus's name of the error."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        super().__init__(f"{name}: {text}")


class _Unmarshaller(Unmarshaller):  # type: ignore[misc]
    """Reads a whole message, then decodes no more of it than is safe.

    A body that was left alone is a RawBody, or None where it is too large for any method.
    """

    message: Any

    def _unmarshall(self) -> None:
        self.offset = 0
        self.read(_FIXED_HEADER, prefetch=True)
        lengths = _LENGTHS.get(self.buf[0])
        if lengths is None:
            raise BusError("org.freedesktop.DBus.Error.InconsistentMessage", "no such byte order")
        body_length, _, fields_length = lengths.unpack_from(self.buf, 4)
        fields_length += -fields_length % 8
        self.read(_FIXED_HEADER + fields_length + body_length, prefetch=True)
        # From here on everything is in the buffer; dbus-next is told that there is no body.
        self.buf[4:8] = bytes(4)
        try:
            super()._unmarshall()
            if body_length:
                self.message.body = self._body(self.message)
        except MarshallerStreamEndError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is one message that is bad
            logger.debug("skipped a D-Bus message that cannot be read: %r", error)
            self.message = _UNREADABLE

    def _body(self, message: Any) -> list[Any] | RawBody | None:
        types = message.signature_tree.types
        if message.message_type in (MessageType.METHOD_CALL, MessageType.SIGNAL):
            if len(types) > ARGUMENTS_MAX:
                return None
            if not FLAT.issuperset(message.signature):
                return self._raw_body() if message.message_type is MessageType.METHOD_CALL else None
        return [self.read_argument(one) for one in types]

    def _raw_body(self) -> RawBody | None:
        data = memoryview(self.buf)[self.offset :]
        order = "<" if self.buf[0] == ord("l") else ">"
        return None if len(data) > BODY_MAX else RawBody(bytes(data), order)


class _Writer(_MessageWriter):  # type: ignore[misc]
    """Waits for a bus that does not keep up. dbus-next's own gives up the connection then."""

    buf: Any

    def write_callback(self) -> None:
        try:
            while self.buf is not None or self.messages.qsize():
                if self.buf is None:
                    data, _, self.fut = self.messages.get_nowait()
                    self.buf = memoryview(data)
                    self.offset = 0
                self.offset += self.sock.send(self.buf[self.offset :])
                if self.offset == len(self.buf):
                    self.buf = None
                    if self.fut is not None and not self.fut.done():
                        self.fut.set_result(None)
            self.loop.remove_writer(self.fd)
        except BlockingIOError:
            pass  # the event loop calls again when there is room
        except OSError as error:
            if self.fut is not None and not self.fut.done():
                self.fut.set_exception(error)
            self.bus._finalize(error)  # noqa: SLF001 - as in what it replaces


class Connection(MessageBus):  # type: ignore[misc]
    """One connection to a bus. Once it is lost it is of no use any more: make another."""

    _serial: int
    _unmarshaller: Any

    def __init__(self, address: str) -> None:
        super().__init__(bus_address=address)
        self._writer = _Writer(self)
        self._helping: asyncio.Handle | None = None

    def close(self) -> None:
        """Close, whatever state it is in. dbus-next itself never closes its socket."""
        self._user_disconnect = True
        self._finalize(None)
        for one in (self._stream, self._sock):
            try:
                one.close()
            except OSError:
                logger.debug("closing the D-Bus connection", exc_info=True)

    def next_serial(self) -> int:
        """As dbus-next's, but of 32 bits also after the four billionth message."""
        self._serial = self._serial % 0xFFFFFFFF + 1
        return self._serial

    def write(self, data: bytes) -> asyncio.Future[None]:
        """Queue marshalled messages. Done once the socket has taken them; never done if it is lost first."""
        written: asyncio.Future[None] = self._loop.create_future()
        # Looked at by nobody, an error would be complained about; it ends the connection, and that is seen.
        written.add_done_callback(asyncio.Future.exception)
        self._writer.messages.put_nowait((data, None, written))
        self._writer.schedule_write()
        return written

    def reply(self, message: Any) -> None:
        """Send an answer. Whether it arrives is not our concern any more."""
        message.serial = self.next_serial()
        data = bytes(message._marshall())  # noqa: SLF001 - its own send() complains when the bus is gone
        self.write(data)

    async def ask(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str,
        body: list[Any],
        patience: float = ASK_TIMEOUT,
    ) -> list[Any]:
        """Call a method; the body of its reply. Raises BusError, also when there is no answer in time."""
        question = Message(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=body,
        )
        if self._disconnected:
            raise BusError("org.freedesktop.DBus.Error.Disconnected", "the bus has gone")
        try:
            async with asyncio.timeout(patience):
                answer = await self.call(question)
        except TimeoutError:
            raise BusError("org.freedesktop.DBus.Error.NoReply", f"{member}: no answer") from None
        except (OSError, EOFError) as error:
            raise BusError("org.freedesktop.DBus.Error.Disconnected", repr(error)) from error
        if answer is None:
            raise BusError("org.freedesktop.DBus.Error.Disconnected", "the bus has gone")
        if answer.message_type is MessageType.ERROR:
            text = answer.body[0] if answer.body and isinstance(answer.body[0], str) else ""
            raise BusError(answer.error_name, text)
        result: list[Any] = answer.body
        return result

    # What of dbus-next is replaced.

    def _create_unmarshaller(self) -> _Unmarshaller:
        return _Unmarshaller(self._stream)

    def _message_reader(self) -> None:
        # The event loop calls when there is something in the socket, _read_on when it is its turn.
        if self._helping is None:
            self._read_helping()

    def _read_on(self) -> None:
        self._helping = None
        self._read_helping()

    def _read_helping(self) -> None:
        try:
            for _ in range(MESSAGES_A_TURN):
                if self._disconnected or not self._unmarshaller.unmarshall():
                    return
                message = self._unmarshaller.message
                self._unmarshaller = self._create_unmarshaller()
                if message is not _UNREADABLE:
                    self._on_message(message)
        except Exception as error:  # noqa: BLE001 - any: the stream is not to be trusted any more
            self._finalize(error)
        else:
            # More may lie in the stream's own buffer, of which the event loop knows nothing.
            self._helping = self._loop.call_soon(self._read_on)

    async def _auth_readline(self) -> str:
        # dbus-next's own never ends, and never lets go of the event loop, once the bus has hung up.
        line = b""
        while not line.endswith(b"\r\n"):
            data = await self._loop.sock_recv(self._sock, 1)
            if not data:
                raise BusError("org.freedesktop.DBus.Error.AuthFailed", "the bus hung up")
            line += data
        return line[:-2].decode("ascii", "replace")


class Callers:
    """Who is behind a connection's unique name, as the bus had it from the kernel when it connected.

    A bus never gives a unique name twice and never changes its credentials, so what was learnt stays true;
    the oldest are forgotten when there are many.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known: OrderedDict[str, asyncio.Task[Peer]] = OrderedDict()

    async def peer(self, name: str) -> Peer:
        """The user behind a unique name. Raises BusError where the bus does not know (it has gone)."""
        lookup = self._known.get(name)
        if lookup is None:
            lookup = asyncio.ensure_future(self._look_up(name))
            self._known[name] = lookup
            while len(self._known) > PEERS_REMEMBERED:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(name)
        try:
            return await asyncio.shield(lookup)
        except BusError:
            self._known.pop(name, None)
            raise

    async def _look_up(self, name: str) -> Peer:
        bus = "org.freedesktop.DBus"
        path = "/org/freedesktop/DBus"
        [answer] = await self._connection.ask(
            bus, path, bus, "GetConnectionCredentials", "s", [name]
        )
        credentials = {key: variant.value for key, variant in answer.items()}
        uid = credentials.get("UnixUserID")
        if uid is None:
            raise BusError("org.freedesktop.DBus.Error.Failed", f"{name} has no user id")
        gid, groups = await asyncio.to_thread(groups_of, uid, credentials.get("UnixGroupIDs"))
        return Peer(uid=uid, gid=gid, pid=credentials.get("ProcessID", 0), groups=groups)


def groups_of(uid: int, told: list[int] | None) -> tuple[int, frozenset[int]]:
    """A user's primary group and all groups. ``told``: what the bus says (dbus before 1.14 says nothing).

    Blocking: asks the user database.
    """
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return NOBODY, frozenset(told or ())
    if told is None:
        told = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return entry.pw_gid, frozenset(told)
