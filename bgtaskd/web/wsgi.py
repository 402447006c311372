# SPDX-License-Identifier: LGPL-2.1-or-later
"""The app to mount, for WSGI servers (PEP 3333)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any

from bgtaskd.client.blocking import Client
from bgtaskd.web import page
from bgtaskd.web.page import FOLD_SECONDS, HEARTBEAT_SECONDS, Request, Stream


class Page(page.Page):
    """The app. ``user``: from a request's environ, who its user is in the app's own words; None: nobody known.

    ``events``: how many pages at once may each hold one of the server's threads, to be told of changes as they
    happen. The others ask, twice a second at first and more rarely later: with 0, the default, all of them.
    """

    def __init__(
        self,
        *,
        key: str | bytes,
        user: Callable[[dict[str, Any]], str | None],
        client: Client | None = None,
        events: bool | int = 0,
    ) -> None:
        super().__init__(key=key, client=client, events=events)
        self._user = user

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """A request."""
        path = environ.get("PATH_INFO", "")
        headers = {
            name[5:].replace("_", "-").lower(): value
            for name, value in environ.items()
            if name.startswith("HTTP_")
        }
        user = self._user(environ) if self.needs_user(path) else None
        method = environ.get("REQUEST_METHOD", "GET")
        answer = self.answer(Request(method, path, environ.get("QUERY_STRING", ""), headers, user))
        lines = list(answer.headers)
        if answer.stream is None and answer.status not in (204, 304):
            lines.append(("Content-Length", str(len(answer.body))))
        start_response(f"{answer.status} {HTTPStatus(answer.status).phrase}", lines)
        if answer.stream is not None:
            return Frames(answer.stream)
        return [] if method == "HEAD" else [answer.body]


class Frames:
    """A stream as servers want it: an iterator which they close, also where they never began."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._news = threading.Event()
        self._told = 0.0
        self._began = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if not self._began:
            self._began = True
            self._stream.begin(self._news.set)
        while True:
            time.sleep(max(0.0, min(FOLD_SECONDS, self._told + FOLD_SECONDS - time.monotonic())))
            self._news.clear()
            frame = self._stream.frame(time.time())
            if frame is None:
                self.close()
                raise StopIteration
            if frame:
                self._told = time.monotonic()
                return frame
            if not self._news.wait(HEARTBEAT_SECONDS):
                return self._stream.heartbeat()

    def close(self) -> None:
        """See PEP 3333."""
        self._stream.close()
