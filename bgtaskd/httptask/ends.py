# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a request can end, each way with an exit status of its own: curl's numbers, which people know."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from typing import Final

NO_SUCH_HOST: Final = 6
NOT_CONNECTED: Final = 7
PREMATURE: Final = 18
HTTP_STATUS: Final = 22
TIMED_OUT: Final = 28
TLS_FAILED: Final = 35
BROKEN: Final = 56


class Ended(Exception):
    """The request did not succeed. ``kind``: in a word; the text says what, where, and what to do."""

    def __init__(self, status: int, kind: str, text: str) -> None:
        self.status = status
        self.kind = kind
        super().__init__(text)


def by_status(code: int, reason: str, location: str | None) -> Ended | None:
    """The end for a response's status; None for success."""
    if 200 <= code < 300:
        return None
    text = f"HTTP {code} {reason}".rstrip()
    if 300 <= code < 400 and location:
        text += f": it redirects to {location[:500]}, and redirects are not followed"
    return Ended(HTTP_STATUS, "HTTPStatus", text)


def not_connected(error: BaseException, where: str) -> Ended:
    """The end for what kept us from connecting. ``where``: to what."""
    for cause in _causes(error):
        if isinstance(cause, socket.gaierror):
            text = f"{where}: there is no such host ({cause.strerror}); see base_url"
            return Ended(NO_SUCH_HOST, "NoSuchHost", text)
        if isinstance(cause, ssl.SSLError):
            why = getattr(cause, "verify_message", None) or cause.reason or str(cause)
            hint = "; see ca_file" if isinstance(cause, ssl.SSLCertVerificationError) else ""
            return Ended(TLS_FAILED, "TLSFailed", f"{where}: TLS failed: {why}{hint}")
        if isinstance(cause, ConnectionRefusedError):
            text = f"{where}: connection refused: does the app run?"
            return Ended(NOT_CONNECTED, "ConnectionRefused", text)
        if isinstance(cause, OSError) and cause.errno in (errno.ENOENT, errno.EACCES):
            text = f"{where}: {cause.strerror}; see unix_socket"
            return Ended(NOT_CONNECTED, "NotConnected", text)
    return Ended(NOT_CONNECTED, "NotConnected", f"{where}: cannot connect: {_words(error)}")


def broken_off(error: BaseException, where: str, began: bool) -> Ended:
    """The end for a connection that broke. ``began``: whether the response had begun."""
    what = "in the middle of the response" if began else "before it sent a response"
    text = f"{where}: the app hung up {what} ({_words(error)}): see its own log"
    return Ended(PREMATURE, "PrematureEnd", text)


def timed_out(where: str, seconds: float, connecting: bool) -> Ended:
    """The end for one that took too long."""
    if connecting:
        return Ended(TIMED_OUT, "TimedOut", f"{where}: no connection within {seconds:g} s")
    text = f"{where}: no end of the response within {seconds:g} s; see timeout in apps.d"
    return Ended(TIMED_OUT, "TimedOut", text)


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    for _ in range(20):
        if one is None:
            return
        yield one
        one = one.__cause__ or one.__context__
