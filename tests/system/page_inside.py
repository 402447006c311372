# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run by pytest inside a machine that has bgtaskd, as alice: the app to mount against the real daemon."""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bgtaskd
from bgtaskd.web import acceptable_wait, asgi, reference, wsgi
from bgtaskd.web.page import HEADERS, OUTPUT_LIMIT

KEY = "a-key-that-is-long-enough"
USER = "Al <img>"
SHOWN = "state result name percent finished total message elapsed remaining delay may".split()
FROM_PAGE = {"HTTP_X_BGTASK_PAGE": "1", "HTTP_SEC_FETCH_SITE": "same-origin"}

client = bgtaskd.Client()


def ref(task_id: int, **options: Any) -> str:
    return reference(task_id, **{"key": KEY, "user": USER, **options})


def page(**options: Any) -> wsgi.Page:
    options = {"client": client, **options}
    return wsgi.Page(key=KEY, user=lambda environ: environ.get("test.user", USER), **options)


def ask(
    app: wsgi.Page, path: str, method: str = "GET", **environ: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a request, under a mount point."""
    told: list[Any] = []
    path, _, query = path.partition("?")
    full = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "/somewhere",
        "PATH_INFO": f"/bgtask/{path}",
        "QUERY_STRING": query,
        "wsgi.input": io.BytesIO(),
        **environ,
    }
    body = app(full, lambda status, headers: told.extend([status, headers]))
    data = b"".join(body)
    headers = dict(told[1])
    for name, value in HEADERS:
        assert headers[name] == value
    return int(told[0].split()[0]), headers, data


def frames(app: wsgi.Page, token: str) -> Iterator[dict[str, Any]]:
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": f"/events/{token}"}
    body = app(environ, lambda *_: None)
    try:
        for frame in body:
            for line in frame.decode().splitlines():
                if line.startswith("data: "):
                    yield json.loads(line[6:])
    finally:
        body.close()  # type: ignore[attr-defined]


@pytest.fixture
def sleeper() -> Iterator[int]:
    task_id = client.start(["sleep", "600"], name="sleeper", settings={"a": "secret"})
    while client.get(task_id).state != "running":
        time.sleep(0.02)
    yield task_id
    if client.is_live(task_id):
        client.stop(task_id)


def test_status_tells_what_the_page_needs_and_no_more(sleeper: int) -> None:
    client.report(sleeper, finished=1, total=4, message="</script><img src=x>")
    status, headers, body = ask(page(), f"status/{ref(sleeper, may=('stop', 'resume'))}")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert headers["Cache-Control"] == "no-store"
    said = json.loads(body)
    assert list(said) == SHOWN
    assert (said["state"], said["percent"], said["may"]) == ("running", 25.0, ["stop"])
    assert b"<" not in body
    assert said["message"] == "</script><img src=x>"


def test_only_what_is_right_is_found(sleeper: int) -> None:
    app = page()
    good = ref(sleeper)
    altered = good[:-2] + ("AA" if good[-2:] != "AA" else "BB")
    answers = [
        ask(app, f"status/{altered}"),
        ask(app, f"status/{ref(sleeper, expires=-1)}"),
        ask(app, f"status/{ref(sleeper, user='somebody else')}"),
        ask(app, f"status/{good}", **{"test.user": "somebody else"}),
        ask(app, f"status/{ref(sleeper, key='another-key-of-16')}"),
        ask(app, f"status/{sleeper}"),
        ask(app, f"events/{altered}"),
        ask(app, f"output/{good}"),
        ask(app, f"stop/{good}", "POST", **FROM_PAGE),
        ask(app, "nothing"),
        ask(app, f"nothing/{good}"),
        ask(app, ""),
        ask(app, "static/../page.py"),
    ]
    assert [one for one in answers if one != answers[0]] == []
    assert answers[0][0] == 404
    assert ask(app, f"status/{ref(sleeper, user=None)}", **{"test.user": "anybody"})[0] == 200


def test_methods(sleeper: int) -> None:
    app = page()
    good = ref(sleeper, may=("stop",))
    for path, method, allow in (
        (f"status/{good}", "POST", "GET, HEAD"),
        (f"stop/{good}", "GET", "POST"),
        ("bgtask.js", "PUT", "GET, HEAD"),
    ):
        status, headers, _ = ask(app, path, method)
        assert (status, headers["Allow"]) == (405, allow)
    assert ask(app, f"status/{good}", "HEAD")[2] == b""


def test_the_buttons_work_from_our_own_page_only(sleeper: int) -> None:
    app = page()
    good = ref(sleeper, may=("stop", "pause", "resume"))
    for environ in (
        {},
        {"HTTP_X_BGTASK_PAGE": "1"},
        {"HTTP_SEC_FETCH_SITE": "same-origin"},
        {**FROM_PAGE, "HTTP_SEC_FETCH_SITE": "cross-site"},
        {**FROM_PAGE, "HTTP_SEC_FETCH_SITE": "same-site"},
        {"HTTP_X_BGTASK_PAGE": "1", "HTTP_ORIGIN": "https://evil", "HTTP_HOST": "good"},
        {"HTTP_X_BGTASK_PAGE": "1", "HTTP_ORIGIN": "null", "HTTP_HOST": ""},
    ):
        assert ask(app, f"stop/{good}", "POST", **environ)[0] == 403
    old = {"HTTP_X_BGTASK_PAGE": "1", "HTTP_ORIGIN": "https://good", "HTTP_HOST": "good"}
    assert ask(app, f"pause/{good}", "POST", **old)[0] == 202
    assert client.get(sleeper).state == "paused"
    assert json.loads(ask(app, f"status/{good}")[2])["may"] == ["stop", "resume"]
    assert ask(app, f"pause/{good}", "POST", **FROM_PAGE)[0] == 409
    assert ask(app, f"resume/{good}", "POST", **FROM_PAGE)[0] == 202
    assert ask(app, f"stop/{good}", "POST", **FROM_PAGE)[0] == 202
    assert client.wait(sleeper, 30).state == "stopped"
    client.remove(sleeper)
    assert ask(app, f"stop/{good}", "POST", **FROM_PAGE)[0] == 410
    assert json.loads(ask(app, f"status/{good}")[2]) == {"state": "gone"}


def test_output_is_text_in_bounds() -> None:
    app = page()
    script = r"""printf '\033[31mred\033[0m\n 1%%\r 2%%\nrest'; read line"""
    task_id = client.start(["sh", "-c", script], stdin=True)
    token = ref(task_id, may="output")
    deadline = time.monotonic() + 30
    said: dict[str, Any] = {"text": ""}
    while not said["text"]:
        assert time.monotonic() < deadline
        said = json.loads(ask(app, f"output/{token}")[2])
    assert said == {"text": "red\n 2%\n", "next": 21, "dropped": 0, "eof": False}
    client.send(task_id, "x\n")
    client.wait(task_id, 30)
    last = json.loads(ask(app, f"output/{token}?offset=21")[2])
    assert (last["text"], last["eof"]) == ("rest", True)
    for bad in ("x", "1e9", "-", "9" * 16):
        assert ask(app, f"output/{token}?offset={bad}")[0] == 400


def test_much_output_comes_in_pieces() -> None:
    app = page()
    task_id = client.start(["seq", "-f", "%0400g", "1000"])
    client.wait(task_id, 30)
    token = ref(task_id, may="output")
    text, offset, eof = "", 0, False
    while not eof:
        said = json.loads(ask(app, f"output/{token}?offset={offset}")[2])
        assert len(said["text"]) <= OUTPUT_LIMIT
        text, offset, eof = text + said["text"], said["next"], said["eof"]
    assert text.split() == [f"{one:0400}" for one in range(1, 1001)]
    tail = json.loads(ask(app, f"output/{token}?offset=-500")[2])["text"]
    assert tail == f"{1000:0400}\n"


def test_events_from_the_first_to_the_end() -> None:
    app = page(events=True)
    task_id = client.start(["cat"], stdin=True, name="talker")
    states, percents = [], []
    for one in frames(app, ref(task_id)):
        states.append(one["state"])
        percents.append(one["percent"])
        if one["state"] == "running" and one["percent"] is None:
            client.report(task_id, percent=40)
        elif one["percent"] == 40:
            client.send(task_id, "", eof=True)
    assert states[-1] == "finished"
    assert 40 in percents
    assert percents[-1] == 100
    assert [one["state"] for one in frames(app, ref(task_id))] == ["finished"]


def test_a_name_is_followed_from_task_to_task() -> None:
    app = page(events=True)
    seen = frames(app, reference(name="global [1]*", key=KEY, user=USER))
    assert next(seen) == {"state": "none"}
    for _ in range(2):
        task_id = client.start(["cat"], stdin=True, name="global [1]*")
        until(seen, "running")
        client.send(task_id, "", eof=True)
        until(seen, "finished")
    seen.close()  # type: ignore[attr-defined]


def until(seen: Iterator[dict[str, Any]], state: str) -> None:
    for one in seen:
        if one["state"] == state:
            return
    raise AssertionError(f"never {state}")


def test_many_pages_are_one_watch(sleeper: int) -> None:
    app = page(events=True)
    before = sockets()
    pages = [frames(app, ref(sleeper)) for _ in range(25)]
    for one in pages:
        assert next(one)["state"] == "running"
    assert sockets() - before <= 2  # the watch, and one for questions
    client.report(sleeper, message="to all")
    for one in pages:
        assert next(one)["message"] == "to all"
    client.stop(sleeper)
    for one in pages:
        assert [shown["state"] for shown in one][-1] == "stopped"
    assert app.feed._topics == {}


def sockets() -> int:
    links = []
    for one in Path("/proc/self/fd").iterdir():
        try:
            links.append(os.readlink(one))
        except FileNotFoundError:  # that of the listing itself
            continue
    return sum(link.startswith("socket:") for link in links)


def test_a_fork_has_a_watch_of_its_own(sleeper: int) -> None:
    app = page(events=True)
    parent = frames(app, ref(sleeper))
    assert next(parent)["state"] == "running"
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:  # as a server's worker that was forked after the app was used
        seen = frames(app, ref(sleeper))
        os.write(writes, next(seen)["state"].encode() + b"\n")
        os.write(writes, next(seen)["message"].encode() + b"\n")
        os._exit(0)
    os.close(writes)
    with open(reads) as told:
        assert told.readline() == "running\n"
        client.report(sleeper, message="to both")
        assert told.readline() == "to both\n"
    assert os.waitpid(child, 0)[1] == 0
    assert next(parent)["message"] == "to both"
    parent.close()  # type: ignore[attr-defined]


def test_a_slow_page_sees_the_newest(sleeper: int) -> None:
    slow = frames(page(events=True), ref(sleeper))
    assert next(slow)["message"] is None
    for number in range(300):
        client.report(sleeper, message=f"{number}")
    seen = 1
    while next(slow)["message"] != "299":
        seen += 1
    assert seen < 30
    slow.close()  # type: ignore[attr-defined]


def test_events_where_no_thread_is_left_for_them(sleeper: int) -> None:
    assert ask(page(), f"events/{ref(sleeper)}")[0] == 204
    one = page(events=1)
    first = frames(one, ref(sleeper))
    assert next(first)["state"] == "running"
    assert ask(one, f"events/{ref(sleeper)}")[0] == 204
    first.close()  # type: ignore[attr-defined]
    assert next(frames(one, ref(sleeper)))["state"] == "running"


def test_a_reference_that_expires_ends_its_events(sleeper: int) -> None:
    app = page(events=True)
    seen = frames(app, ref(sleeper, expires=2))
    assert next(seen)["state"] == "running"
    threading.Timer(2.5, client.report, [sleeper], {"message": "too late"}).start()
    assert list(seen) == []


def test_the_daemon_is_away() -> None:
    app = page(client=bgtaskd.Client("/nowhere/socket"), events=True)
    status, _, body = ask(app, f"status/{ref(1)}")
    assert (status, json.loads(body)) == (503, {"state": "unreachable"})
    assert next(frames(app, ref(1))) == {"state": "unreachable"}
    assert ask(app, f"stop/{ref(1, may='stop')}", "POST", **FROM_PAGE)[0] == 503


def test_the_widgets_are_served_for_long() -> None:
    app = page()
    for name, kind in (("bgtask.js", "text/javascript"), ("bgtask.css", "text/css")):
        status, headers, body = ask(app, name)
        assert status == 200
        assert headers["Content-Type"].startswith(kind)
        assert "no-cache" in headers["Cache-Control"]
        tag = headers["ETag"].strip('"')
        assert "immutable" in ask(app, f"{name}?v={tag}")[1]["Cache-Control"]
        assert ask(app, name, HTTP_IF_NONE_MATCH=headers["ETag"])[0::2] == (304, body and b"")


def test_asgi(sleeper: int) -> None:
    async def who(scope: dict[str, Any]) -> str:
        return USER

    app = asgi.Page(key=KEY, user=who, client=client)

    async def request(path: str, until: str = "") -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        left = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)
            if until and until.encode() in message.get("body", b""):
                left.set()

        scope = {"type": "http", "method": "GET", "path": f"/bgtask/{path}", "headers": []}
        await asyncio.wait_for(app(scope, receive, send), 60)
        return sent

    async def main() -> None:
        start, body = await request(f"status/{ref(sleeper)}")
        assert start["status"] == 200
        assert json.loads(body["body"])["state"] == "running"
        assert (await request("status/x"))[0]["status"] == 404
        pages = [asyncio.ensure_future(request(f"events/{ref(sleeper)}")) for _ in range(50)]
        left = asyncio.ensure_future(request(f"events/{ref(sleeper)}", until="running"))
        await left
        assert app.feed._topics
        await asyncio.to_thread(client.stop, sleeper)
        for sent in await asyncio.gather(*pages):
            assert sent[0]["status"] == 200
            assert b'"stopped"' in sent[-2]["body"]
            assert sent[-1] == {"type": "http.response.body", "body": b""}
        assert app.feed._topics == {}

    asyncio.run(main())


def test_acceptable_wait() -> None:
    quick = bgtaskd.TaskStatus(client.start(["true"]), client=client)
    assert acceptable_wait(quick, 30)
    slow = bgtaskd.TaskStatus(client.start(["sleep", "60"]), client=client)
    assert not acceptable_wait(slow, 0.1)
    slow.stop()


@pytest.mark.filterwarnings("ignore")
def test_mounted_into_flask(sleeper: int) -> None:
    import flask

    app = flask.Flask("app")
    app.secret_key = KEY
    one = wsgi.Page(key=KEY, user=lambda environ: flask.session.get("user"), client=client)
    app.add_url_rule("/b/<path:_>", "b", lambda _: one, methods=["GET", "POST"])
    with app.test_client() as browser:
        assert browser.get(f"/b/status/{ref(sleeper)}").status_code == 404
        with browser.session_transaction() as session:
            session["user"] = USER
        assert browser.get(f"/b/status/{ref(sleeper)}").get_json()["state"] == "running"
        token = ref(sleeper, may="stop")
        assert browser.post(f"/b/stop/{token}").status_code == 403
        headers = {"X-Bgtask-Page": "1", "Sec-Fetch-Site": "same-origin"}
        assert browser.post(f"/b/stop/{token}", headers=headers).status_code == 202


@pytest.mark.filterwarnings("ignore")
def test_mounted_into_django(sleeper: int) -> None:
    import django
    from django.conf import settings
    from django.test import Client as Browser

    import bgtaskd.web.django as adapter

    urls = type(os)("urls_of_the_test")
    urls.urlpatterns = [  # type: ignore[attr-defined]
        adapter.path("b/", key=KEY, user=lambda request: USER, client=client, events=1)
    ]
    settings.configure(
        ROOT_URLCONF=urls,
        ALLOWED_HOSTS=["testserver"],
        MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"],
    )
    django.setup()
    browser = Browser(enforce_csrf_checks=True)
    answer = browser.get(f"/b/status/{ref(sleeper)}")
    assert (answer.status_code, answer.json()["state"]) == (200, "running")
    assert answer["X-Content-Type-Options"] == "nosniff"
    token = ref(sleeper, may="stop")
    assert browser.post(f"/b/stop/{token}").status_code == 403
    headers = {"HTTP_X_BGTASK_PAGE": "1", "HTTP_SEC_FETCH_SITE": "same-origin"}
    assert browser.post(f"/b/stop/{token}", **headers).status_code == 202
    events = b"".join(browser.get(f"/b/events/{token}").streaming_content)
    assert b'"stopped"' in events
    assert browser.get("/b/bgtask.js")["Content-Type"].startswith("text/javascript")


@pytest.mark.filterwarnings("ignore")
def test_mounted_into_starlette(sleeper: int) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount
    from starlette.testclient import TestClient

    app = Starlette(
        routes=[Mount("/b", asgi.Page(key=KEY, user=lambda scope: USER, client=client))]
    )
    with TestClient(app) as browser:
        assert browser.get(f"/b/status/{ref(sleeper)}").json()["state"] == "running"
        assert browser.get("/b/bgtask.css").headers["content-type"].startswith("text/css")
        assert browser.get("/b/status/x").status_code == 404
        client.stop(sleeper)
        client.wait(sleeper, 30)
        assert '"stopped"' in browser.get(f"/b/events/{ref(sleeper)}").text
