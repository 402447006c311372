# SPDX-License-Identifier: LGPL-2.1-or-later
"""The D-Bus door on a real bus of the test's own, seen by clients that are not ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dbus_next")
for program in ("dbus-daemon", "busctl", "gdbus", "dbus-send"):
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here", allow_module_level=True)

from dbus_next import Message, MessageFlag, MessageType, Variant
from dbus_next.aio import MessageBus

from bgtaskd import errors
from bgtaskd.daemon import bus as bus_module
from bgtaskd.daemon import bus_connection, bus_signals, polkit
from bgtaskd.daemon.bus import Bus
from bgtaskd.daemon.bus_calls import CALLS_PER_USER
from bgtaskd.daemon.bus_connection import Callers, Connection
from bgtaskd.daemon.bus_reader import VALUES_MAX
from bgtaskd.model import TEMPLATE, Result, State, TaskSpec
from bgtaskd.protocol.peer import NOBODY, Peer
from tests.unit.test_bus_signals import a_task

NAME = "org.bgtaskd1"
PATH = "/org/bgtaskd1"
MANAGER = "org.bgtaskd1.Manager"
PATIENCE = 10

CONFIG = """
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
    <allow user="*"/>
  </policy>
</busconfig>
"""


class Facade:
    """A daemon with one task of somebody else's (7), and one of everybody's (42)."""

    def __init__(self) -> None:
        self.calls: list[tuple[Peer, str, dict[str, Any]]] = []
        self.hold: asyncio.Event | None = None
        self.foreign: Exception = errors.PermissionDenied(reason="not yours")

    async def call(
        self, peer: Peer, operation: str, parameters: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        self.calls.append((peer, operation, dict(parameters)))
        if self.hold is not None:
            await self.hold.wait()
        if operation == "Status":
            tasks = {"running": 2, "paused": 1, "queued": 3, "delayed": 4, "finished": 100}
            return {"version": "0.1", "launcher": "process", "tasks": tasks}
        if operation == "Start":
            return {"id": 43, "merged": False}
        if operation == "List":
            return {"tasks": [a_task(percent=50.0).to_json(), a_task(7).to_json()]}
        task_id = parameters["id"]
        if task_id == 13:
            raise RuntimeError("a bug, with /secret/paths")
        if task_id == 7 and peer.uid != 0:
            raise self.foreign
        if task_id not in (7, 42):
            raise errors.NoSuchTask(id=task_id)
        if operation == "Get":
            task = a_task(task_id, message="hel\0lo").to_json()
            return {"task": task | {"settings": {"depth": 3}}}
        return {"seq": 3} if operation == "Signal" else {}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    house.start()
    yield house
    house.stop()


class House:
    """A bus daemon that can be stopped and started again."""

    def __init__(self, directory: Path) -> None:
        # Paths of sockets are short; pytest's directories are not always.
        self.socket = directory / "bus"
        self.config = directory / "bus.conf"
        self.config.write_text(CONFIG.format(socket=self.socket))
        self.address = f"unix:path={self.socket}"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["dbus-daemon", f"--config-file={self.config}", "--nofork", "--print-address"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.communicate()
            self.process = None
            self.socket.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def serving(
    house: House, facade: Facade | None = None, *, user: bool = True
) -> AsyncIterator[Bus]:
    bus = Bus(facade or Facade(), user=user, address=house.address)
    await bus.start()
    assert bus.connected
    try:
        yield bus
    finally:
        await bus.stop()


async def run(*argv: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def busctl(house: House, *argv: str) -> str:
    status, out, err = await run("busctl", f"--address={house.address}", "--no-pager", *argv)
    assert status == 0, err
    return out


async def call(house: House, member: str, *argv: str) -> str:
    """A method of the manager, called by busctl: what it prints."""
    return (await busctl(house, "call", "--", NAME, PATH, MANAGER, member, *argv)).strip()


async def error_of(house: House, member: str, *argv: str, path: str = PATH) -> tuple[str, str]:
    """The name and the text of the error that a call ends with, as gdbus tells it."""
    target = ["--dest", NAME, "--object-path", path, "--method", member]
    status, _, err = await run("gdbus", "call", "--address", house.address, *target, *argv)
    assert status == 1
    found = re.search(r"Error: (?:GDBus\.Error:)?([\w.]+): (.*)", err)
    assert found is not None, err
    return found[1], found[2].strip()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


def test_busctl_introspects(house: House) -> None:
    async def main() -> None:
        async with serving(house):
            out = await busctl(house, "introspect", NAME, PATH, MANAGER)
            rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:]}
            assert rows[".Kill"][:3] == ["method", "tsi", "-"]
            assert rows[".List"][:3] == ["method", "-", "a(tssssssd)"]
            assert rows[".TaskChanged"][:2] == ["signal", "ta{sv}"]
            assert rows[".Version"] == ["property", "s", '"0.1"', "const"]
            assert rows[".NTasks"][:3] == ["property", "t", "10"]
            assert rows[".NRunning"][:3] == ["property", "t", "3"]
            tree = await busctl(house, "tree", "--list", NAME)
            assert tree.split() == ["/", "/org", "/org/bgtaskd1"]

    asyncio.run(main())


def test_methods_are_operations_of_the_caller(house: House) -> None:
    async def main() -> None:
        facade = Facade()
        async with serving(house, facade):
            assert await call(house, "Stop", "t", "42") == ""
            assert await call(house, "Pause", "t", "42") == ""
            assert await call(house, "Resume", "t", "42") == ""
            assert await call(house, "Kill", "tsi", "42", "main", "15") == ""
            assert await call(house, "Signal", "tss", "42", "hello", '{"a": 1}') == "t 3"
            listed = await call(house, "List")
            assert listed == (
                'a(tssssssd) 2 42 "a name" "running" "" "default" "alice" "bgtask-42.scope" 50'
                ' 7 "a name" "running" "" "default" "alice" "bgtask-7.scope" -1'
            )
        assert [(operation, parameters) for _, operation, parameters in facade.calls] == [
            ("Stop", {"id": 42}),
            ("Pause", {"id": 42}),
            ("Resume", {"id": 42}),
            ("Kill", {"id": 42, "signal": "15", "whom": "main"}),
            ("Signal", {"id": 42, "name": "hello", "payload": {"a": 1}}),
            ("List", {"limit": 1000}),
        ]
        for peer, _, _ in facade.calls:
            assert (peer.uid, peer.gid) == (os.getuid(), os.getgid())
            assert peer.pid > 0
            assert set(peer.groups) >= set(os.getgroups())

    asyncio.run(main())


def test_what_a_method_takes_may_be_as_large_as_over_the_control_socket(house: House) -> None:
    async def main() -> None:
        facade = Facade()
        async with serving(house, facade):
            argv = ["as", "3", "sh", "-c", "true"]
            settings = ["s", '{"a": 1}']
            hook = ["a{sv}", "1", "argv", "as", "1", "true"]
            spec = ["3", "argv", *argv, "settings", *settings, "on_end", *hook]
            assert await call(house, "Start", "a{sv}", *spec) == "tb 43 false"
            assert (
                await call(house, "Edit", "ta{sv}", "42", "1", "env", "a{ss}", "1", "A", "b") == ""
            )
            client = await MessageBus(bus_address=house.address).connect()
            long = {"argv": Variant("as", ["x" * 1000] * 1000)}
            reply = await client.call(method_call("Start", "a{sv}", [long]))
            assert reply.body == [43, False]
            too_long = {"argv": Variant("as", ["x" * 1000] * 1100)}
            reply = await client.call(method_call("Start", "a{sv}", [too_long]))
            assert reply.error_name == "org.freedesktop.DBus.Error.LimitsExceeded"
            reply = await client.call(method_call("Start", "a{sv}", [{"a": Variant("(s)", ["b"])}]))
            assert reply.error_name == "org.freedesktop.DBus.Error.InvalidArgs"
            reply = await client.call(method_call("Start", "a{sv}", [{"argv": Variant("s", "b")}]))
            assert reply.error_name == "org.bgtaskd1.Error.InvalidSpec"
            assert reply.body == ["argv: must be an array"]
            client.disconnect()
        spec_seen, changes, large = [parameters for _, _, parameters in facade.calls]
        assert spec_seen == {
            "spec": {
                "argv": ["sh", "-c", "true"],
                "settings": {"a": 1},
                "on_end": {"argv": ["true"]},
            }
        }
        assert changes == {"id": 42, "changes": {"env": {"A": "b"}}}
        assert len(large["spec"]["argv"]) == 1000

    asyncio.run(main())


def test_get(house: House) -> None:
    async def main() -> None:
        async with serving(house):
            argv = ["--json=short", "call", NAME, PATH, MANAGER, "Get", "t", "42"]
            [task] = json.loads(await busctl(house, *argv))["data"]
            assert task["id"] == {"type": "t", "data": 42}
            assert task["state"] == {"type": "s", "data": "running"}
            assert task["message"]["data"] == "hel\N{REPLACEMENT CHARACTER}lo"
            assert json.loads(task["settings"]["data"]) == {"depth": 3}
            assert "percent" not in task

    asyncio.run(main())


def test_errors_have_names(house: House) -> None:
    async def main() -> None:
        facade = Facade()
        standard = "org.freedesktop.DBus.Error."
        async with serving(house, facade):
            name, words = await error_of(house, f"{MANAGER}.Stop", "999")
            assert name == "org.bgtaskd1.Error.NoSuchTask"
            assert "999" in words
            name, words = await error_of(house, f"{MANAGER}.Stop", "13")
            assert (name, words) == (standard + "Failed", "internal error")
            name, words = await error_of(house, f"{MANAGER}.Signal", "42", "x", "{")
            assert name == "org.bgtaskd1.Error.InvalidSpec"
            assert "payload" in words
            for member, path, expected in (
                (f"{MANAGER}.Frobnicate", PATH, "UnknownMethod"),
                (f"{MANAGER}.Stop", "/org", "UnknownMethod"),
                (f"{MANAGER}.Stop", "/nowhere", "UnknownObject"),
            ):
                name, _ = await error_of(house, member, path=path)
                assert name == standard + expected
            properties = "org.freedesktop.DBus.Properties"
            for argv, expected in (
                (["Get", MANAGER, "Nothing"], "UnknownProperty"),
                (["Get", "org.other", "Version"], "UnknownInterface"),
                (["Set", MANAGER, "Version", "<'9'>"], "PropertyReadOnly"),
            ):
                name, _ = await error_of(house, f"{properties}.{argv[0]}", *argv[1:])
                assert name == standard + expected
            status, _, err = await run(
                "dbus-send",
                f"--bus={house.address}",
                "--print-reply",
                f"--dest={NAME}",
                PATH,
                f"{MANAGER}.Stop",
                "string:42",
            )
            assert status == 1
            assert standard + "InvalidArgs" in err

    asyncio.run(main())


@contextlib.asynccontextmanager
async def monitor(house: House) -> AsyncIterator[Callable[[], Awaitable[dict[str, Any]]]]:
    """`busctl monitor`: a function that returns the next signal of the manager."""
    process = await asyncio.create_subprocess_exec(
        "busctl",
        f"--address={house.address}",
        "--json=short",
        "monitor",
        f"--match=type='signal',sender='{NAME}'",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert b"Monitoring" in await asyncio.wait_for(process.stderr.readline(), PATIENCE)
    stdout = process.stdout

    async def following() -> dict[str, Any]:
        while True:
            line = await asyncio.wait_for(stdout.readline(), PATIENCE)
            message: dict[str, Any] = json.loads(line)
            if message.get("interface") == MANAGER:
                return message

    try:
        yield following
    finally:
        process.terminate()
        await process.communicate()


def said(message: dict[str, Any]) -> tuple[str, list[Any]]:
    return message["member"], message["payload"]["data"]


@pytest.mark.parametrize("user", [True, False], ids=["user", "system"])
def test_busctl_monitor_sees_the_signals(house: House, user: bool) -> None:
    async def main() -> None:
        async with serving(house, user=user) as bus, monitor(house) as following:
            bus.announce("added", a_task())
            assert said(await following()) == ("TaskAdded", [42])
            bus.announce("changed", a_task(percent=50.0, total=10, finished=5, message="secret"))
            member, [task_id, changes] = said(await following())
            assert (member, task_id) == ("TaskChanged", 42)
            assert {key: value["data"] for key, value in changes.items()} == {
                "state": "running",
                "percent": 50,
                "total": 10,
                "finished": 5,
            } | ({"message": "secret"} if user else {})
            bus.announce("signaled", a_task(), {"name": "hello", "payload": {"a": 1}})
            assert said(await following()) == (
                "TaskSignaled",
                [42, "hello", '{"a":1}' if user else ""],
            )
            ended = a_task(state=State.FINISHED, result=Result.SUCCESS)
            bus.announce("removed", ended)
            bus.announce("finished", ended)
            message = await following()
            assert said(message) == ("TaskFinished", [42, "finished", "success"])
            assert message["path"] == PATH

    asyncio.run(main())


def test_bgtaskds_own_processes_are_nobody_elses_business(house: House) -> None:
    async def main() -> None:
        async with serving(house) as bus, monitor(house) as following:
            own = replace(a_task(1), spec=TaskSpec(kind=TEMPLATE))
            bus.announce("added", own)
            bus.announce("changed", own)
            bus.announce("signaled", own, {"name": "hello", "payload": None})
            bus.announce("finished", own)
            bus.announce("added", a_task(2))
            assert said(await following()) == ("TaskAdded", [2])

    asyncio.run(main())


def test_signals_from_before_the_bus_and_after_its_restart(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "BACK_OFF", (0.01, 0.05))

    async def main() -> None:
        house.stop()
        bus = Bus(Facade(), user=True, address=house.address)
        await bus.start()
        assert not bus.connected
        for percent in range(100):
            bus.announce("changed", a_task(percent=float(percent)))
        house.start()
        await until(lambda: bus.connected)
        for task_id in (1, 2, 3):
            house.stop()
            await until(lambda: not bus.connected)
            house.start()
            await until(lambda: bus.connected)
            async with monitor(house) as following:
                bus.announce("added", a_task(task_id))
                assert said(await following()) == ("TaskAdded", [task_id])
        assert await call(house, "Stop", "t", "42") == ""
        descriptors = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            house.stop()
            await until(lambda: not bus.connected)
            house.start()
            await until(lambda: bus.connected)
        await until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)
        await bus.stop()
        await bus.stop()

    asyncio.run(main())


def test_a_bus_that_hangs_up_at_once_stops_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.close()

        path = tmp_path / "bus"
        async with await asyncio.start_unix_server(hang_up, path):
            bus = Bus(Facade(), address=f"unix:path={path}")
            await asyncio.wait_for(bus.start(), PATIENCE)
            assert not bus.connected
            await bus.stop()

    asyncio.run(main())


def test_a_second_daemon_waits_for_the_name(house: House) -> None:
    async def main() -> None:
        async with serving(house) as first:
            second = Bus(Facade(), address=house.address)
            await second.start()
            assert not second.connected
            second.announce("added", a_task(5))
            async with monitor(house) as following:
                await first.stop()
                assert said(await following()) == ("TaskAdded", [5])
            await until(lambda: second.connected)
            await second.stop()

    asyncio.run(main())


def test_many_signals_arrive_in_order(house: House) -> None:
    async def main() -> None:
        count = 3000
        async with serving(house) as bus, monitor(house) as following:
            for task_id in range(1, count + 1):
                bus.announce("added", a_task(task_id, state=State.QUEUED))
                bus.announce("changed", a_task(task_id))
                bus.announce("changed", a_task(task_id, percent=2.0))
                bus.announce("finished", a_task(task_id, state=State.STOPPED))
                if task_id % 50 == 0:
                    await asyncio.sleep(0)
            for task_id in range(1, count + 1):
                assert said(await following()) == ("TaskAdded", [task_id])
                told = []
                while (one := said(await following()))[0] == "TaskChanged":
                    assert one[1][0] == task_id
                    told.append(one[1][1])
                assert one == ("TaskFinished", [task_id, "stopped", ""])
                assert told[-1]["percent"]["data"] == 2
            assert not bus._pace._told

    asyncio.run(main())


def test_progress_is_told_ten_times_a_second(house: House) -> None:
    async def main() -> None:
        async with serving(house) as bus, monitor(house) as following:
            loop = asyncio.get_running_loop()
            began = loop.time()
            percent = 0.0
            while loop.time() < began + 0.55:
                percent += 0.01
                bus.announce("changed", a_task(percent=percent))
                await asyncio.sleep(0.002)
            bus.announce("changed", a_task(percent=percent, state=State.PAUSED))
            told: list[Any] = []
            while not told or told[-1]["state"]["data"] != "paused":
                _, [_, changes] = said(await following())
                told.append(changes)
            assert 5 <= len(told) <= 7
            # What comes at once, waits; its last word comes, with nothing more to push it out.
            for _ in range(10):
                percent += 0.01
                bus.announce("changed", a_task(percent=percent, state=State.PAUSED))
            _, [_, changes] = said(await following())
            assert changes["percent"]["data"] == pytest.approx(percent)

    asyncio.run(main())


def test_a_bus_that_stands_still_loses_nothing(house: House) -> None:
    async def main() -> None:
        count = 20_000
        async with serving(house) as bus, monitor(house) as following:
            assert house.process is not None
            house.process.send_signal(signal.SIGSTOP)
            for task_id in range(1, count + 1):
                bus.announce("added", a_task(task_id))
                if task_id % 1000 == 0:
                    await asyncio.sleep(0.001)
            for percent in range(1000):
                bus.announce("changed", a_task(1, percent=float(percent)))
            assert bus._sending is not None
            assert bus._outbox
            house.process.send_signal(signal.SIGCONT)
            for task_id in range(1, count + 1):
                assert said(await following()) == ("TaskAdded", [task_id])
            percent = 0
            while percent < 999:
                _, [_, changes] = said(await following())
                percent = changes["percent"]["data"]
            assert await call(house, "Stop", "t", "42") == ""

    asyncio.run(main())


def test_many_writes_wait_for_a_bus_that_stands_still(house: House) -> None:
    async def main() -> None:
        async with serving(house) as bus, monitor(house) as following:
            connection = bus._connection
            assert connection is not None
            assert house.process is not None
            house.process.send_signal(signal.SIGSTOP)
            body = bus_signals.two_strings_body(1, "a" * 1000, "")
            for _ in range(2000):
                message = bus_signals.message("TaskSignaled", body, connection.next_serial())
                connection.write(message)
            await asyncio.sleep(0.05)
            assert connection._writer.messages.qsize()
            house.process.send_signal(signal.SIGCONT)
            for _ in range(2000):
                assert (await following())["member"] == "TaskSignaled"
            assert bus._connection is connection

    asyncio.run(main())


def test_one_users_calls_under_way_are_bounded(house: House) -> None:
    async def main() -> None:
        facade = Facade()
        facade.hold = asyncio.Event()
        async with serving(house, facade):
            client = await MessageBus(bus_address=house.address).connect()
            calls = [
                asyncio.ensure_future(client.call(method_call("Stop", "t", [42])))
                for _ in range(CALLS_PER_USER + 1)
            ]
            done, _ = await asyncio.wait(
                calls, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED
            )
            [refused] = done
            assert refused.result().error_name == "org.freedesktop.DBus.Error.LimitsExceeded"
            facade.hold.set()
            answers = await asyncio.gather(*calls)
            kinds = [one.message_type for one in answers]
            assert kinds.count(MessageType.METHOD_RETURN) == CALLS_PER_USER
            again = await client.call(method_call("Stop", "t", [42]))
            assert again.message_type is MessageType.METHOD_RETURN
            client.disconnect()

    asyncio.run(main())


def method_call(member: str, signature: str, body: list[Any], **fields: Any) -> Any:
    return Message(
        destination=NAME,
        path=PATH,
        interface=MANAGER,
        member=member,
        signature=signature,
        body=body,
        **fields,
    )


# What strangers may send.


class RawClient:
    """A client that sends bytes."""

    def __init__(self, house: House) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(house.socket))
        self.socket.sendall(
            b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n"
        )
        self.socket.recv(1000)
        hello = Message(
            destination="org.freedesktop.DBus",
            path="/org/freedesktop/DBus",
            interface="org.freedesktop.DBus",
            member="Hello",
            serial=1,
        )
        self.serial = 1
        self.socket.sendall(b"BEGIN\r\n" + bytes(hello._marshall()))
        told = b""
        while b"NameAcquired" not in told:
            told += self.socket.recv(1000)

    def send(
        self, member: str, signature: str, body: bytes, *, flags: int = 0, more: bytes = b""
    ) -> None:
        message = method_call(member, signature, [])
        message.signature = ""
        raw = bytearray(message._marshall())
        fields = bytes(raw[16:])
        text = signature.encode()
        fields += b"\x08\x01g\0" + bytes([len(text)]) + text + b"\0"
        if more:
            fields += bytes(-len(fields) % 8) + more
        self.serial += 1
        numbers = (len(body), self.serial, len(fields))
        header = struct.pack("<BBBBIII", ord("l"), 1, flags, 1, *numbers)
        self.socket.sendall(header + fields + bytes(-len(fields) % 8) + body)


def test_a_large_nested_body_is_not_decoded(house: House) -> None:
    """Eight million booleans: dbus-next would decode them for many seconds, and nobody else would be served."""

    async def main() -> None:
        async with serving(house):
            loop = asyncio.get_running_loop()
            client = await asyncio.to_thread(RawClient, house)
            count = 2_000_000
            body = struct.pack("<I", 4 * count) + b"\x01\0\0\0" * count
            longest = 0.0
            sending = asyncio.ensure_future(asyncio.to_thread(client.send, "Stop", "ab", body))
            answer = asyncio.ensure_future(asyncio.to_thread(client.socket.recv, 10000))
            while not answer.done():
                before = loop.time()
                await asyncio.sleep(0.001)
                longest = max(longest, loop.time() - before)
            await sending
            assert b"InvalidArgs" in answer.result()
            assert longest < 0.5
            client.socket.close()

    asyncio.run(main())


def test_many_large_specs_leave_room_for_others(house: House) -> None:
    """As many values as may be, by many calls at once: in between, the event loop gets its turn."""

    async def main() -> None:
        facade = Facade()
        async with serving(house, facade):
            loop = asyncio.get_running_loop()
            client = await asyncio.to_thread(RawClient, house)
            count = VALUES_MAX - 10
            words = (struct.pack("<I", 1) + b"x\0\0\0") * count
            head = b"\x04\0\0\0argv\0\x02as\0\0\0\0"
            argv = head + struct.pack("<I", len(words) - 2) + words[:-2]
            body = struct.pack("<II", len(argv), 0) + argv
            longest = 0.0

            def send() -> None:
                for _ in range(20):
                    client.send("Start", "a{sv}", body, flags=1)

            sending = asyncio.ensure_future(asyncio.to_thread(send))
            async with asyncio.timeout(PATIENCE):
                while len(facade.calls) < 20:
                    before = loop.time()
                    await asyncio.sleep(0)
                    longest = max(longest, loop.time() - before)
            await sending
            assert len(facade.calls[0][2]["spec"]["argv"]) == count
            assert longest < 0.5
            client.socket.close()

    asyncio.run(main())


def test_messages_of_the_future_are_skipped(house: House) -> None:
    async def main() -> None:
        async with serving(house) as bus:
            connection = bus._connection
            client = await asyncio.to_thread(RawClient, house)
            field_of_the_future = b"\x4d\x01y\0\x07"
            client.send("Stop", "t", struct.pack("<Q", 42), more=field_of_the_future)
            client.send("Stop", "t", struct.pack("<Q", 42))
            answer = await asyncio.to_thread(client.socket.recv, 10000)
            assert b"Error" not in answer
            assert bus._connection is connection
            assert bus.connected
            client.socket.close()

    asyncio.run(main())


def test_a_flood_leaves_room_for_others(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are read in helpings: in between, the event loop gets its turn."""
    handled = []
    turns = 0

    def count_message(_: Connection, message: Any) -> None:
        handled.append(turns)

    async def main() -> None:
        nonlocal turns
        async with serving(house):
            client = await asyncio.to_thread(RawClient, house)
            monkeypatch.setattr(Connection, "_on_message", count_message)
            for _ in range(500):
                client.send("Stop", "t", struct.pack("<Q", 42), flags=1)
            async with asyncio.timeout(PATIENCE):
                while len(handled) < 500:
                    await asyncio.sleep(0)
                    turns += 1
            client.socket.close()
        most = max(handled.count(turn) for turn in set(handled))
        assert most <= bus_connection.MESSAGES_A_TURN

    asyncio.run(main())


# Who calls.


def test_groups_are_looked_up_where_the_bus_does_not_tell() -> None:
    gid, groups = bus_connection.groups_of(os.getuid(), None)
    assert gid == os.getgid()
    assert gid in groups
    assert bus_connection.groups_of(os.getuid(), [5, 6]) == (os.getgid(), frozenset({5, 6}))
    assert bus_connection.groups_of(3_999_999_999, None) == (NOBODY, frozenset())


def test_a_caller_is_looked_up_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_connection, "PEERS_REMEMBERED", 2)

    async def main() -> None:
        connection = Connection(house.address)
        await connection.connect()
        callers = Callers(connection)
        name = connection.unique_name
        one, other = await asyncio.gather(callers.peer(name), callers.peer(name))
        assert one is other
        assert one.uid == os.getuid()
        assert one.pid == os.getpid()
        for unknown in (":9.1", ":9.2", ":9.3"):
            with pytest.raises(bus_connection.BusError):
                await callers.peer(unknown)
            assert unknown not in callers._known
        for number in range(5):
            callers._known[str(number)] = callers._known[name]
        await callers.peer("org.freedesktop.DBus")
        assert list(callers._known) == ["4", "org.freedesktop.DBus"]
        connection.close()

    asyncio.run(main())


# polkit.


class Polkit:
    """A polkit on the test's bus that says what the test wants."""

    def __init__(self, *answer: bool) -> None:
        self.answer: Any = [*answer, {}]
        self.asked: list[Any] = []

    async def connect(self, house: House) -> MessageBus:
        bus = await MessageBus(bus_address=house.address).connect()
        bus.add_message_handler(self.handle)
        await bus.request_name("org.freedesktop.PolicyKit1")
        return bus

    def handle(self, message: Any) -> Any:
        if message.member != "CheckAuthorization":
            return None
        self.asked.append(message.body)
        if self.answer is None:
            return Message.new_error(message, "org.freedesktop.PolicyKit1.Error.Failed", "no")
        return Message.new_method_return(message, "(bba{ss})", [self.answer])


def with_polkit(
    house: House,
    authority: Polkit | None,
    member: str,
    signature: str,
    body: list[Any],
    foreign: Exception | None = None,
    **fields: Any,
) -> tuple[Any, Facade]:
    """Call a method as somebody who is not root; the reply, and what the daemon was asked."""
    facade = Facade()
    if foreign is not None:
        facade.foreign = foreign

    async def main() -> Any:
        async with serving(house, facade, user=False):
            served = await authority.connect(house) if authority else None
            client = await MessageBus(bus_address=house.address).connect()
            message = method_call(member, signature, body, **fields)
            reply = await asyncio.wait_for(client.call(message), PATIENCE)
            if authority:
                for subject, *_ in authority.asked:
                    assert subject[0] == "system-bus-name"
                    assert subject[1]["name"] == Variant("s", client.unique_name)
            for one in (client, served):
                if one is not None:
                    one.disconnect()
            return reply

    return asyncio.run(main()), facade


@pytest.fixture
def not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, who is never asked."""

    async def look_up(_: Callers, name: str) -> Peer:
        return Peer(uid=1234, gid=1234, pid=1, groups={1234})

    monkeypatch.setattr(Callers, "_look_up", look_up)


@pytest.mark.usefixtures("not_root")
class TestPolkit:
    def test_yes(self, house: House) -> None:
        authority = Polkit(True, False)
        for foreign in (errors.PermissionDenied(reason="not yours"), errors.NoSuchTask(id=7)):
            reply, facade = with_polkit(house, authority, "Stop", "t", [7], foreign)
            assert reply.message_type is MessageType.METHOD_RETURN
            assert [peer.uid for peer, *_ in facade.calls] == [1234, 0]
            [asked] = authority.asked
            authority.asked.clear()
        _, action, details, flags, _ = asked
        assert (action, details, flags) == (polkit.MANAGE, {"verb": "Stop", "id": "7"}, 0)

    def test_no(self, house: House) -> None:
        reply, facade = with_polkit(house, Polkit(False, False), "Stop", "t", [7])
        assert reply.error_name == "org.bgtaskd1.Error.PermissionDenied"
        assert [peer.uid for peer, *_ in facade.calls] == [1234]

    def test_would_ask(self, house: House) -> None:
        reply, _ = with_polkit(house, Polkit(False, True), "Stop", "t", [7])
        assert reply.error_name == "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"

    def test_asks_when_the_caller_wants_it(self, house: House) -> None:
        authority = Polkit(True, False)
        flags = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION
        reply, _ = with_polkit(house, authority, "Kill", "tsi", [7, "all", 9], flags=flags)
        assert reply.message_type is MessageType.METHOD_RETURN
        assert authority.asked[0][3] == 1

    def test_what_runs_as_them_is_their_owners_business(self, house: House) -> None:
        authority = Polkit(True, False)
        changes = {"argv": Variant("as", ["true"])}
        for member, signature, body in (
            ("Edit", "ta{sv}", [7, changes]),
            ("Retry", "ta{sv}", [7, changes]),
            ("Send", "tsb", [7, "true", False]),
        ):
            reply, facade = with_polkit(house, authority, member, signature, body)
            assert reply.error_name == "org.bgtaskd1.Error.PermissionDenied"
            assert len(facade.calls) == 1
        assert authority.asked == []
        reply, _ = with_polkit(house, authority, "Retry", "ta{sv}", [7, {}])
        assert reply.message_type is MessageType.METHOD_RETURN

    def test_own_tasks_need_no_polkit(self, house: House) -> None:
        authority = Polkit(False, False)
        reply, _ = with_polkit(house, authority, "Stop", "t", [42])
        assert reply.message_type is MessageType.METHOD_RETURN
        assert authority.asked == []

    def test_other_refusals_are_final(self, house: House) -> None:
        authority = Polkit(True, False)
        foreign = errors.InvalidSpec(field="id", reason="no")
        reply, _ = with_polkit(house, authority, "Stop", "t", [7], foreign)
        assert reply.error_name == "org.bgtaskd1.Error.InvalidSpec"
        assert authority.asked == []

    def test_absent_means_no(self, house: House) -> None:
        reply, facade = with_polkit(house, None, "Stop", "t", [7])
        assert reply.error_name == "org.bgtaskd1.Error.PermissionDenied"
        assert len(facade.calls) == 1

    def test_failing_means_no(self, house: House) -> None:
        authority = Polkit()
        authority.answer = None
        reply, _ = with_polkit(house, authority, "Stop", "t", [7])
        assert reply.error_name == "org.bgtaskd1.Error.PermissionDenied"
        assert len(authority.asked) == 1

    def test_silence_means_no(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(polkit, "TIMEOUT", 0.05)
        authority = Polkit()

        def say_nothing(message: Any) -> Any:
            return message.member == "CheckAuthorization"

        monkeypatch.setattr(authority, "handle", say_nothing)
        reply, _ = with_polkit(house, authority, "Stop", "t", [7])
        assert reply.error_name == "org.bgtaskd1.Error.PermissionDenied"
