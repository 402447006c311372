# SPDX-License-Identifier: LGPL-2.1-or-later
"""Scopes, through PID 1 (or the user's own systemd), by pystemd on one kept connection.

pystemd looks each property up in a table of its own that lacks several of ours (PIDs= among them);
"_custom" with (name, signature, value) is its way out, and the only way in this module.
"""

from __future__ import annotations

import contextlib
import errno
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from pystemd.dbusexc import DBusBaseError, DBusNoSuchUnitError
from pystemd.dbuslib import DBus
from pystemd.systemd1 import Manager

from bgtaskd.launcher.messages import SystemdError

Property = tuple[str, str, Any]
Done = Callable[[str], None]

NO_SUCH_UNIT: Final = "org.freedesktop.systemd1.NoSuchUnit"
MANAGER: Final = b"org.freedesktop.systemd1.Manager"
RECONNECT_SECONDS: Final = 30.0
# The bus hung up, whichever call noticed it.
BROKEN: Final = frozenset({errno.ECONNRESET, errno.ENOTCONN, errno.EPIPE, errno.EBADF})


class _Properties:
    """What pystemd takes for a mapping: `.items()` may yield its one key many times."""

    def __init__(self, properties: list[Property]) -> None:
        self._properties = properties

    def items(self) -> Iterator[tuple[bytes, tuple[bytes, bytes, Any]]]:
        for name, signature, value in self._properties:
            yield b"_custom", (name.encode(), signature.encode(), _bytes(value))


def _bytes(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list):
        return [_bytes(one) for one in value]
    if isinstance(value, tuple):
        return tuple(_bytes(one) for one in value)
    return value


class Scopes:
    """The connection to systemd. It comes back by itself when the bus was restarted."""

    def __init__(self, user_mode: bool = False) -> None:
        self._user_mode = user_mode
        self._jobs: dict[bytes, tuple[str, Done]] = {}
        self._early: dict[bytes, str] = {}
        self._open()
        self.version = self._version()

    def _open(self) -> None:
        self._bus = DBus(user_mode=self._user_mode)
        self._bus.open()
        self._manager = Manager(bus=self._bus)
        self._manager.load()

        def on_job(message: Any, error: Any = None, userdata: Any = None) -> None:
            self._on_job(message)

        # pystemd sets an attribute on its callback (so no method will do) and keeps no reference to it.
        self._callback = on_job
        where = (self._manager.destination, self._manager.path)
        self._bus.match_signal(*where, MANAGER, b"JobRemoved", on_job, None)
        self._manager.Manager.Subscribe()

    def _open_again(self) -> None:
        """The connection broke: make a new one, and ask what became of the jobs under way."""
        sys.stderr.write("<4>Lost the connection to systemd; connecting again\n")
        deadline = time.monotonic() + RECONNECT_SECONDS
        while True:
            try:
                self._open()
                break
            except DBusBaseError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        jobs, self._jobs = self._jobs, {}
        for unit, done in jobs.values():
            try:
                self._manager.Manager.GetUnit(unit.encode())
                done("done")  # PID 1 has it, and a scope's start job does nothing but make it
            except DBusBaseError:
                done("lost")

    def _version(self) -> int:
        text = self._manager.Manager.Version.decode()
        digits = "".join(one if one.isdigit() else " " for one in text).split()
        return int(digits[0])

    def fileno(self) -> int:
        """For poll()."""
        return int(self._bus.get_fd())

    def process(self) -> None:
        """Handle what has come in; must be called after every call too: replies bring signals along."""
        try:
            while not self._bus.process().is_empty():
                pass
            self._early.clear()  # other people's jobs: ours are known before anything is processed
        except DBusBaseError:
            self._open_again()

    def wait(self) -> None:
        """Block until something comes in, and handle it: only at start-up, with nothing else to do."""
        self._bus.wait(1_000_000)
        self.process()

    def tick(self) -> float | None:
        """Nothing is ever due here: PID 1 keeps the clocks."""
        return None

    def _on_job(self, message: Any) -> None:
        message.process_reply(False)
        _, path, _, result = message.body
        job = self._jobs.pop(path, None)
        if job is not None:
            job[1](result.decode())
        else:
            self._early[path] = result.decode()

    def start_scope(self, unit: str, properties: list[Property], done: Done) -> None:
        """Start a scope; ``done`` gets the job's result ("done", "failed", …). Raises SystemdError."""
        job = self._call("StartTransientUnit", unit.encode(), b"fail", _Properties(properties))
        result = self._early.pop(job, None)
        self._early.clear()
        if result is None:
            self._jobs[job] = (unit, done)
        else:
            done(result)

    def start_unit(self, unit: str, properties: list[Property]) -> None:
        """Start any other transient unit. Raises SystemdError."""
        self._call("StartTransientUnit", unit.encode(), b"fail", _Properties(properties))

    def unit_property(self, unit: str, interface: str, name: str, signature: str = "s") -> Any:
        """A property of a unit that is loaded (text decoded); None of one that is not."""
        where = f"org.freedesktop.systemd1.{interface}".encode()
        try:
            path = self._manager.Manager.GetUnit(unit.encode())
            value = self._bus.get_property(
                self._manager.destination, path, where, name.encode(), signature.encode()
            )
        except DBusBaseError:
            return None
        return value.decode() if isinstance(value, bytes) else value

    def stop(self, unit: str, grace: float) -> None:
        """SIGTERM to all, SIGKILL after the scope's own TimeoutStopUSec. Raises SystemdError."""
        self._call("StopUnit", unit.encode(), b"replace")

    def stop_empty(self, unit: str) -> None:
        """Stop a scope in which nothing lives any more.

        systemd may miss it: the process of a scope that dies just while the scope is started leaves an empty
        one that is active for ever (seen with 252, in one of some hundred launchers killed at that moment).
        """
        group = self.unit_property(unit, "Scope", "ControlGroup")
        if not group:
            return
        try:
            with open(f"/sys/fs/cgroup{group}/cgroup.events") as events:
                is_empty = "populated 0" in events.read()
        except OSError:
            is_empty = True
        if is_empty:
            with contextlib.suppress(SystemdError):
                self.stop(unit, 0)

    def kill(self, unit: str, number: int) -> None:
        """A signal to all processes. Raises SystemdError."""
        self._call("KillUnit", unit.encode(), b"all", number)

    def freeze(self, unit: str) -> None:
        """Freeze. Raises SystemdError."""
        self._call("FreezeUnit", unit.encode())

    def thaw(self, unit: str) -> None:
        """Thaw. Raises SystemdError."""
        self._call("ThawUnit", unit.encode())

    def set_properties(self, unit: str, properties: list[Property]) -> None:
        """Change cgroup properties until the next boot. Raises SystemdError."""
        self._call("SetUnitProperties", unit.encode(), True, _Properties(properties))

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self._manager.Manager, method)(*arguments)
        except DBusBaseError as error:
            if -error.errno not in BROKEN:
                raise _told(error) from None
        self._open_again()
        try:
            return getattr(self._manager.Manager, method)(*arguments)
        except DBusBaseError as error:
            raise _told(error) from None


def _told(error: DBusBaseError) -> SystemdError:
    # Of errors that have a class of their own, pystemd tells no name.
    known = NO_SUCH_UNIT if isinstance(error, DBusNoSuchUnitError) else ""
    name = error.err_name.decode() if error.err_name else known
    return SystemdError(name, (error.err_message or b"").decode())
