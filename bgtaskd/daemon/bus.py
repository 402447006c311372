# SPDX-License-Identifier: LGPL-2.1-or-later
"""org.bgtaskd1 on D-Bus: the same operations, and signals for whoever listens.

dbus-next's own service objects never tell a method who calls (python-dbus-next#93), so this serves the
messages themselves: one handler, one table. dbus-next is used in this module and in polkit.py only.
"""

from __future__ import annotations

import asyncio
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
