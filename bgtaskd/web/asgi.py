# SPDX-License-Identifier: LGPL-2.1-or-later
"""The app to mount, for ASGI servers (asgi.readthedocs.io). An open page costs no thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from bgtaskd.client.blocking import Client
from bgtaskd.web import page
from bgtaskd.web.page import FOLD_SECONDS, HEARTBEAT_SECONDS, Answer, Request, Stream

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Who = str | None


class Page(page.Page):
    """The app. ``user``: from a request's scope, who its user is in the app's own words; None: nobody known.

    ``events``: whether, or for how many pages at once, changes are told as they happen; other pages ask.
    """

    def __init__(
        self,
        *,
        key: str | bytes,
        user: Callable[[Scope], Who | Awaitable[Who]],
        client: Client | None = None,
        events: bool | int = True,
    ) -> None:
        super().__init__(key=key, client=client, events=events)
        self._user = user

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request, or the server's own beginning and end."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        path = scope["path"]
        who = self._user(scope) if self.needs_user(path) else None
        user = who if who is None or isinstance(who, str) else await who
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        query = scope.get("query_string", b"").decode("latin-1")
        request = Request(scope["method"], path, query, headers, user)
        answer = await asyncio.to_thread(self.answer, request)
        if answer.stream is not None:
            await _stream(answer, answer.stream, receive, send)
            return
        await _start(answer, send, ("content-length", str(len(answer.body))))
        body = b"" if scope["method"] == "HEAD" else answer.body
        await send({"type": "http.response.body", "body": body})


async def _start(answer: Answer, send: Send, *more: tuple[str, str]) -> None:
    has_body = answer.status not in (204, 304)
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in (*answer.headers, *(more if has_body else ()))
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})


async def _stream(answer: Answer, stream: Stream, receive: Receive, send: Send) -> None:
    loop = asyncio.get_running_loop()
    news = asyncio.Event()
    gone = asyncio.ensure_future(_disconnect(receive))

    def wake() -> None:
        with suppress(RuntimeError):  # the loop has ended before us
            loop.call_soon_threadsafe(news.set)

    gone.add_done_callback(lambda _: news.set())
    try:
        await _start(answer, send)
        await asyncio.to_thread(stream.begin, wake)
        while not gone.done():
            news.clear()
            frame = stream.frame(time.time())
            if frame is None:
                await send({"type": "http.response.body", "body": b""})
                return
            if frame:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
                await asyncio.sleep(FOLD_SECONDS)
                continue
            try:
                await asyncio.wait_for(news.wait(), HEARTBEAT_SECONDS)
            except TimeoutError:
                beat = await asyncio.to_thread(stream.heartbeat)
                await send({"type": "http.response.body", "body": beat, "more_body": True})
    except OSError:
        pass  # the page has gone, and the server says so this way
    finally:
        gone.cancel()
        stream.close()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
