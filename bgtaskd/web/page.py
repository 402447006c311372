# SPDX-License-Identifier: LGPL-2.1-or-later
"""The app to mount, without its servers: a request in, an answer out. See wsgi, asgi and django for theirs.

======  =============  =============================================================================
GET     status/REF     how the task stands, as JSON
GET     events/REF     the same at every change, as server-sent events, until it has ended
GET     output/REF     what it printed: ``?offset=`` bytes, negative from the end
POST    stop/REF       and pause, resume: where the reference allows it
GET     bgtask.js      the widgets; bgtask.css: their looks
======  =============  =============================================================================

Only the end of the path counts, so it does not matter where and how the app was mounted.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from bgtaskd.client.blocking import Client
from bgtaskd.client.plain import plain
from bgtaskd.errors import (
    BgtaskdError,
    NoSuchTask,
    NotPossible,
    NotReachable,
    PermissionDenied,
)
from bgtaskd.web.feed import Feed, Seat, Target
from bgtaskd.web.references import (
    InvalidReference,
    Reference,
    key_bytes,
    read_reference,
)
from bgtaskd.web.views import Sight, as_json, is_end, view

ACTIONS: Final = ("stop", "pause", "resume")
FILES: Final = {
    "bgtask.js": "text/javascript; charset=utf-8",
    "bgtask.css": "text/css; charset=utf-8",
}
OUTPUT_LIMIT: Final = 64 * 1024
"""Bytes of output in an answer."""
HEARTBEAT_SECONDS: Final = 15.0
FOLD_SECONDS: Final = 0.1
"""A page is told of changes so often at the most."""
RETRY_MSEC: Final = 1000
LATER_MSEC: Final = 60_000
"""When a page comes again that was told of the end, and did not listen."""
HEADERS: Final = (
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
)
_OFFSET: Final = re.compile(r"-?[0-9]{1,15}")


@dataclass(frozen=True, slots=True)
class Request:
    """What of a request matters. ``headers``: their names in lower case."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back. ``seat``: then the body is stream()'s, for as long as the task goes on."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""
    stream: Stream | None = None


class Page:
    """What wsgi.Page, asgi.Page and django.path have in common. Threads may share it."""

    def __init__(
        self, *, key: str | bytes, client: Client | None = None, events: bool | int = True
    ) -> None:
        """``key``: of the references. ``events``: how many pages at once are told of changes; others ask."""
        self.key = key_bytes(key)
        self.feed = Feed(client or Client())
        self._slots = threading.BoundedSemaphore(10**9 if events is True else int(events) or 1)
        self._events = bool(events)

    def needs_user(self, path: str) -> bool:
        """Whether anybody must be asked who the user is: not for the widgets."""
        return path.rpartition("/")[2] not in FILES

    def answer(self, request: Request) -> Answer:
        """The answer, whatever the request. Blocks while the daemon is asked."""
        *_, verb, last = ("", *request.path.split("/"))
        if last in FILES:
            return static(request, last, FILES[last])
        if verb not in ("status", "events", "output", *ACTIONS):
            return _refused(404, "not-found")
        allowed = ("POST",) if verb in ACTIONS else ("GET", "HEAD")
        if request.method not in allowed:
            return _refused(405, "method-not-allowed", ("Allow", ", ".join(allowed)))
        if verb in ACTIONS and not _is_from_our_page(request):
            return _refused(403, "cross-site")
        try:
            reference = read_reference(last, self.key, request.user)
        except InvalidReference:
            return _refused(404, "not-found")
        if verb in ("output", *ACTIONS) and verb not in reference.may:
            return _refused(404, "not-found")
        if verb == "status":
            return self._status(reference)
        if verb == "events":
            return self._stream(request, reference)
        return self._asked(request, verb, reference)

    def _status(self, reference: Reference) -> Answer:
        seen = self.feed.find(_target(reference))
        status = (
            {Sight.GONE: 410, Sight.UNREACHABLE: 503}.get(seen, 200)
            if isinstance(seen, Sight)
            else 200
        )
        return _answer(status, view(seen, reference.may))

    def _stream(self, request: Request, reference: Reference) -> Answer:
        if request.method == "HEAD":
            return _answer(200, None, ("Content-Type", "text/event-stream"))
        if not self._events or not self._slots.acquire(blocking=False):
            return Answer(
                204, _headers(("Cache-Control", "no-store"))
            )  # do not come again, ask status
        stream = Stream(self, reference)
        headers = (
            ("Content-Type", "text/event-stream; charset=utf-8"),
            ("Cache-Control", "no-store"),
            ("X-Accel-Buffering", "no"),
        )
        return Answer(200, _headers(*headers), stream=stream)

    def leave(self) -> None:
        """A stream has ended: another page may have its place."""
        self._slots.release()

    def _asked(self, request: Request, verb: str, reference: Reference) -> Answer:
        task_id = reference.task_id or 0
        try:
            if verb == "output":
                return self._output(request, task_id)
            getattr(self.feed.client, verb)(task_id)
            return _answer(202, {"accepted": verb})
        except NoSuchTask:
            return _answer(410, view(Sight.GONE))
        except NotPossible:
            return _refused(409, "not-possible")
        except PermissionDenied:
            return _refused(403, "not-allowed")
        except NotReachable:
            return _answer(503, view(Sight.UNREACHABLE))
        except BgtaskdError:
            return _refused(502, "failed")

    def _output(self, request: Request, task_id: int) -> Answer:
        given = parse_qs(request.query).get("offset", ["0"])[-1]
        if not _OFFSET.fullmatch(given):
            return _refused(400, "offset")
        offset = max(int(given), -OUTPUT_LIMIT)
        asked = {"offset": offset, "limit": OUTPUT_LIMIT, "encoding": "base64"}
        got = self.feed.client.call("Output", id=task_id, **asked)
        data = base64.b64decode(got["data"])
        start, end = int(got["offset"]), int(got["next_offset"])
        if offset < 0 < start:  # it begins in the middle of a line
            data = data[data.find(b"\n") + 1 :]
        # Whole lines only, so that no escape sequence or character is torn; a line without an end is passed on.
        whole = data.rfind(b"\n") + 1
        if not got["eof"] and (whole or len(data) < OUTPUT_LIMIT):
            end -= len(data) - whole
            data = data[:whole]
        said = {
            "text": plain(data.decode("utf-8", "replace")),
            "next": end,
            "dropped": got["dropped"],
            "eof": got["eof"],
        }
        return _answer(200, said)


class Stream:
    """The events of one open page: begin(), then frame() after frame until it is None, then close()."""

    def __init__(self, page: Page, reference: Reference) -> None:
        self._page = page
        self._reference = reference
        self._seat: Seat | None = None
        self._serial = -1
        self._over = False
        self._open = True

    def begin(self, wake: Any) -> None:
        """Take a seat; ``wake()`` will be called in any thread. Blocks."""
        self._seat = self._page.feed.open(_target(self._reference), wake)
        if not self._open:  # closed by another thread meanwhile
            self._seat.close()

    def frame(self, now: float) -> bytes | None:
        """What is new, b"" if nothing is, None when all was said. ``now``: seconds since the epoch."""
        if self._over or self._seat is None or now >= self._reference.expires:
            return None
        serial, seen = self._seat.look()
        if serial == self._serial:
            return b""
        self._serial = serial
        # The last task of a name may be followed by another: those pages go on.
        self._over = is_end(seen) and self._reference.name is None
        data = as_json(view(seen, self._reference.may, now))
        retry = LATER_MSEC if self._over else RETRY_MSEC
        return b"retry: %d\nid: %d\ndata: %s\n\n" % (retry, serial, data)

    def heartbeat(self) -> bytes:
        """A comment, which tells proxies and us that the page is there. Blocks if all was quiet for long."""
        if self._seat is not None:
            self._seat.freshen()
        return b": \n\n"

    def close(self) -> None:
        """The page has gone, or all was said. Twice does no harm."""
        if self._open:
            self._open = False
            if self._seat is not None:
                self._seat.close()
            self._page.leave()


class Html(str):
    """Markup that template engines do not escape again."""

    def __html__(self) -> str:
        return self


def tags(base: str) -> Html:
    """What a page has in its head: the widgets and their looks. ``base``: where the app is mounted."""
    at = re.sub(r"[^\w/.:~-]", "", base).rstrip("/")
    style = f'<link rel="stylesheet" href="{at}/bgtask.css?v={_load("bgtask.css")[1]}">'
    script = f'<script type="module" src="{at}/bgtask.js?v={_load("bgtask.js")[1]}"></script>'
    return Html(style + script)


def _target(reference: Reference) -> Target:
    return reference.name or "" if reference.task_id is None else reference.task_id


def _is_from_our_page(request: Request) -> bool:
    """Whether a script of the app's own origin sent it: no other's can set the header without our leave."""
    return request.headers.get("x-bgtask-page") == "1" and is_same_origin(request)


def is_same_origin(request: Request) -> bool:
    """Whether it was sent from a page of the same origin. Every browser of today says so with a POST."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = urlsplit(request.headers.get("origin", ""))
    return bool(origin.netloc) and origin.netloc == request.headers.get("host")


def static(request: Request, name: str, kind: str) -> Answer:
    """One of our files, to be kept for ever where the address has its hash."""
    if request.method not in ("GET", "HEAD"):
        return _refused(405, "method-not-allowed", ("Allow", "GET, HEAD"))
    data, version = _load(name)
    known = parse_qs(request.query).get("v") == [version]
    kept = "public, max-age=31536000, immutable" if known else "public, no-cache"
    tag = f'"{version}"'
    headers = _headers(("Content-Type", kind), ("Cache-Control", kept), ("ETag", tag))
    if request.headers.get("if-none-match") == tag:
        return Answer(304, headers)
    return Answer(200, headers, data)


@cache
def _load(name: str) -> tuple[bytes, str]:
    data = (Path(__file__).with_name("static") / name).read_bytes()
    return data, hashlib.sha256(data).hexdigest()[:16]


def _refused(status: int, why: str, *more: tuple[str, str]) -> Answer:
    return _answer(status, {"error": why}, *more)


def _answer(status: int, value: Any, *more: tuple[str, str]) -> Answer:
    kind = (
        ()
        if any(name == "Content-Type" for name, _ in more)
        else (("Content-Type", "application/json"),)
    )
    headers = _headers(*kind, ("Cache-Control", "no-store"), *more)
    return Answer(status, headers, b"" if value is None else as_json(value))


def _headers(*more: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return (*more, *HEADERS)
