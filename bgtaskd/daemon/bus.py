# SPDX-License-Identifier: LGPL-2.1-or-later
<<<<<<< HEAD
"""org.bgtaskd1 on D-Bus: the same operations, and signals for whoever listens.

dbus-next's own service objects never tell a method who calls (python-dbus-next#93), so this serves the
messages themselves: one handler, one table. dbus-next is used in this module and in polkit.py only.
=======
"""The D-Bus door: org.bgtaskd1 on the system bus, or on a user's own.

It has no rules and no state of its own. A method is an operation of the daemon, called as the user whom the
bus names; an event of the daemon is a signal. The interface is in bus_interface, described in
org.bgtaskd1(7).

Signals are broadcast, and everybody on the machine may listen: on the system bus they say which task is how
far and no more than that. What a task wrote or was told is for those who may Get it.
>>>>>>> main
"""

from __future__ import annotations

import asyncio
<<<<<<< HEAD
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from dbus_next import BusType, Message, MessageFlag, MessageType, RequestNameReply, Variant
from dbus_next.aio import MessageBus

import bgtaskd
from bgtaskd.daemon.api import Api
from bgtaskd.daemon.polkit import may_manage
from bgtaskd.errors import PermissionDenied, RemoteError
from bgtaskd.model import Task
from bgtaskd.protocol.peer import NOBODY, Peer
from bgtaskd.storage.interface import Message as TaskMessage

log = logging.getLogger(__name__)

NAME: Final = "org.bgtaskd1"
PATH: Final = "/org/bgtaskd1"
MANAGER: Final = "org.bgtaskd1.Manager"
PROPERTIES: Final = "org.freedesktop.DBus.Properties"
CHANGED_INTERVAL: Final = 0.1
RETRY_SECONDS: Final = 5.0

INTROSPECTION: Final = """\
<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
<node>
 <interface name="org.bgtaskd1.Manager">
  <method name="List"><arg name="tasks" type="a(tssss)" direction="out"/></method>
  <method name="Get"><arg name="id" type="t" direction="in"/><arg name="task" type="a{sv}" direction="out"/></method>
  <method name="Signal"><arg name="id" type="t" direction="in"/><arg name="name" type="s" direction="in"/>
   <arg name="payload" type="s" direction="in"/></method>
  <method name="Kill"><arg name="id" type="t" direction="in"/><arg name="whom" type="s" direction="in"/>
   <arg name="signal" type="i" direction="in"/></method>
  <method name="Stop"><arg name="id" type="t" direction="in"/></method>
  <method name="Pause"><arg name="id" type="t" direction="in"/></method>
  <method name="Resume"><arg name="id" type="t" direction="in"/></method>
  <signal name="TaskAdded"><arg name="id" type="t"/></signal>
  <signal name="TaskChanged"><arg name="id" type="t"/><arg name="changed" type="a{sv}"/></signal>
  <signal name="TaskFinished"><arg name="id" type="t"/><arg name="state" type="s"/><arg name="result" type="s"/></signal>
  <signal name="TaskSignaled"><arg name="id" type="t"/><arg name="name" type="s"/><arg name="payload" type="s"/></signal>
  <property name="Version" type="s" access="read">
   <annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal" value="const"/></property>
 </interface>
 <interface name="org.freedesktop.DBus.Introspectable">
  <method name="Introspect"><arg name="xml" type="s" direction="out"/></method>
 </interface>
 <interface name="org.freedesktop.DBus.Peer">
  <method name="Ping"/>
  <method name="GetMachineId"><arg name="machine_uuid" type="s" direction="out"/></method>
 </interface>
 <interface name="org.freedesktop.DBus.Properties">
  <method name="Get"><arg name="interface" type="s" direction="in"/><arg name="property" type="s" direction="in"/>
   <arg name="value" type="v" direction="out"/></method>
  <method name="GetAll"><arg name="interface" type="s" direction="in"/>
   <arg name="properties" type="a{sv}" direction="out"/></method>
 </interface>
</node>
"""

Body = tuple[str, list[Any]]
SIGNATURES: Final = {"s": str, "t": int, "i": int, "d": float, "b": bool}


class Bus:
    """The daemon's connection to the message bus; it comes back by itself."""

    def __init__(self, api: Api, bus_type: BusType) -> None:
        self._api = api
        self._type = bus_type
        self._bus: MessageBus | None = None
        self._last: dict[int, float] = {}
        self._late: dict[int, asyncio.TimerHandle] = {}
        self._methods: dict[str, tuple[str, Callable[[Message, Peer], Awaitable[Body]]]] = {
            "List": ("", self._list),
            "Get": ("t", self._get),
            "Signal": ("tss", self._signal),
            "Kill": ("tsi", self._kill),
            "Stop": ("t", self._plain),
            "Pause": ("t", self._plain),
            "Resume": ("t", self._plain),
        }
        api.engine.subscribe(self._on_change)
        api.engine.signal_subscribers.append(self._on_message)

    async def run(self) -> None:
        """Keep a connection, for ever. Without a bus the daemon goes on."""
        while True:
            try:
                bus = await MessageBus(bus_type=self._type).connect()
                bus.add_message_handler(self._on_bus_message)
                if await bus.request_name(NAME) is not RequestNameReply.PRIMARY_OWNER:
                    raise OSError(f"the name {NAME} is taken, or not ours to take")
                self._bus = bus
                await bus.wait_for_disconnect()
            except Exception as error:  # dbus-next raises whatever its parser meets
                log.warning("D-Bus: %s; trying again", error)
            self._bus = None
            await asyncio.sleep(RETRY_SECONDS)

    # --- signals --------------------------------------------------------------------------------

    def _on_change(self, kind: str, task: Task) -> None:
        if self._bus is None:
            return
        if kind == "added":
            self._emit("TaskAdded", "t", [task.id])
        elif kind == "finished":
            self._forget(task.id)
            result = "" if task.result is None else task.result.value
            self._emit("TaskFinished", "tss", [task.id, task.state.value, result])
        elif kind == "changed":
            self._changed(task.id)

    def _changed(self, task_id: int) -> None:
        """At most ten a second a task; the last one is never dropped."""
        loop = asyncio.get_running_loop()
        wait = self._last.get(task_id, 0.0) + CHANGED_INTERVAL - loop.time()
        if task_id in self._late:
            return
        if wait > 0:
            self._late[task_id] = loop.call_later(wait, self._tell_changed, task_id)
        else:
            self._tell_changed(task_id)

    def _tell_changed(self, task_id: int) -> None:
        self._late.pop(task_id, None)
        task = self._api.engine.live.get(task_id)
        if task is None:
            return
        self._last[task_id] = asyncio.get_running_loop().time()
        body = {"State": Variant("s", task.public_state().value)}
        if task.percent is not None:
            body["Percent"] = Variant("d", float(task.percent))
        if task.finished is not None:
            body["Finished"] = Variant("t", task.finished)
        if task.total is not None:
            body["Total"] = Variant("t", task.total)
        self._emit("TaskChanged", "ta{sv}", [task_id, body])

    def _forget(self, task_id: int) -> None:
        self._last.pop(task_id, None)
        late = self._late.pop(task_id, None)
        if late is not None:
            late.cancel()

    def _on_message(self, task: Task, message: TaskMessage) -> None:
        self._emit("TaskSignaled", "tss", [task.id, message.name, json.dumps(message.payload)])

    def _emit(self, member: str, signature: str, body: list[Any]) -> None:
        if self._bus is not None:
            self._bus.send(Message.new_signal(PATH, MANAGER, member, signature, body))

    # --- methods --------------------------------------------------------------------------------

    def _on_bus_message(self, message: Message) -> bool | None:
        if message.message_type is not MessageType.METHOD_CALL or message.path not in (PATH, "/", "/org"):
            return None
        if message.interface == "org.freedesktop.DBus.Introspectable" and message.path != PATH:
            return None
        self._api.engine.job(self._serve(message))
        return True

    async def _serve(self, message: Message) -> None:
        try:
            signature, body = await self._answer(message)
            reply = Message.new_method_return(message, signature, body)
        except RemoteError as error:
            name = error.name.rpartition(".")[2]
            reply = Message.new_error(message, f"{NAME}.Error.{name}", str(error))
        except _BusError as error:
            reply = Message.new_error(message, f"org.freedesktop.DBus.Error.{error.name}", str(error))
        if self._bus is not None and not message.flags & MessageFlag.NO_REPLY_EXPECTED:
            await self._bus.send(reply)

    async def _answer(self, message: Message) -> Body:
        member = message.member or ""
        if message.interface == "org.freedesktop.DBus.Introspectable":
            return "s", [INTROSPECTION]
        if message.interface == "org.freedesktop.DBus.Peer":
            return ("s", [_machine_id()]) if member == "GetMachineId" else ("", [])
        if message.interface == PROPERTIES:
            return _properties(message)
        known = self._methods.get(member)
        if known is None or message.interface not in (None, "", MANAGER):
            raise _BusError("UnknownMethod", f"there is no method {message.interface}.{member}")
        if message.signature != known[0]:
            raise _BusError("InvalidArgs", f"{member} takes {known[0]!r}, not {message.signature!r}")
        return await known[1](message, await self._peer(message.sender or ""))

    async def _list(self, message: Message, peer: Peer) -> Body:
        stream = self._api.list(peer)
        return "a(tssss)", [[_row(task) for task in stream]]

    async def _get(self, message: Message, peer: Peer) -> Body:
        reply = await self._operation(message, peer, "Get", {"id": message.body[0]})
        return "a{sv}", [{key: one for key, value in reply["task"].items() if (one := _variant(value)) is not None}]

    async def _signal(self, message: Message, peer: Peer) -> Body:
        task_id, name, payload = message.body
        try:
            value = json.loads(payload) if payload else None
        except (ValueError, RecursionError):
            raise _BusError("InvalidArgs", "the payload must be JSON, or empty") from None
        await self._operation(message, peer, "Signal", {"id": task_id, "name": name, "payload": value})
        return "", []

    async def _kill(self, message: Message, peer: Peer) -> Body:
        task_id, whom, number = message.body
        parameters = {"id": task_id, "whom": whom or "all", "signal": str(number)}
        await self._operation(message, peer, "Kill", parameters)
        return "", []

    async def _plain(self, message: Message, peer: Peer) -> Body:
        await self._operation(message, peer, message.member or "", {"id": message.body[0]})
        return "", []

    async def _operation(self, message: Message, peer: Peer, name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The operation as the caller; where the policy says no, polkit is asked, and then as root."""
        try:
            return await self._api.call(peer, name, parameters)
        except PermissionDenied:
            interactive = bool(message.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)
            if self._bus is None or not await may_manage(self._bus, message.sender or "", interactive):
                raise
        return await self._api.call(Peer(uid=0, gid=0), name, parameters)

    async def _peer(self, sender: str) -> Peer:
        """Who sent it, as the bus says. Nobody, where it does not say."""
        assert self._bus is not None
        reply = await self._bus.call(
            Message(
                destination="org.freedesktop.DBus",
                path="/org/freedesktop/DBus",
                interface="org.freedesktop.DBus",
                member="GetConnectionCredentials",
                signature="s",
                body=[sender],
            )
        )
        if reply is None or reply.message_type is not MessageType.METHOD_RETURN:
            return Peer()
        said = reply.body[0]
        uid = said["UnixUserID"].value if "UnixUserID" in said else NOBODY
        groups = said["UnixGroupIDs"].value if "UnixGroupIDs" in said else []
        return Peer(uid=uid, groups=frozenset(groups))


class _BusError(Exception):
    def __init__(self, name: str, text: str) -> None:
        self.name = name
        super().__init__(text)


def _properties(message: Message) -> Body:
    values = {"Version": Variant("s", bgtaskd.__version__)}
    interface = message.body[0] if message.body else ""
    if message.member == "GetAll" and message.signature == "s":
        return "a{sv}", [values if interface in (MANAGER, "") else {}]
    if message.member == "Get" and message.signature == "ss":
        if interface == MANAGER and message.body[1] in values:
            return "v", [values[message.body[1]]]
        raise _BusError("UnknownProperty", f"there is no property {message.body[1]}")
    raise _BusError("UnknownMethod", f"there is no method {message.member}")


def _row(task: Task) -> list[Any]:
    result = "" if task.result is None else task.result.value
    return [task.id, task.spec.name, task.public_state().value, result, task.user]


def _variant(value: Any) -> Variant | None:
    if isinstance(value, bool):
        return Variant("b", value)
    if isinstance(value, int):
        return Variant("x", value)
    if isinstance(value, float):
        return Variant("d", value)
    if isinstance(value, str):
        return Variant("s", value)
    return None if value is None else Variant("s", json.dumps(value))


def _machine_id() -> str:
    with open("/etc/machine-id") as file:
        return file.read().strip()


def bus_type_for(user_mode: bool) -> BusType | None:
    """Which bus; None where there is none to talk to."""
    if user_mode:
        return BusType.SESSION if "DBUS_SESSION_BUS_ADDRESS" in os.environ else None
    return BusType.SYSTEM
=======
import contextlib
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from dbus_next import Message, MessageFlag, MessageType, Variant

from bgtaskd import errors, model
from bgtaskd.daemon import bus_signals, polkit
from bgtaskd.daemon.bus_connection import BusError, Callers, Connection
from bgtaskd.daemon.bus_interface import (
    METHODS,
    PROPERTIES,
    Method,
    introspection,
    property_values,
    text,
)
from bgtaskd.daemon.bus_signals import INTERFACE, PATH, Outbox, OutboxFull
from bgtaskd.protocol.server import Peer

logger = logging.getLogger(__name__)

NAME: Final = "org.bgtaskd1"
SYSTEM_BUS: Final = "unix:path=/run/dbus/system_bus_socket"
FIRST_ATTEMPT: Final = 5.0
"""Seconds that the start of the daemon may wait for the bus."""
BACK_OFF: Final = (0.2, 30.0)
"""Seconds before the first and, doubling, between later attempts to get back on the bus."""
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


def bus_address(user: bool) -> str:
    """Where the bus is: the system's, or the user's own."""
    if not user:
        return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", SYSTEM_BUS)
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    return os.environ.get("DBUS_SESSION_BUS_ADDRESS", f"unix:path={runtime}/bus")


class Bus:
    """org.bgtaskd1 on a bus. For one event loop; nothing in here may be called from another thread.

    user: the bus is the user's own. Then signals carry messages and payloads too, and polkit is not asked.
    """

    def __init__(self, facade: Facade, *, user: bool = False, address: str | None = None) -> None:
        self._facade = facade
        self._user = user
        self._address = address or bus_address(user)
        self._connection: Connection | None = None
        self._named = asyncio.Event()
        self._callers: Callers | None = None
        self._outbox = Outbox()
        self._sending: asyncio.Future[None] | None = None
        self._flush_due = False
        self._calls: Counter[int] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None

    # On and off the bus.

    async def start(self) -> None:
        """Get on the bus; if that fails, say so and go on trying behind the scenes. Never raises."""
        tried = asyncio.Event()
        self._keeper = asyncio.create_task(self._keep_connected(tried), name="bus")
        await tried.wait()

    async def stop(self) -> None:
        """Send what waits, give the name back, and leave."""
        if self._connection is not None and (self._outbox or self._sending):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    while self._outbox or self._sending:
                        self._flush()
                        if self._sending is not None:
                            await asyncio.wait([self._sending])
        for task in (self._keeper, *self._tasks):
            if task is not None:
                task.cancel()
        await asyncio.gather(
            *([self._keeper] if self._keeper else []), *self._tasks, return_exceptions=True
        )
        self._keeper = None

    @property
    def connected(self) -> bool:
        """Whether the daemon is on the bus now, by its name."""
        return self._named.is_set()

    async def _keep_connected(self, tried: asyncio.Event) -> None:
        delay, longest = BACK_OFF
        told = False
        while True:
            try:
                connection = await self._connect()
                tried.set()
            except Exception as error:  # noqa: BLE001 - without the bus the daemon goes on, whatever it is
                if not told:
                    logger.warning("cannot get on the bus at %s: %s", self._address, error)
                told = True
            else:
                told = False
                delay = BACK_OFF[0]
                try:
                    await connection.wait_for_disconnect()
                except Exception as error:  # noqa: BLE001 - dbus-next hands on whatever ended it
                    logger.warning("lost the bus: %r", error)
                else:
                    logger.warning("lost the bus")
                finally:
                    self._forget(connection)
            tried.set()
            await asyncio.sleep(delay)
            delay = min(longest, delay * 2)

    async def _connect(self) -> Connection:
        connection = Connection(self._address)
        try:
            async with asyncio.timeout(FIRST_ATTEMPT):
                connection.add_message_handler(self._on_message)
                await connection.connect()
                # Calls may come with the name, before we are told that we have it.
                self._connection = connection
                self._callers = Callers(connection)
                # No flags: should our predecessor still be leaving, the name is ours the moment it has.
                body = [NAME, 0]
                path = "/org/freedesktop/DBus"
                await connection.ask(_FREEDESKTOP, path, _FREEDESKTOP, "RequestName", "su", body)
        except BaseException:
            self._forget(connection)
            raise
        if not self._named.is_set():
            logger.warning("%s belongs to another process: waiting for it", NAME)
        return connection

    def _forget(self, connection: Connection) -> None:
        self._connection = self._callers = self._sending = None
        self._named.clear()
        connection.close()

    # Signals.

    def announce(self, kind: str, task: model.Task, extra: Mapping[str, Any] | None = None) -> None:
        """Tell the bus. Cheap, never waits, never raises.

        kind: "added", "changed", "finished", or "signaled" (extra: its name and payload, any JSON value);
        others say nothing on the bus.
        """
        if kind == "changed":
            self._put(task.id, "TaskChanged", bus_signals.changed_body(task, self._user))
        elif kind == "added":
            self._put(task.id, "TaskAdded", bus_signals.added_body(task.id))
        elif kind == "finished":
            result = "" if task.result is None else task.result.value
            state = task.public_state().value
            body = bus_signals.two_strings_body(task.id, state, result)
            self._put(task.id, "TaskFinished", body)
        elif kind == "signaled" and extra is not None:
            payload = extra.get("payload")
            words = model.canonical_json(payload) if self._user and payload is not None else ""
            body = bus_signals.two_strings_body(task.id, extra["name"], words)
            self._put(task.id, "TaskSignaled", body)

    def _put(self, task_id: int, member: str, body: bytes) -> None:
        try:
            self._outbox.put(task_id, member, body)
        except OutboxFull:
            if self._connection is not None:
                # Who listens sees that the name has gone, and lists again: better than a silent gap.
                logger.error("the bus takes no more signals: leaving it")
                self._connection.disconnect()
            return
        if not self._flush_due and self._sending is None and self._named.is_set():
            # What else happens in this turn of the event loop goes out in the same write.
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self, _: asyncio.Future[None] | None = None) -> None:
        self._flush_due = False
        connection = self._connection
        # Not before the name is ours: listeners wait for signals of that name.
        if connection is None or not connection.connected or not self._named.is_set():
            return
        if self._sending is not None:
            if not self._sending.done():
                return
            self._sending.exception()
            self._sending = None
        if self._outbox:
            self._sending = connection.write(self._outbox.take(connection.next_serial))
            self._sending.add_done_callback(self._flush)

    # Calls.

    def _on_message(self, message: Any) -> bool:
        if message.message_type is MessageType.SIGNAL:
            acquired = message.sender == _FREEDESKTOP and message.member == "NameAcquired"
            if acquired and message.body == [NAME]:
                self._named.set()
                self._flush()
            return True
        if message.message_type is not MessageType.METHOD_CALL:
            return False
        connection = self._connection
        if connection is None:
            return True
        task = asyncio.get_running_loop().create_task(self._answer(connection, message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _dispatch(self, connection: Connection, message: Any) -> Any:
        """The reply. Raises Refusal, and what operations raise."""
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
            return await self._properties(message)
        method = METHODS.get(member)
        if method is None or interface not in (None, INTERFACE):
            raise _unknown_method(message)
        if message.signature != method.signature_in:
            raise Refusal(
                _ERROR + "InvalidArgs",
                f'{member} takes "{method.signature_in}", not "{message.signature}"',
            )
        return await self._method(connection, message, method)

    async def _properties(self, message: Any) -> Any:
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
        async with self._as_caller(message) as peer:
            values = property_values(await self._facade.call(peer, "Status", {}))
        if message.member == "Get":
            value: Variant = values[message.body[1]]
            return Message.new_method_return(message, "v", [value])
        return Message.new_method_return(message, "a{sv}", [values])

    async def _method(self, connection: Connection, message: Any, method: Method) -> Any:
        async with self._as_caller(message) as peer:
            parameters = method.parameters(*message.body)
            try:
                result = await self._facade.call(peer, method.name, parameters)
            except (errors.PermissionDenied, errors.NoSuchTask) as refusal:
                # The daemon does not tell strangers which tasks there are: either may mean "not yours".
                if self._user or peer.uid == 0 or not method.is_about_a_task:
                    raise
                await self._authorize(connection, message, peer, method, refusal)
                # As an administrator, then: polkit's yes says no less than that.
                admin = Peer(uid=0, gid=0, pid=peer.pid, groups=())
                result = await self._facade.call(admin, method.name, parameters)
        return Message.new_method_return(message, method.signature_out, method.answer(result))

    async def _authorize(
        self,
        connection: Connection,
        message: Any,
        peer: Peer,
        method: Method,
        refusal: errors.BgtaskdError,
    ) -> None:
        """Return if polkit lets the caller manage other people's tasks; else raise the refusal."""
        interactive = bool(message.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)
        details = {"verb": method.name, "id": str(message.body[0])}
        answer = await polkit.may_manage(connection, message.sender, interactive, details)
        if answer is polkit.Answer.YES:
            logger.info(
                "polkit lets uid %d (%s) %s task %d",
                peer.uid,
                message.sender,
                method.name,
                message.body[0],
            )
            return
        if answer is polkit.Answer.WOULD_ASK and isinstance(refusal, errors.PermissionDenied):
            raise Refusal(
                _ERROR + "InteractiveAuthorizationRequired", "Interactive authentication required."
            )
        raise refusal

    @contextlib.asynccontextmanager
    async def _as_caller(self, message: Any) -> AsyncIterator[Peer]:
        """Who calls, while one of their calls is under way."""
        if self._callers is None:
            raise Refusal(_ERROR + "Disconnected", "the bus has gone")
        peer = await self._callers.peer(message.sender)
        if self._calls[peer.uid] >= CALLS_PER_USER:
            raise Refusal(_ERROR + "LimitsExceeded", f"more than {CALLS_PER_USER} calls under way")
        self._calls[peer.uid] += 1
        try:
            yield peer
        finally:
            self._calls[peer.uid] -= 1
            if not self._calls[peer.uid]:
                del self._calls[peer.uid]

    async def _answer(self, connection: Connection, message: Any) -> None:
        """Every error becomes D-Bus's here, and nowhere else."""
        try:
            reply = await self._dispatch(connection, message)
        except Refusal as refusal:
            self._refuse(connection, message, refusal)
        except errors.RemoteError as error:
            name = f"{NAME}.Error.{error.name.rpartition('.')[2]}"
            self._refuse(connection, message, Refusal(name, str(error)))
        except BusError as error:
            self._refuse(connection, message, Refusal(_ERROR + "AccessDenied", str(error)))
        except Exception:
            logger.exception("%s over D-Bus", message.member)
            self._refuse(connection, message, Refusal(_ERROR + "Failed", "internal error"))
        else:
            self._reply(connection, message, reply)

    def _refuse(self, connection: Connection, message: Any, refusal: Refusal) -> None:
        words = text(str(refusal))
        self._reply(connection, message, Message.new_error(message, refusal.name, words))

    def _reply(self, connection: Connection, message: Any, reply: Any) -> None:
        if not message.flags & MessageFlag.NO_REPLY_EXPECTED and connection.connected:
            connection.reply(reply)


def _unknown_method(message: Any) -> Refusal:
    return Refusal(
        _ERROR + "UnknownMethod", f"there is no method {message.interface}.{message.member} here"
    )


def _machine_id() -> str:
    return Path("/etc/machine-id").read_text("ascii").strip()
>>>>>>> main
