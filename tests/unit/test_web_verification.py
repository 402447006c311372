# SPDX-License-Identifier: LGPL-2.1-or-later
"""The app's side: what is signed passes once; what is altered, stale, too large or replayed never does."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import bgtaskd
from bgtaskd.errors import NotInTask
from bgtaskd.signing import HEADERS, Signed, sign
from bgtaskd.web import (
    AsyncBackground,
    Background,
    DirectoryNonces,
    MemoryNonces,
    NotVerified,
    verify,
)
from bgtaskd.web import nonces as nonces_module

KEY = "k" * 32
NONCE = iter(f"{number:032x}" for number in range(1 << 30))


def signed_headers(
    body: bytes = b"",
    path: bytes = b"/build",
    query: bytes = b"",
    age: int = 0,
    nonce: str | None = None,
    key: str = KEY,
) -> dict[str, str]:
    request = Signed(int(time.time()) - age, nonce or next(NONCE), 7, 2, "POST", path, query, body)
    return {
        HEADERS["id"]: "7",
        HEADERS["attempt"]: "2",
        HEADERS["timestamp"]: str(request.timestamp),
        HEADERS["nonce"]: request.nonce,
        HEADERS["signature"]: sign(key.encode(), request),
    }


def environ_of(body: bytes = b"", script: str = "", **signing: Any) -> dict[str, Any]:
    headers = signed_headers(body, **signing)
    return {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": script,
        "PATH_INFO": signing.get("path", b"/build").decode("latin-1").removeprefix(script),
        "QUERY_STRING": signing.get("query", b"").decode(),
        "CONTENT_LENGTH": str(len(body)) if body else "",
        "wsgi.input": io.BytesIO(body),
        **{f"HTTP_{name.upper().replace('-', '_')}": text for name, text in headers.items()},
    }


def refusal(environ: dict[str, Any], **options: Any) -> str:
    with pytest.raises(NotVerified) as refused:
        verify(environ, KEY, **options)
    assert KEY not in str(refused.value)
    return refused.value.reason


@pytest.mark.parametrize("script", ["", "/shop"])
def test_a_signed_request_passes_and_its_body_is_left(script: str) -> None:
    path = f"{script}/caf\xe9".encode("latin-1")
    environ = environ_of(b"a=1", script, path=path, query=b"x=%20")
    status = verify(environ, KEY)
    assert (status.id, status.attempt) == (7, 2)
    assert environ["wsgi.input"].read() == b"a=1"
    environ = environ_of(b"a=1", path=b"/build")
    environ["SCRIPT_NAME"] = "/shop"  # signed below it: the base URL has it
    assert verify(environ, KEY).id == 7


def test_within_a_status_it_is_current() -> None:
    with verify(environ_of(), KEY) as status:
        assert bgtaskd.current() is status
        with status:
            assert bgtaskd.current() is status
        assert bgtaskd.current() is status
    with pytest.raises(NotInTask):
        bgtaskd.current()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("REQUEST_METHOD", "PUT", "signature"),
        ("PATH_INFO", "/builds", "signature"),
        ("QUERY_STRING", "admin=1", "signature"),
        ("wsgi.input", io.BytesIO(b"b=1"), "signature"),
        ("CONTENT_LENGTH", "2", "signature"),
        ("CONTENT_LENGTH", "4", "ended too early"),
        ("CONTENT_LENGTH", "x", "no number"),
        ("CONTENT_LENGTH", str(2 << 20), "larger than"),
        ("HTTP_X_BGTASK_ID", "8", "signature"),
        ("HTTP_X_BGTASK_ID", "7,7", "no number"),
        ("HTTP_X_BGTASK_ID", "07", "no number"),
        ("HTTP_X_BGTASK_ATTEMPT", "1", "signature"),
        ("HTTP_X_BGTASK_TIMESTAMP", str(int(time.time()) + 60), "signature"),
        ("HTTP_X_BGTASK_NONCE", "f" * 32, "signature"),
        ("HTTP_X_BGTASK_NONCE", "../../../../etc/passwd", "nonce"),
        ("HTTP_X_BGTASK_SIGNATURE", "v1=0", "signature"),
        ("HTTP_X_BGTASK_SIGNATURE", "almost", "signature"),
        ("HTTP_X_BGTASK_SIGNATURE", "é", "signature"),
        ("HTTP_X_BGTASK_SIGNATURE", None, "no X-Bgtask-Signature"),
    ],
)
def test_what_was_altered_is_refused(name: str, value: Any, reason: str) -> None:
    environ = environ_of(b"a=1")
    if value == "almost":
        right = environ[name]
        value = right[:-1] + ("1" if right[-1] == "0" else "0")
    environ[name] = value
    if value is None:
        del environ[name]
    assert reason in refusal(environ)


def test_another_key_is_refused() -> None:
    assert "signature" in refusal(environ_of(key="x" * 32))
    with pytest.raises(ValueError, match="32 bytes"):
        verify(environ_of(), "short")


@pytest.mark.parametrize("age", [301, -302, 10**9])
def test_what_is_too_old_or_of_the_future_is_refused(age: int) -> None:
    assert "300 s" in refusal(environ_of(age=age))


def test_what_has_been_here_is_refused() -> None:
    environ = environ_of()
    verify(environ, KEY)
    assert "already" in refusal(environ)
    assert verify(environ, KEY, nonces=MemoryNonces()).id == 7


def test_the_body_is_bounded() -> None:
    assert "larger than 4 bytes" in refusal(environ_of(b"12345"), max_body=4)


def test_memory_forgets_in_time_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = MemoryNonces()
    monkeypatch.setattr(nonces_module, "COUNT_MAX", 3)
    assert seen.take("a", -1.0)
    assert seen.take("a", 60.0)
    assert not seen.take("a", 60.0)
    assert seen.take("b", 60.0)
    assert seen.take("c", 60.0)
    assert not seen.take("d", 60.0)  # no room: refused rather than forgotten


def test_a_directory_is_shared_and_swept(tmp_path: Path) -> None:
    one, other = DirectoryNonces(str(tmp_path)), DirectoryNonces(str(tmp_path))
    assert one.take("a", 600)
    assert not other.take("a", 600)
    assert DirectoryNonces(str(tmp_path)).take("a", -1)  # too old: swept
    environ = environ_of()
    verify(environ, KEY, nonces=one)
    assert "already" in refusal(environ, nonces=other)


def test_something_else_is_no_request() -> None:
    with pytest.raises(TypeError, match="Flask or Django"):
        verify(object(), KEY)


# --- middlewares ---------------------------------------------------------------------------------------


def current_id() -> int:
    try:
        return bgtaskd.current().id
    except NotInTask:
        return 0


def wsgi_app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    start("200 OK", [])
    during = current_id()

    def body() -> Iterator[bytes]:
        yield b"%d" % during
        yield b"%d" % current_id()

    return body()


def call_wsgi(app: Background, environ: dict[str, Any]) -> tuple[str, bytes]:
    started: list[str] = []
    body = app(environ, lambda status, headers: started.append(status))
    answer = b"".join(body)
    close = getattr(body, "close", None)
    if close is not None:
        close()
    return started[0], answer


def test_a_wsgi_app_has_its_status_while_it_streams() -> None:
    app = Background(wsgi_app, KEY)
    assert call_wsgi(app, environ_of()) == ("200 OK", b"77")
    assert current_id() == 0
    assert call_wsgi(app, {"REQUEST_METHOD": "GET"}) == ("200 OK", b"00")
    status, text = call_wsgi(app, environ_of(key="x" * 32))
    assert status == "403 Forbidden"
    assert text.count(b"\n") == 1


def test_an_asgi_app_has_its_status_and_its_body() -> None:
    async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
        event = await receive()
        again = await receive()
        text = b"%d %s %s" % (current_id(), event.get("body", b""), again["type"].encode())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": text})

    app = AsyncBackground(asgi_app, KEY, max_body=10)

    def call(headers: dict[str, str], *pieces: bytes) -> tuple[int, bytes]:
        events: list[Any] = [
            {"type": "http.request", "body": one, "more_body": one is not pieces[-1]}
            for one in pieces
        ]
        events.append({"type": "http.disconnect"})
        sent: list[Any] = []

        async def receive() -> Any:
            return events.pop(0)

        async def send(event: Any) -> None:
            sent.append(event)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/build",
            "query_string": b"",
            "headers": [(name.lower().encode(), one.encode()) for name, one in headers.items()],
        }
        asyncio.run(app(scope, receive, send))
        return sent[0]["status"], sent[1]["body"]

    length = {"Content-Length": "4"}
    assert call({**signed_headers(b"a=12"), **length}, b"a=", b"12") == (
        200,
        b"7 a=12 http.disconnect",
    )
    assert current_id() == 0
    assert call(length, b"a=12")[1].startswith(b"0 a=12")
    for headers, pieces in (
        ({**signed_headers(b"a=12"), **length}, [b"a=13"]),
        ({**signed_headers(b"a=12"), **length}, [b"a=12", b"and more"]),
        ({**signed_headers(b"a=1"), **length}, [b"a=1"]),
        (signed_headers(b"a=1"), [b"a=1"]),
        ({**signed_headers(b"x" * 11), "Content-Length": "11"}, [b"x" * 11]),
    ):
        assert call(headers, *pieces)[0] == 403


def test_an_endless_body_is_not_read_to_its_end() -> None:
    read = 0

    async def receive() -> Any:
        nonlocal read
        read += 1
        assert read < 10
        return {"type": "http.request", "body": b"more", "more_body": True}

    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    headers = {**signed_headers(b"a=12"), "Content-Length": "4"}
    listed = [(name.lower().encode(), one.encode()) for name, one in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/build", "headers": listed}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    asyncio.run(AsyncBackground(app, KEY)(scope, receive, send))
    assert sent[0]["status"] == 403
