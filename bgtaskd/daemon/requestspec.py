# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a request of a task of kind http may say: checked and bounded, the first wrong field named. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from bgtaskd.errors import InvalidSpec
from bgtaskd.model import canonical_json

KEPT: Final = ("app", "method", "path", "query", "body", "encoding", "body_type")
PATH_MAX: Final = 4096
QUERY_MAX: Final = 16 * 1024
HEADERS_MAX: Final = 100
METHOD: Final = re.compile(r"[A-Z]{1,20}")
TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,200}")
PATH: Final = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
QUERY: Final = re.compile(r"[!$-;=?-~]*")  # printable, without space, ", # and <>
VALUE: Final = re.compile(r"[\t -~]*")
COOKIE: Final = re.compile(r"[!-:<-~]*")
OURS: Final = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer trailers"
    " transfer-encoding upgrade host content-length expect".split()
)
"""Headers of the connection, not of the request: whoever makes it sets them."""
OF_SESSIONS: Final = frozenset(("authorization", "cookie"))


def check_request(given: Any) -> dict[str, Any]:
    """The request as it is kept with the task: checked, without headers and cookies. Raises InvalidSpec."""
    if not isinstance(given, Mapping):
        raise InvalidSpec(field="http", reason="must say which request")
    kept = {name: given[name] for name in KEPT if given.get(name) is not None}
    method, path, query = kept["method"], kept["path"], kept.get("query", "")
    if METHOD.fullmatch(method) is None or method in ("CONNECT", "TRACE"):
        raise InvalidSpec(field="http.method", reason="must be GET, POST, … in capitals")
    _check_path(path)
    if len(query) > QUERY_MAX or QUERY.fullmatch(query) is None:
        reason = f"must be as in a URL (a=1&b=two%20words), {QUERY_MAX} characters at most"
        raise InvalidSpec(field="http.query", reason=reason)
    body_type = kept.get("body_type", "")
    if VALUE.fullmatch(body_type) is None or len(body_type) > 200:
        raise InvalidSpec(field="http.body_type", reason="must be the body's media type")
    if kept.get("encoding", "utf-8") not in ("utf-8", "base64"):
        raise InvalidSpec(field="http.encoding", reason="must be utf-8 or base64")
    body_of(kept)
    return kept


def _check_path(path: str) -> None:
    if len(path) > PATH_MAX or PATH.fullmatch(path) is None or path.startswith("//"):
        reason = f"must begin with one / and be as in a URL (/a%20b), {PATH_MAX} characters at most"
        raise InvalidSpec(field="http.path", reason=reason)
    plain = unquote_to_bytes(path)
    if any(byte < 32 or byte in b"\x7f\\" for byte in plain):
        raise InvalidSpec(field="http.path", reason="must have no control character and no \\")
    if any(part in (b".", b"..") for part in plain.split(b"/")):
        reason = "must have no . or .. in it: it could leave the app's base URL"
        raise InvalidSpec(field="http.path", reason=reason)


def body_of(request: Mapping[str, Any]) -> bytes:
    """The body's bytes. Raises InvalidSpec."""
    text = request.get("body") or ""
    if request.get("encoding") != "base64":
        return str(text).encode()
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidSpec(field="http.body", reason="is no base64") from None


def session_of(given: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What is secret of a request: its headers and cookies, as far as there are any. Raises InvalidSpec."""
    headers: dict[str, str] = dict(given.get("headers") or {})
    cookies: dict[str, str] = dict(given.get("cookies") or {})
    if len(headers) > HEADERS_MAX or len(cookies) > HEADERS_MAX:
        raise InvalidSpec(field="http.headers", reason=f"must be at most {HEADERS_MAX}")
    plain = [_plain_name(name) for name in headers]
    for name, value in headers.items():
        if TOKEN.fullmatch(name) is None or VALUE.fullmatch(value) is None:
            reason = "a name is letters, digits and -, a value is printable ASCII on one line"
            raise InvalidSpec(field="http.headers", reason=reason)
        if _plain_name(name) in OURS or _plain_name(name).startswith("x-bgtask-"):
            reason = f"{name} is not the caller's to set"
            raise InvalidSpec(field="http.headers", reason=reason)
    if len(set(plain)) < len(plain):
        raise InvalidSpec(field="http.headers", reason="a header is given twice")
    for name, value in cookies.items():
        if TOKEN.fullmatch(name) is None or COOKIE.fullmatch(value) is None:
            reason = "a name is letters, digits and _, a value printable ASCII without blanks and ;"
            raise InvalidSpec(field="http.cookies", reason=reason)
    if given.get("as_user") is False:
        cookies = {}
        headers = {
            one: text for one, text in headers.items() if _plain_name(one) not in OF_SESSIONS
        }
    elif cookies and "cookie" in plain:
        raise InvalidSpec(
            field="http.cookies", reason="either cookies or a Cookie header, not both"
        )
    parts = {"headers": headers, "cookies": cookies}
    return {name: part for name, part in parts.items() if part}


def _plain_name(name: str) -> str:
    """What a header is called in the end: CGI, and so WSGI, makes no difference between - and _."""
    return name.lower().replace("_", "-")


def merge_key(key: bytes, request: Mapping[str, Any], session: Mapping[str, Any]) -> str:
    """The same for the same request of the same session, and for no other; it tells nobody either.

    ``key``: the app's, so that nobody can try out what a session may have been.
    """
    text = canonical_json([request, session])
    import hashlib  # they bring OpenSSL, 3 MiB that most daemons never need
    import hmac

    return "http:" + hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
