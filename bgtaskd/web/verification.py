# SPDX-License-Identifier: LGPL-2.1-or-later
"""verify(): whether a request is a task's, unaltered and for the first time; and the task's status."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Any, Final, Self

from bgtaskd.client.blocking import Client
from bgtaskd.client.path import SYSTEM, TASKS, default_socket
from bgtaskd.errors import BgtaskdError
from bgtaskd.signing import HEADERS, KEY_MIN, NONCE_BYTES, Signed, is_signed
from bgtaskd.task.own import OwnStatus, reset_current, set_current
from bgtaskd.task.patience import patiently
from bgtaskd.web.frameworks import Received, Unreadable, length_of_scope, of_scope, receive
from bgtaskd.web.nonces import MemoryNonces, Nonces

MAX_BODY: Final = 1 << 20
WINDOW_SECONDS: Final = 300
NUMBER_MAX: Final = 15
REPORT_SECONDS: Final = 10.0
_seen = MemoryNonces()


class NotVerified(BgtaskdError):
    """This request is no task's, or not any more. ``reason``: why, in a line that may be shown."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"not a request of a background task: {reason}")


class RequestStatus(OwnStatus):
    """The status of the task that requests this route: reports go to the daemon, as the app's own user.

    ``with verify(request, key) as status:`` makes it bgtaskd.current() inside.
    """

    def __init__(self, task_id: int, attempt: int, *, client: Client | None = None) -> None:
        super().__init__(task_id, client=client)
        self.attempt = attempt
        self._tokens: list[Any] = []

    def __enter__(self) -> Self:
        self._tokens.append(set_current(self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        reset_current(self._tokens.pop())

    @property
    def client(self) -> Client:
        """Through which it asks: where the app's user may not use the system's socket, the tasks' own."""
        return self._client or _client()

    def _report(self, **progress: Any) -> None:
        # Of this attempt: what a route of an earlier one still says must not count for the next.
        report = {**progress, "attempt": self.attempt}
        patiently(lambda: self.client.report(self.id, **report), REPORT_SECONDS)

    def report_end(self, **end: Any) -> None:
        """See OwnStatus."""
        self._report(**end)


_shared: Client | None = None


def _client() -> Client:
    global _shared
    if _shared is None:
        path = default_socket()
        if path == SYSTEM and not os.access(SYSTEM, os.W_OK) and os.access(TASKS, os.W_OK):
            path = TASKS
        _shared = Client(path)
    return _shared


def verify(
    request: Any,
    key: bytes | str,
    *,
    max_body: int = MAX_BODY,
    nonces: Nonces | None = None,
    client: Client | None = None,
) -> RequestStatus:
    """The status of the task whose request this is. Raises NotVerified: then it is nobody's, or a replay.

    ``request``: a WSGI environ, or a request of Flask (Werkzeug) or Django; its body, of ``max_body`` bytes
    at most, is read, and can be read again. ``key``: the app's key, as in apps.d. ``nonces``: what has been
    here, by default remembered in this process; where several serve the app, give them DirectoryNonces.
    """
    try:
        received = receive(request, max_body)
    except Unreadable as error:
        raise NotVerified(str(error)) from None
    return verify_received(received, key, nonces, client)


async def verify_async(
    request: Any,
    key: bytes | str,
    *,
    max_body: int = MAX_BODY,
    nonces: Nonces | None = None,
    client: Client | None = None,
) -> RequestStatus:
    """The same for a request of Starlette or FastAPI."""
    try:
        length = length_of_scope(request.scope, max_body)
        body = await request.body()
        if len(body) != length:
            raise Unreadable("its body ended too early")
    except Unreadable as error:
        raise NotVerified(str(error)) from None
    return verify_received(of_scope(request.scope, body), key, nonces, client)


def verify_received(
    received: Received, key: bytes | str, nonces: Nonces | None, client: Client | None
) -> RequestStatus:
    """The check itself. Raises NotVerified, and ValueError for a key that is none."""
    secret = key.encode() if isinstance(key, str) else key
    if len(secret) < KEY_MIN:
        raise ValueError(f"the key must have {KEY_MIN} bytes at least, as in apps.d")
    given = received.headers
    missing = [HEADERS[part] for part in HEADERS if part not in given]
    if missing:
        raise NotVerified(f"it has no {missing[0]}")
    numbers = {part: _number(part, given[part]) for part in ("id", "attempt", "timestamp")}
    nonce = given["nonce"]
    if len(nonce) != 2 * NONCE_BYTES or not set(nonce) <= set("0123456789abcdef"):
        raise NotVerified("its nonce is none")
    signed = [
        Signed(
            numbers["timestamp"],
            nonce,
            numbers["id"],
            numbers["attempt"],
            received.method,
            path,
            received.query,
            received.body,
        )
        for path in dict.fromkeys(received.paths)
    ]
    if not any(is_signed(secret, one, given["signature"]) for one in signed):
        raise NotVerified(
            "its signature is wrong: another key, another path (see base_url), or altered on its way"
        )
    if abs(time.time() - numbers["timestamp"]) > WINDOW_SECONDS:
        raise NotVerified(f"it was signed more than {WINDOW_SECONDS} s ago, or a clock is wrong")
    if not (_seen if nonces is None else nonces).take(nonce, 2.0 * WINDOW_SECONDS + 1):
        raise NotVerified("it has been here already")
    return RequestStatus(numbers["id"], numbers["attempt"], client=client)


def _number(part: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > NUMBER_MAX or text != str(int(text)):
        raise NotVerified(f"its {HEADERS[part]} is no number")
    return int(text)
