# SPDX-License-Identifier: LGPL-2.1-or-later
"""Without systemd: the daemon as a developer starts it, here on the host; and PyPI's Varlink client with it."""

from __future__ import annotations

import asyncio
import os
import pwd
import select
import socket
import socketserver
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import pytest
import varlink

import bgtaskd
from bgtaskd import errors
from bgtaskd.web import Background

ROOT = Path(__file__).parents[2]
APP_KEY = "k" * 32


class Double(bgtaskd.BackgroundTask):
    def execute(self, status: bgtaskd.OwnStatus) -> list[Any]:
        status.update(50, "half")
        message = status.next_signal(timeout=20)
        assert message is not None
        status.update(75, message.name)
        return [2 * self.settings["n"], message.payload, sys.prefix]


class Parent(bgtaskd.BackgroundTask):
    options: ClassVar[dict[str, Any]] = {"preload": True}

    def execute(self, status: bgtaskd.OwnStatus) -> int:
        return os.getppid()


@pytest.fixture(scope="module")
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A daemon in process mode."""
    state = tmp_path_factory.mktemp("state")
    path = state / "control.sock"
    (state / "apps.d").mkdir()
    app = state / "apps.d/app.yaml"
    app.touch(0o600)
    user = pwd.getpwuid(os.getuid()).pw_name
    app.write_text(
        f"base_url: http://app\nunix_socket: {state}/app.sock\nuser: {user}\nkey: {APP_KEY}\n"
    )
    argv = [sys.executable, "-m", "bgtaskd.daemon.main", "--launcher=process"]
    argv += [f"--state={state}", f"--socket={path}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(argv, env=env, cwd=state) as process:
        deadline = time.monotonic() + 20
        while True:
            try:
                bgtaskd.Client(str(path)).status()
                break
            except errors.NotReachable:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield str(path)
        process.terminate()


@pytest.fixture
def client(socket_path: str) -> Iterator[bgtaskd.Client]:
    with bgtaskd.Client(socket_path) as made:
        yield made


def test_the_same_life_of_a_task(client: bgtaskd.Client) -> None:
    task = client.run(["sh", "-c", "echo hello"], name="hi", timeout=30)
    assert (task.result, task.exit_status, task.percent) == ("success", 0, 100)
    assert client.output(task.id) == b"hello\n"
    with pytest.raises(bgtaskd.TaskFailed) as failed:
        client.run(["sh", "-c", "exit 4"])
    assert failed.value.task.exit_status == 4
    client.retry(task.id)
    assert client.wait(task.id).attempt == 2
    client.remove(task.id)
    with pytest.raises(errors.NoSuchTask):
        client.get(task.id)


def test_a_task_in_python_finds_its_daemon(client: bgtaskd.Client) -> None:
    status = Double.initiate({"n": 21}, client=client)
    seen, told = [], False
    for now in status.watch():
        seen.append((now.percentage, now.message))
        if now.message == "half" and not told:
            told = True
            status.signal("go", [1])
    assert status.result_value == [42, [1], sys.prefix]
    assert (50.0, "half") in seen
    assert seen[-1] == (100.0, "go")


def test_a_task_is_forked_from_a_template(client: bgtaskd.Client) -> None:
    deadline = time.monotonic() + 20
    parents: list[int] = []
    while len(set(parents)) == len(parents):
        assert time.monotonic() < deadline
        parents.append(Parent.initiate(client=client).wait(20).result_value)
    template = next(iter(client.list(kinds=["template"])))
    assert (template.name, template.state) == (f"preload {__name__}", "running")
    assert template.id not in [one.id for one in client.list()]
    client.stop(template.id)


class UnixServer(WSGIServer):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        return super().get_request()[0], ("somebody", 0)

    server_name, server_port = "app", 0


def test_a_route_of_an_app_of_the_same_user(client: bgtaskd.Client) -> None:
    def app(environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        bgtaskd.current().update(40, "on the way")
        start("200 OK", [])
        return [environ["wsgi.input"].read(3)]

    served = Background(app, APP_KEY, client=client)
    with UnixServer(str(Path(client.path).with_name("app.sock")), WSGIRequestHandler) as server:  # type: ignore[arg-type]
        server.set_app(served)
        server.timeout = 20
        task_id = client.http("POST", "/x", body="abc", retries=0)
        server.handle_request()
        task = client.wait(task_id)
    assert (task.state, task.message, task.error) == ("finished", "on the way", None)
    assert task.value == {"status": 200, "reason": "OK", "content_type": None}
    assert client.output(task_id) == b"abc"


def test_a_status_steers_its_task(client: bgtaskd.Client) -> None:
    status = bgtaskd.TaskStatus(client.start(["sleep", "600"]), client=client)
    next(one for one in status.watch() if one.state == "running")
    status.pause()
    assert status.refresh().state == "paused"
    status.resume()
    assert status.refresh().state == "running"
    status.kill("TERM", whom="main")
    assert (status.wait(20).result, status.info.signal) == ("signal", "SIGTERM")
    status.retry()
    assert status.is_running()
    next(one for one in status.watch() if one.state == "running")
    status.stop()
    assert (status.wait(20).state, status.info.attempt) == ("stopped", 2)


def test_stop_kills_what_ignores_sigterm(client: bgtaskd.Client) -> None:
    script = "trap '' TERM; echo ready; sleep 600 & wait; sleep 601"
    task_id = client.start(["bash", "-c", script], stop_timeout=0.3)
    next(chunk for chunk in client.output_chunks(task_id, follow=True) if chunk.data)
    client.pause(task_id)
    assert client.get(task_id).state == "paused"
    client.stop(task_id)
    assert client.wait(task_id, timeout=10).state == "stopped"


def test_clocks_stand_still_while_a_task_is_paused(client: bgtaskd.Client) -> None:
    task_id = client.start(["sh", "-c", "echo ready; sleep 0.2"], timeout=0.8, stall_timeout=0.8)
    next(chunk for chunk in client.output_chunks(task_id, follow=True) if chunk.data)
    client.pause(task_id)
    time.sleep(1.0)  # longer than it may take
    assert client.get(task_id).state == "paused"
    client.resume(task_id)
    assert client.wait(task_id, timeout=10).result == "success"


def test_a_launcher_goes_with_its_daemon_and_no_task_with_either(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "bgtaskd.daemon.main", "--launcher=process"]
    argv += [f"--state={tmp_path}", f"--socket={tmp_path}/control.sock"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}

    def started() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(argv, env=env, cwd=tmp_path)
        deadline = time.monotonic() + 20
        while True:
            try:
                bgtaskd.Client(f"{tmp_path}/control.sock").status()
                return process
            except errors.NotReachable:
                assert time.monotonic() < deadline
                time.sleep(0.02)

    daemon = started()
    with bgtaskd.Client(f"{tmp_path}/control.sock") as one:
        script = "echo ready; until [ -e go ]; do sleep 0.05; done"
        task_id = one.start(["sh", "-c", script], cwd=str(tmp_path))
        next(chunk for chunk in one.output_chunks(task_id, follow=True) if chunk.data)
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    [launcher] = [int(pid) for pid in children]
    watched = os.pidfd_open(launcher)
    daemon.kill()
    daemon.wait()
    poll = select.poll()
    poll.register(watched, select.POLLIN)
    assert poll.poll(10_000), "the launcher goes on"
    daemon = started()
    with bgtaskd.Client(f"{tmp_path}/control.sock") as one:
        (tmp_path / "go").touch()
        assert one.wait(task_id, timeout=20).result == "success"
    daemon.terminate()
    daemon.wait(20)


def test_merging_and_the_mailbox(client: bgtaskd.Client) -> None:
    client.pause_queue("default")
    first = client.start(["true"])
    report = client.start(["true"], merge_key="report")
    assert client.start(["true"], merge_key="report") == report
    assert client.signal(first, "reload", {"x": 1}) == 1
    assert [one.payload for one in client.signals(first)] == [{"x": 1}]
    assert {task.id for task in client.list(states=["queued"])} == {first, report}
    client.resume_queue("default")
    assert {task.id for task in client.wait_all([first, report])} == {first, report}
    assert client.start(["true"], merge_key="report") != report


def test_errors_are_typed(client: bgtaskd.Client) -> None:
    with pytest.raises(errors.InvalidSpec, match="MemoryMax"):
        client.start(["true"], properties={"MemoryMax": "lots"})
    with pytest.raises(errors.NoSuchQueue):
        client.start(["true"], queue="none")
    with pytest.raises(errors.NotPossible):
        client.pause(client.run(["true"]).id)
    with pytest.raises(errors.TimedOut):
        client.wait(client.start(["sleep", "2"]), timeout=0.05)
    with pytest.raises(errors.NotReachable, match="/nowhere"):
        bgtaskd.Client("/nowhere").list()


def test_the_asyncio_client_has_the_same_names(socket_path: str) -> None:
    async def use() -> None:
        async with bgtaskd.AsyncClient(socket_path) as client:
            ids = [await client.start(["sh", "-c", f"echo {number}"]) for number in range(3)]
            ended = {task.id: task.result async for task in client.wait_all(ids)}
            assert ended == dict.fromkeys(ids, "success")
            assert await client.output(ids[2]) == b"2\n"
            events = [event.event async for event in client.watch([ids[0]])]
            assert events == ["finished"]
            assert ids[0] in [task.id for task in await client.list(limit=10)]

    asyncio.run(use())
    blocking = {name for name in dir(bgtaskd.Client) if not name.startswith("_")}
    assert blocking - {"close"} <= set(dir(bgtaskd.AsyncClient))


def test_pypis_varlink_client_lists_starts_waits_and_streams(socket_path: str) -> None:
    remote: Any
    with (
        varlink.Client(address=f"unix:{socket_path}") as service,
        service.open("org.bgtaskd") as remote,
    ):
        started = remote.Start({"argv": ["sh", "-c", "echo one; sleep 0.2; echo two"]})
        states = [reply["task"]["state"] for reply in remote.Watch([started["id"]], _more=True)]
        assert states[-1] == "finished"
        assert remote.Wait([started["id"]], None)["task"]["result"] == "success"
        replies = remote.Output(started["id"], 0, None, False, None, None, _more=True)
        assert "".join(reply["data"] for reply in replies) == "one\ntwo\n"
        listed = remote.List(None, None, None, None, None, 5)["tasks"]
        assert started["id"] in [task["id"] for task in listed]
        with pytest.raises(varlink.VarlinkError, match="NoSuchTask"):
            remote.Get(10**9)
        with pytest.raises(varlink.VarlinkError, match="ExpectedMore"):
            remote.Watch()


def test_a_list_larger_than_a_message_comes_in_pieces(socket_path: str) -> None:
    with bgtaskd.Client(socket_path) as client:
        large = {"text": "\0" * 40_000}  # 240 KB as JSON has it
        ids = [client.start(["true"], settings=large, name="large") for _ in range(60)]
        client.wait(ids[-1])
        assert [task.id for task in client.list(name="large", limit=60)] == ids[::-1]
        assert [task.id for task in client.list(name="large", limit=7)] == ids[:-8:-1]


def test_a_string_that_is_no_text_is_refused_and_harms_nobody(socket_path: str) -> None:
    for options in ({"name": "x\ud800"}, {"merge_key": "x\ud800"}, {"cwd": "/\udcff"}):
        with bgtaskd.Client(socket_path) as hostile, pytest.raises(errors.RemoteError):
            hostile.start(["true"], **options)  # type: ignore[arg-type]
    with bgtaskd.Client(socket_path) as other:
        assert other.run(["true"]).result == "success"
