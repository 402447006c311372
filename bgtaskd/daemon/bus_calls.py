# SPDX-License-Identifier: LGPL-2.1-or-later
"""Calls of methods over D-Bus: from a message to an operation, and back to a reply or an error of D-Bus's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from dbus_next import Message, MessageFlag, Variant

from bgtaskd import errors
from bgtaskd.daemon import polkit
from bgtaskd.daemon.bus_connection import BusError, Callers, Connection
from bgtaskd.daemon.bus_interface import PROPERTIES, introspection, property_values
from bgtaskd.daemon.bus_methods import METHODS, Method
from bgtaskd.daemon.bus_reader import BODY_MAX, RawBody, Unreadable, read_body
from bgtaskd.daemon.bus_signals import INTERFACE, PATH
from bgtaskd.daemon.bus_values import parameters_of, text
from bgtaskd.protocol.peer import Peer

logger = logging.getLogger(__name__)

NAME: Final = "org.bgtaskd1"
CALLS_PER_USER: Final = 64
"""Calls of one user that may be under way."""

_FREEDESKTOP: Final = "org.freedesktop.DBus"
_ERROR: Final = "org.freedesktop.DBus.Error."


class Facade(Protocol):
    """The daemon's operations, as every door calls them."""

    async def call(
        self, peer: Peer, operation: str, parameters: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Call an operation of org.bgtaskd by name. Raises what is in bgtaskd.errors."""


class Refusal(Exception):
    """A call is answered with this error of D-Bus."""

    def __init__(self, name: str, words: str) -> None:
        self.name = name
        super().__init__(words)


@dataclass(frozen=True, slots=True)
class Incoming:
    """A method call, and the connection to the bus by which it came."""

    connection: Connection
    callers: Callers
    message: Any


class Calls:
    """Answers them. ``user``: the bus is the user's own, and polkit is not asked."""

    def __init__(self, facade: Facade, *, user: bool) -> None:
        self._facade = facade
        self._user = user
        self._under_way: Counter[int] = Counter()
        self._reading = asyncio.Lock()

    async def answer(self, call: Incoming) -> None:
        """Reply to a call. Every error becomes D-Bus's here, and nowhere else."""
        try:
            reply = await self._dispatch(call)
        except Refusal as refusal:
            _refuse(call, refusal)
        except errors.RemoteError as error:
            name = f"{NAME}.Error.{error.name.rpartition('.')[2]}"
            _refuse(call, Refusal(name, str(error)))
        except BusError as error:
            _refuse(call, Refusal(_ERROR + "AccessDenied", str(error)))
        except Exception:
            logger.exception("%s over D-Bus", call.message.member)
            _refuse(call, Refusal(_ERROR + "Failed", "internal error"))
        else:
            _reply(call, reply)

    async def _dispatch(self, call: Incoming) -> Any:
        """The reply. Raises Refusal, and what operations raise."""
        message = call.message
        interface, member, path = message.interface, message.member, message.path
        if interface == "org.freedesktop.DBus.Peer":
            if member == "Ping" and not message.signature:
                return Message.new_method_return(message)
            if member == "GetMachineId" and not message.signature:
                return Message.new_method_return(message, "s", [_machine_id()])
            raise _unknown_method(message)
        description = introspection(path)
        if description is None:
            raise Refusal(_ERROR + "UnknownObject", f"there is no object {path}")
        if member == "Introspect" and interface in (None, "org.freedesktop.DBus.Introspectable"):
            return Message.new_method_return(message, "s", [description])
        if path != PATH:
            raise _unknown_method(message)
        if interface == "org.freedesktop.DBus.Properties":
            return await self._properties(call)
        method = METHODS.get(member)
        if method is None or interface not in (None, INTERFACE):
            raise _unknown_method(message)
        if message.signature != method.signature_in:
            raise Refusal(
                _ERROR + "InvalidArgs",
                f'{member} takes "{method.signature_in}", not "{message.signature}"',
            )
        return await self._method(call, method)

    async def _properties(self, call: Incoming) -> Any:
        message = call.message
        expected = {"Get": "ss", "GetAll": "s", "Set": "ssv"}.get(message.member)
        if expected is None:
            raise _unknown_method(message)
        if message.signature != expected:
            raise Refusal(_ERROR + "InvalidArgs", f'{message.member} takes "{expected}"')
        if message.member == "Set":
            raise Refusal(_ERROR + "PropertyReadOnly", "all properties are read-only")
        if message.body[0] not in ("", INTERFACE):
            if message.member == "GetAll" and message.body[0].startswith(_FREEDESKTOP + "."):
                return Message.new_method_return(message, "a{sv}", [{}])
            raise Refusal(_ERROR + "UnknownInterface", f"no interface {message.body[0]} here")
        if message.member == "Get" and message.body[1] not in PROPERTIES:
            raise Refusal(_ERROR + "UnknownProperty", f"there is no property {message.body[1]}")
        async with self._as_caller(call) as peer:
            values = property_values(await self._facade.call(peer, "Status", {}))
        if message.member == "Get":
            value: Variant = values[message.body[1]]
            return Message.new_method_return(message, "v", [value])
        return Message.new_method_return(message, "a{sv}", [values])

    async def _method(self, call: Incoming, method: Method) -> Any:
        async with self._as_caller(call) as peer:
            arguments = await self._arguments(call.message, method)
            operation = method.operation or method.name
            parameters = parameters_of(operation, method.parameters(*arguments))
            try:
                result = await self._facade.call(peer, operation, parameters)
            except (errors.PermissionDenied, errors.NoSuchTask) as refusal:
                # The daemon does not tell strangers which tasks there are: either may mean "not yours".
                if self._user or peer.uid == 0 or not method.for_others(parameters):
                    raise
                await self._authorize(call, peer, method, parameters["id"], refusal)
                # As an administrator, then: polkit's yes says no less than that.
                admin = Peer(uid=0, gid=0, pid=peer.pid)
                result = await self._facade.call(admin, operation, parameters)
        body = method.answer(result)
        return Message.new_method_return(call.message, method.signature_out, body)

    async def _arguments(self, message: Any, method: Method) -> list[Any]:
        if method.is_flat:
            return list(message.body)
        if not isinstance(message.body, RawBody):
            raise Refusal(_ERROR + "LimitsExceeded", f"more than {BODY_MAX} bytes")
        async with self._reading:
            try:
                return read_body(message.body, method.signature_in)
            except Unreadable as error:
                raise Refusal(_ERROR + "InvalidArgs", str(error)) from None
            finally:
                await asyncio.sleep(0)  # a large one takes some time: then it is others' turn

    async def _authorize(
        self,
        call: Incoming,
        peer: Peer,
        method: Method,
        task_id: int,
        refusal: errors.BgtaskdError,
    ) -> None:
        """Return if polkit lets the caller manage other people's tasks; else raise the refusal."""
        message = call.message
        interactive = bool(message.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)
        details = {"verb": method.name, "id": str(task_id)}
        answer = await polkit.may_manage(call.connection, message.sender, interactive, details)
        if answer is polkit.Answer.YES:
            words = "polkit lets uid %d (%s) %s task %d"
            logger.info(words, peer.uid, message.sender, method.name, task_id)
            return
        if answer is polkit.Answer.WOULD_ASK and isinstance(refusal, errors.PermissionDenied):
            raise Refusal(
                _ERROR + "InteractiveAuthorizationRequired", "Interactive authentication required."
            )
        raise refusal

    @contextlib.asynccontextmanager
    async def _as_caller(self, call: Incoming) -> AsyncIterator[Peer]:
        """Who calls, while one of their calls is under way."""
        peer = await call.callers.peer(call.message.sender)
        under_way = self._under_way
        if under_way[peer.uid] >= CALLS_PER_USER:
            raise Refusal(_ERROR + "LimitsExceeded", f"more than {CALLS_PER_USER} calls under way")
        under_way[peer.uid] += 1
        try:
            yield peer
        finally:
            under_way[peer.uid] -= 1
            if not under_way[peer.uid]:
                del under_way[peer.uid]


def _refuse(call: Incoming, refusal: Refusal) -> None:
    words = text(str(refusal))
    _reply(call, Message.new_error(call.message, refusal.name, words))


def _reply(call: Incoming, reply: Any) -> None:
    if not call.message.flags & MessageFlag.NO_REPLY_EXPECTED and call.connection.connected:
        call.connection.reply(reply)


def _unknown_method(message: Any) -> Refusal:
    return Refusal(
        _ERROR + "UnknownMethod", f"there is no method {message.interface}.{message.member} here"
    )


def _machine_id() -> str:
    return Path("/etc/machine-id").read_text("ascii").strip()
