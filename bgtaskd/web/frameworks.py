# SPDX-License-Identifier: LGPL-2.1-or-later
"""A request as WSGI, Werkzeug (Flask), Django, ASGI and Starlette have it, in one form.

No framework is imported: a request is known by what it has. Its body is read, and can be read again.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bgtaskd.signing import HEADERS


class Unreadable(Exception):
    """Of this request the body cannot be had; the text says why."""


@dataclass(frozen=True, slots=True)
class Received:
    """What is verified of a request. ``paths``: percent-decoded, as it may have been signed."""

    method: str
    paths: tuple[bytes, ...]
    query: bytes
    headers: Mapping[str, str]
    """The signature's parts, by the names in signing.HEADERS."""
    body: bytes


def has_signature(environ: Mapping[str, Any]) -> bool:
    """Whether a WSGI request says that it is of a task."""
    return _key("id") in environ


def receive(request: Any, most: int) -> Received:
    """A WSGI environ, or a request of Werkzeug, Flask or Django. Raises Unreadable, TypeError."""
    if isinstance(request, Mapping):
        return _of_environ(request, _read_wsgi(request, most))
    if hasattr(request, "META") and hasattr(request, "path_info"):
        return _of_django(request, most)
    if hasattr(request, "environ") and hasattr(request, "get_data"):
        length = _length(request.environ.get("CONTENT_LENGTH"), most)
        body = request.get_data(cache=True)
        if len(body) != length:
            raise Unreadable("its body has been read already: verify() comes first")
        return _of_environ(request.environ, body)
    kind = type(request).__name__
    raise TypeError(
        f"verify() takes a WSGI environ, or a request of Flask or Django, not {kind};"
        " verify_async() is for Starlette"
    )


def _key(part: str) -> str:
    return "HTTP_" + HEADERS[part].upper().replace("-", "_")


def _length(text: str | None, most: int) -> int:
    """The body's size, which must be said beforehand. Raises Unreadable."""
    if not text:
        return 0
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise Unreadable("its Content-Length is no number")
    if int(text) > most:
        raise Unreadable(f"its body is larger than {most} bytes (max_body)")
    return int(text)


def _read_wsgi(environ: Mapping[str, Any], most: int) -> bytes:
    length = _length(environ.get("CONTENT_LENGTH"), most)
    body = b""
    if length:
        stream = environ["wsgi.input"]
        while len(body) < length and (piece := stream.read(length - len(body))):
            body += piece
        if len(body) < length:
            raise Unreadable("its body ended too early, or has been read already")
        environ["wsgi.input"] = io.BytesIO(body)  # type: ignore[index]
    return body


def _of_environ(environ: Mapping[str, Any], body: bytes) -> Received:
    path = environ.get("PATH_INFO", "").encode("latin-1")
    prefix = environ.get("SCRIPT_NAME", "").encode("latin-1")
    return Received(
        environ["REQUEST_METHOD"],
        (path, prefix + path),
        environ.get("QUERY_STRING", "").encode("latin-1"),
        {part: environ[_key(part)] for part in HEADERS if _key(part) in environ},
        body,
    )


def _of_django(request: Any, most: int) -> Received:
    meta = request.META
    length = _length(meta.get("CONTENT_LENGTH"), most)
    try:
        body = request.body
    except Exception as error:  # noqa: BLE001 - Django's own classes, which are not imported here
        raise Unreadable(f"its body cannot be read: {error}") from None
    if len(body) != length:
        raise Unreadable("its body ended too early")
    return Received(
        request.method,
        (request.path_info.encode(), request.path.encode()),
        meta.get("QUERY_STRING", "").encode("latin-1"),
        {part: meta[_key(part)] for part in HEADERS if _key(part) in meta},
        body,
    )


def length_of_scope(scope: Mapping[str, Any], most: int) -> int:
    """The size of an ASGI request's body. Raises Unreadable."""
    return _length(headers_of_scope(scope).get("content-length"), most)


def headers_of_scope(scope: Mapping[str, Any]) -> dict[str, str]:
    """An ASGI request's headers by their names in small letters; several of a name are one."""
    headers: dict[str, str] = {}
    for raw_name, raw_text in scope["headers"]:
        name, text = raw_name.decode("latin-1").lower(), raw_text.decode("latin-1")
        headers[name] = f"{headers[name]},{text}" if name in headers else text
    return headers


def of_scope(scope: Mapping[str, Any], body: bytes) -> Received:
    """An ASGI request, whose body has been read."""
    headers = headers_of_scope(scope)
    prefix, path = scope.get("root_path", ""), scope["path"]
    # Since ASGI 3.0 of 2023 the path begins with the root_path; older servers leave it out.
    below = path[len(prefix) :] if prefix and path.startswith(prefix) else path
    return Received(
        scope["method"],
        tuple(one.encode("utf-8", "surrogateescape") for one in (path, below, prefix + path)),
        scope.get("query_string", b""),
        {part: headers[name.lower()] for part, name in HEADERS.items() if name.lower() in headers},
        body,
    )
