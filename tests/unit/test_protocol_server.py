# SPDX-License-Identifier: LGPL-2.1-or-later
"""The serving end and both clients, over real sockets, with handlers made for the purpose."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bgtaskd import AsyncClient, Client
from bgtaskd.client import blocking
from bgtaskd.errors import NoSuchTask, NotReachable, TooManyRequests
from bgtaskd.protocol import server as server_module
from bgtaskd.protocol.codec import MESSAGE_MAX
from bgtaskd.protocol.server import Call, Limits, Server, Streamed

TASK = {"id": 1, "name": "n", "state": "running"}


class House:
    """A server in a thread of its own, and what its handlers saw."""

    def __init__(self, path: str, limits: Limits) -> None:
        self.path = path
        self.limits = limits
        self.peers: list[Any] = []
        self.signalled: list[str] = []
        self.watching = threading.Semaphore(0)
        self.watch_ended = threading.Event()
        self.signal_done = threading.Event()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.open()

    def open(self) -> None:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(self.path)
        self.server = Server(
            {
                "Get": self.get,
                "Status": self.status,
                "Signal": self.signal,
                "Watch": self.watch,
                "GetConfig": self.get_config,
            },
            self.limits,
        )
        asyncio.run_coroutine_threadsafe(self.server.serve(listening), self.loop).result(5)

    def call_in_loop(self, work: Callable[[], Any]) -> Any:
        async def run() -> Any:
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(5)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.server.close(), self.loop).result(5)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()

    async def get(self, call: Call) -> dict[str, Any]:
        if call.parameters["id"] != 1:
            raise NoSuchTask(id=call.parameters["id"])
        return {"task": TASK}

    async def status(self, call: Call) -> dict[str, Any]:
        self.peers.append(call.peer)
        return {"version": "0"}

    async def signal(self, call: Call) -> dict[str, Any]:
        await asyncio.sleep(0.05)  # as long as a commit
        self.signalled.append(call.parameters["name"])
        self.signal_done.set()
        return {"seq": len(self.signalled)}

    async def get_config(self, call: Call) -> dict[str, Any]:
        return {"config": float("inf")}

    async def watch(self, call: Call) -> AsyncGenerator[Streamed, None]:
        try:
            yield {"event": "changed", "task": TASK}, True
            self.watching.release()
            await asyncio.Event().wait()
        finally:
            self.watch_ended.set()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    one = House(str(tmp_path / "s"), Limits(connections_per_user=20, requests_per_user=10))
    yield one
    one.close()


def dial(house: House) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(5)
    sock.connect(house.path)
    return sock


def raw(method: str, /, **rest: Any) -> bytes:
    return json.dumps({"method": method, **rest}).encode() + b"\0"


def hear(sock: socket.socket, number: int = 1) -> list[dict[str, Any]]:
    """That many replies, or those before the end."""
    data = b""
    while data.count(b"\0") < number:
        piece = sock.recv(65536)
        if not piece:
            break
        data += piece
    return [json.loads(one) for one in data.split(b"\0")[:-1]]


SIGNAL = "org.bgtaskd.Signal"


def test_pipelined_calls_are_answered_in_order_and_more_than_may_wait_are_only_read_later(
    house: House,
) -> None:
    with dial(house) as sock:
        calls = [raw(SIGNAL, parameters={"id": 1, "name": str(number)}) for number in range(25)]
        sock.sendall(b"".join(calls))
        replies = hear(sock, 25)
    assert [one["parameters"]["seq"] for one in replies] == list(range(1, 26))
    assert house.signalled == [str(number) for number in range(25)]


def test_what_was_sent_whole_is_done_though_the_caller_has_gone(house: House) -> None:
    with dial(house) as sock:
        sock.sendall(raw(SIGNAL, oneway=True, parameters={"id": 1, "name": "last words"}))
    assert house.signal_done.wait(5)
    assert house.signalled == ["last words"]


def test_a_call_is_not_cut_off_half_way_by_a_reset_connection(house: House) -> None:
    with dial(house) as sock:
        sock.sendall(raw("org.bgtaskd.Status") + raw(SIGNAL, parameters={"id": 1, "name": "a"}))
        while not house.peers:
            threading.Event().wait(0.005)
        sock.recv(1, socket.MSG_PEEK)  # closed with an answer unread: the server gets ECONNRESET
    assert house.signal_done.wait(5)


def test_a_caller_who_sends_no_more_still_gets_its_answer(house: House) -> None:
    with dial(house) as sock:
        sock.sendall(raw(SIGNAL, parameters={"id": 1, "name": "a"}))
        sock.shutdown(socket.SHUT_WR)
        assert hear(sock) == [{"parameters": {"seq": 1}}]
        assert sock.recv(1) == b""


def test_oneway_gets_no_reply(house: House) -> None:
    with dial(house) as sock:
        sock.sendall(
            raw("org.bgtaskd.Get", oneway=True, parameters={"id": 1}) + raw("org.bgtaskd.Status")
        )
        assert hear(sock) == [{"parameters": {"version": "0"}}]


def test_a_stream_ends_with_its_reader(house: House) -> None:
    with dial(house) as sock:
        sock.sendall(raw("org.bgtaskd.Watch", more=True))
        assert hear(sock)[0]["continues"] is True
        assert house.watching.acquire(timeout=5)
        assert not house.watch_ended.is_set()
    assert house.watch_ended.wait(5)


@pytest.mark.parametrize(
    ("message", "error", "parameters"),
    [
        ({"method": "nonsense"}, "InvalidParameter", {"parameter": "method"}),
        ({"method": "org.bgtaskd.Nope"}, "MethodNotFound", {"method": "Nope"}),
        ({"method": "org.bgtaskd.Retry"}, "MethodNotImplemented", {"method": "Retry"}),
        ({"method": "org.else.Nope"}, "InterfaceNotFound", {"interface": "org.else"}),
        ({"method": "org.bgtaskd.Get"}, "InvalidParameter", {"parameter": "id"}),
        ({"method": "org.bgtaskd.Status", "upgrade": True}, "InvalidParameter", {"parameter": "upgrade"}),
        ({"method": "org.bgtaskd.Status", "parameters": []}, "InvalidParameter", {"parameter": "parameters"}),
    ],
)  # fmt: skip
def test_refusals_leave_the_connection_open(
    house: House, message: dict[str, Any], error: str, parameters: dict[str, Any]
) -> None:
    with dial(house) as sock:
        sock.sendall(json.dumps(message).encode() + b"\0" + raw("org.bgtaskd.Status"))
        refused, then = hear(sock, 2)
    assert refused == {"error": f"org.varlink.service.{error}", "parameters": parameters}
    assert then == {"parameters": {"version": "0"}}


def test_what_came_before_nonsense_is_answered_first(house: House) -> None:
    with dial(house) as sock:
        sock.sendall(raw(SIGNAL, parameters={"id": 1, "name": "a"}) + b"nonsense\0")
        answered, refused = hear(sock, 2)
        assert answered == {"parameters": {"seq": 1}}
        assert refused["error"] == "org.varlink.service.InvalidParameter"
        assert sock.recv(1) == b""


def test_what_came_before_a_message_too_long_is_answered_first(house: House) -> None:
    with dial(house) as sock:
        first = raw(SIGNAL, parameters={"id": 1, "name": "a"})
        sock.sendall(first)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(first + b"x" * (MESSAGE_MAX + 1))
        assert [list(one) for one in hear(sock, 3)] == [
            ["parameters"],
            ["parameters"],
            ["error", "parameters"],
        ]


def test_large_messages_one_after_the_other(house: House) -> None:
    with dial(house) as sock:
        for number in range(6):
            sock.sendall(raw(SIGNAL, parameters={"id": 1, "name": "x" * 600_000}))
            assert hear(sock) == [{"parameters": {"seq": number + 1}}]


def test_an_answer_that_json_cannot_say_does_not_leave_its_caller_waiting(house: House) -> None:
    with dial(house) as sock:
        sock.sendall(raw("org.bgtaskd.GetConfig", parameters={"id": 1}))
        assert "internal error" in hear(sock)[0]["parameters"]["reason"]


def test_half_a_message_gets_no_more_time_however_it_drips(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HALF_MESSAGE_SECONDS", 0.3)
    dripped = 0
    with dial(house) as sock:
        sock.settimeout(0.05)
        answer = b""
        while dripped < 100 and not answer:
            dripped += 1
            try:
                sock.send(b"{")
                answer = sock.recv(1000)
            except BrokenPipeError:
                answer = sock.recv(1000)
            except TimeoutError:
                pass
    assert b"half a message" in answer
    assert dripped < 50


def test_too_many_connections_of_one_user_are_told_so(house: House) -> None:
    held = [dial(house) for _ in range(20)]
    try:
        with pytest.raises(TooManyRequests), Client(house.path) as client:
            client.status()
    finally:
        for one in held:
            one.close()


def test_too_much_behind_a_stream_is_refused(house: House) -> None:
    with dial(house) as sock:
        sock.sendall(raw("org.bgtaskd.Watch", more=True))
        hear(sock)
        sock.sendall(raw("org.bgtaskd.Status") * 20)
        assert hear(sock)[0]["error"] == "org.bgtaskd.TooManyRequests"
    assert house.watch_ended.wait(5)


def test_the_caller_is_who_the_kernel_says(house: House) -> None:
    with Client(house.path) as client:
        client.status()
    peer = house.peers[0]
    assert (peer.uid, peer.gid, peer.pid) == (os.getuid(), os.getgid(), os.getpid())
    assert set(peer.groups) == {*os.getgroups(), os.getgid()}


def test_after_all_that_nothing_is_counted_any_more(house: House) -> None:
    with dial(house) as sock:
        sock.sendall(raw("org.bgtaskd.Watch", more=True))
        hear(sock)
    assert house.watch_ended.wait(5)
    for _ in range(100):
        left = house.call_in_loop(
            lambda: (dict(house.server.connections), dict(house.server.requests))
        )
        if left == ({}, {}):
            return
        threading.Event().wait(0.02)
    pytest.fail(f"still counted: {left}")


# The clients.


def test_a_kept_connection_that_the_daemon_closed_is_opened_again_for_any_call(
    house: House, tmp_path: Path
) -> None:
    with Client(house.path) as client:
        assert client.signal(1, "a") == 1
        assert client._connection is not None
        client._connection._socket.shutdown(socket.SHUT_RDWR)  # as a restarted daemon leaves it
        assert client.signal(1, "b") == 2


def test_an_interrupted_call_leaves_no_reply_for_the_next(house: House) -> None:
    with Client(house.path) as client:
        client.status()
        assert client._connection is not None
        real = client._connection.receive
        client._connection.receive = interrupt  # type: ignore[method-assign]
        kept = client._connection
        with pytest.raises(Interrupt):
            client.signal(1, "a")
        kept.receive = real  # type: ignore[method-assign]
        assert client.get(1).name == "n"


class Interrupt(BaseException):
    """As a KeyboardInterrupt, which would end pytest too."""


def interrupt() -> Any:
    raise Interrupt


def test_a_refusal_is_read_though_the_call_could_not_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "s")
    real = blocking._Connection.send
    with socket.socket(socket.AF_UNIX) as listening, Client(path) as client:
        listening.bind(path)
        listening.listen()

        def refuse_first(*arguments: Any, **named: Any) -> None:
            refusing, _ = listening.accept()
            with refusing:
                refusing.sendall(
                    b'{"error":"org.bgtaskd.TooManyRequests","parameters":{"reason":"r"}}\0'
                )
            real(*arguments, **named)

        monkeypatch.setattr(blocking._Connection, "send", refuse_first)
        with pytest.raises(TooManyRequests):
            client.signal(1, "a")


def test_threads_may_share_a_client(house: House) -> None:
    wrong: list[Exception] = []
    with Client(house.path) as client:

        def work(known: bool) -> None:
            try:
                for _ in range(50):
                    try:
                        assert client.get(1 if known else 2).id == 1
                        assert known
                    except NoSuchTask:
                        assert not known
            except Exception as error:  # noqa: BLE001 - told by the main thread
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(number % 2 == 0,)) for number in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    assert wrong == []


def test_a_watch_is_closed_with_its_iterator(house: House) -> None:
    with Client(house.path) as client:
        changes = client.stream("Watch")
        assert next(changes)["event"] == "changed"
        changes.close()
    assert house.watch_ended.wait(5)


def test_the_asyncio_client(house: House) -> None:
    async def talk() -> None:
        client = AsyncClient(house.path)
        assert (await client.get(1)).name == "n"
        with pytest.raises(NoSuchTask) as refused:
            await client.get(7)
        assert str(refused.value) == "there is no task 7"
        async for change in client.watch():
            assert change.event == "changed"
            break

    asyncio.run(talk())
    assert house.watch_ended.wait(5)


def test_who_cannot_be_reached_is_named_with_a_remedy(tmp_path: Path) -> None:
    path = str(tmp_path / "none")
    with pytest.raises(NotReachable, match=r"none: .*systemctl status bgtaskd.socket"):
        Client(path).status()
    with pytest.raises(NotReachable, match=r"none: .*systemctl status bgtaskd.socket"):
        asyncio.run(AsyncClient(path).status())


def test_a_command_in_one_string_is_refused() -> None:
    with pytest.raises(TypeError, match="list"):
        Client("/nowhere").start("sleep 5")


def test_the_varlink_package_of_pypi(house: House) -> None:
    varlink = pytest.importorskip("varlink")
    with (
        varlink.Client(f"unix:{house.path}") as client,
        client.open("org.bgtaskd") as connection,
    ):
        assert connection.Get(1)["task"]["name"] == "n"
        assert next(connection.Watch(_more=True))["event"] == "changed"
    assert house.watch_ended.wait(5)
