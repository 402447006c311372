# SPDX-License-Identifier: LGPL-2.1-or-later
"""Around a whole app: tasks' requests are verified, and in them bgtaskd.current() is the task's status.

All other requests pass as they are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from contextvars import Context, copy_context
from typing import Any

from bgtaskd.client.blocking import Client
from bgtaskd.signing import HEADERS
from bgtaskd.task.own import set_current
from bgtaskd.web.frameworks import (
    Unreadable,
    has_signature,
    headers_of_scope,
    length_of_scope,
    of_scope,
)
from bgtaskd.web.nonces import Nonces
from bgtaskd.web.verification import MAX_BODY, NotVerified, verify, verify_received

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]
REFUSED = "403 Forbidden"


class Background:
    """Around a WSGI app: ``app.wsgi_app = Background(app.wsgi_app, key)``."""

    def __init__(
        self,
        app: Callable[..., Iterable[bytes]],
        key: bytes | str,
        *,
        max_body: int = MAX_BODY,
        nonces: Nonces | None = None,
        client: Client | None = None,
    ) -> None:
        """The options are those of verify()."""
        self._app = app
        self._key = key
        self._max_body = max_body
        self._nonces = nonces
        self._client = client

    def __call__(
        self, environ: Mapping[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """One request. A task's that is none is answered with 403 and the reason."""
        if not has_signature(environ):
            return self._app(environ, start_response)
        try:
            status = verify(
                environ,
                self._key,
                max_body=self._max_body,
                nonces=self._nonces,
                client=self._client,
            )
        except NotVerified as error:
            start_response(REFUSED, [("Content-Type", "text/plain; charset=utf-8")])
            return [f"{error}\n".encode()]
        # A context of its own: nothing of it is left when the thread serves the next request, and a
        # response that is made while it is sent still finds its status.
        context = copy_context()
        context.run(set_current, status)
        return _InContext(context, context.run(self._app, environ, start_response))


class _InContext:
    """A response's body, made in the request's context."""

    def __init__(self, context: Context, body: Iterable[bytes]) -> None:
        self._context = context
        self._body = body
        self._iterator: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._iterator is None:
            self._iterator = self._context.run(iter, self._body)
        return self._context.run(next, self._iterator)

    def close(self) -> None:
        """As WSGI wants it: the body's own close()."""
        close = getattr(self._body, "close", None)
        if close is not None:
            self._context.run(close)


class AsyncBackground:
    """Around an ASGI app: ``app = AsyncBackground(app, key)``."""

    def __init__(
        self,
        app: AsgiApp,
        key: bytes | str,
        *,
        max_body: int = MAX_BODY,
        nonces: Nonces | None = None,
        client: Client | None = None,
    ) -> None:
        """The options are those of verify()."""
        self._app = app
        self._key = key
        self._max_body = max_body
        self._nonces = nonces
        self._client = client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or whatever else ASGI has. A task's that is none is answered with 403 and the reason."""
        if scope["type"] != "http" or HEADERS["id"].lower() not in headers_of_scope(scope):
            await self._app(scope, receive, send)
            return
        try:
            body = await _read(scope, receive, self._max_body)
            status = verify_received(of_scope(scope, body), self._key, self._nonces, self._client)
        except (NotVerified, Unreadable) as error:
            text = str(error if isinstance(error, NotVerified) else NotVerified(str(error)))
            await _refuse(send, text)
            return
        event: Event | None = {"type": "http.request", "body": body, "more_body": False}

        async def replay() -> Event:
            nonlocal event
            once, event = event, None
            return await receive() if once is None else once

        with status:
            await self._app(scope, replay, send)


async def _read(scope: Scope, receive: Receive, most: int) -> bytes:
    length = length_of_scope(scope, most)
    body, more = b"", True
    while more and len(body) <= length:
        event = await receive()
        if event["type"] != "http.request":
            raise Unreadable("the client hung up")
        body += event.get("body", b"")
        more = event.get("more_body", False)
    if len(body) != length:
        raise Unreadable("its body is not as long as it says")
    return body


async def _refuse(send: Send, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": f"{text}\n".encode()})
