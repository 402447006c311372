# SPDX-License-Identifier: LGPL-2.1-or-later
"""The D-Bus door: org.bgtaskd1 on the system bus, or on a user's own.

It has no rules and no state of its own. A method is an operation of the daemon, called as the user whom the
bus names (bus_calls); an event of the daemon is a signal. The interface is in bus_methods and bus_interface,
described in org.bgtaskd1(7).

Signals are broadcast, and everybody on the machine may listen: on the system bus they say which task is how
far and no more than that. What a task wrote or was told is for those who may Get it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping
from typing import Any, Final

from dbus_next import MessageType

from bgtaskd import model
from bgtaskd.daemon import bus_signals
from bgtaskd.daemon.bus_calls import NAME, Calls, Facade, Incoming
from bgtaskd.daemon.bus_connection import Callers, Connection
from bgtaskd.daemon.bus_signals import Outbox, OutboxFull, Pace

logger = logging.getLogger(__name__)

SYSTEM_BUS: Final = "unix:path=/run/dbus/system_bus_socket"
FIRST_ATTEMPT: Final = 5.0
"""Seconds that the start of the daemon may wait for the bus."""
BACK_OFF: Final = (0.2, 30.0)
"""Seconds before the first and, doubling, between later attempts to get back on the bus."""

_FREEDESKTOP: Final = "org.freedesktop.DBus"


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
        self._calls = Calls(facade, user=user)
        self._user = user
        self._address = address or bus_address(user)
        self._connection: Connection | None = None
        self._named = asyncio.Event()
        self._callers: Callers | None = None
        self._outbox = Outbox()
        self._pace = Pace(self._changed)
        self._sending: asyncio.Future[None] | None = None
        self._flush_due = False
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
                logger.info("on the bus")
                try:
                    await connection.wait_for_disconnect()
                except EOFError:
                    logger.warning("lost the bus: it hung up")
                except Exception as error:  # noqa: BLE001 - dbus-next hands on whatever ended it
                    logger.warning("lost the bus: %r", error)
                else:
                    logger.warning("left the bus")
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
        others say nothing on the bus, and neither do bgtaskd's own processes.
        """
        if task.is_resident():
            return
        if kind == "changed":
            self._pace.changed(task)
        elif kind == "added":
            self._pace.knows(task)
            self._put(task.id, "TaskAdded", bus_signals.added_body(task.id))
        elif kind == "finished":
            self._pace.forget(task.id)
            result = "" if task.result is None else task.result.value
            state = task.public_state().value
            body = bus_signals.two_strings_body(task.id, state, result)
            self._put(task.id, "TaskFinished", body)
        elif kind == "signaled" and extra is not None:
            payload = extra.get("payload")
            words = model.canonical_json(payload) if self._user and payload is not None else ""
            body = bus_signals.two_strings_body(task.id, extra["name"], words)
            self._put(task.id, "TaskSignaled", body)

    def _changed(self, task: model.Task) -> None:
        self._put(task.id, "TaskChanged", bus_signals.changed_body(task, self._user))

    def _put(self, task_id: int, member: str, body: bytes) -> None:
        try:
            self._outbox.put(task_id, member, body)
        except OutboxFull:
            if self._connection is not None:
                # Who listens sees that the name has gone, and lists again: better than a silent gap.
                logger.error("the bus takes no more signals: leaving it")
                self._connection.disconnect()
            return
        if not self._flush_due and self._sending is None:
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
        connection, callers = self._connection, self._callers
        if connection is None or callers is None:
            return True
        call = Incoming(connection, callers, message)
        task = asyncio.get_running_loop().create_task(self._calls.answer(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True
