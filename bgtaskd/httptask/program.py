# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read what is to be requested, request it, pass the response on, say how it ended.

The only module that knows httpx. Nothing here follows a redirect, a proxy of the environment or anything
else that could lead to where apps.d does not point.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import secrets
import signal
import ssl
import sys
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any, Final
from urllib.parse import unquote_to_bytes, urlsplit

import httpx

from bgtaskd import __version__
from bgtaskd.client.blocking import Client
from bgtaskd.client.path import TASKS
from bgtaskd.errors import BgtaskdError
from bgtaskd.httptask.ends import BROKEN, Ended, broken_off, by_status, not_connected, timed_out
from bgtaskd.signing import HEADERS, NONCE_BYTES, Signed, sign
from bgtaskd.task import template
from bgtaskd.task.patience import patiently

CONNECT_SECONDS: Final = 10.0
FAILED: Final = 1
REASON_MAX: Final = 200


class _Expired(Exception):
    """The time for the whole request is over."""


def main() -> int:
    """The task, or what such tasks are forked from; its exit status."""
    number = os.environ.pop("BGTASK_HANDOVER_FD", "")
    if not number.isdigit():
        sys.stderr.write("bgtaskd: this runs inside of tasks only\n")
        return FAILED
    with open(int(number), encoding="utf-8") as file:
        handover: dict[str, Any] = json.load(file)
    if "request" in handover:
        return run(handover)
    # With our own modules, whatever it says.
    return template.serve({"preload": [__name__], "idle_usec": handover["idle_usec"]}, run)


def run(handover: Mapping[str, Any]) -> int:
    """One request; the exit status. The process may have been forked, ready, from another."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it knows the app's key
    client = Client(handover["socket"] or TASKS)
    exchange = Exchange(handover)
    try:
        value = exchange.run()
    except Ended as end:
        exchange.tell(f"bgtaskd: {end}\n")
        _tell(client, handover, end)
        return end.status
    _report(client, handover, value=value)
    return 0


def _tell(client: Client, handover: Mapping[str, Any], end: Ended) -> None:
    """Report how it failed; unless the route did, by fail(): it knows better."""
    failure = {"type": end.kind, "message": str(end), "traceback": ""}
    try:
        known = patiently(lambda: client.get(handover["id"])).failure
    except BgtaskdError:
        known = None
    if known is None:
        _report(client, handover, failure=failure)


def _report(client: Client, handover: Mapping[str, Any], **what: Any) -> None:
    told = {**what, "attempt": handover["attempt"]}
    try:
        patiently(lambda: client.report(handover["id"], **told))
    except BgtaskdError as error:
        sys.stderr.write(f"bgtaskd: this could not be reported: {error}\n")


class Exchange:
    """One request and its response."""

    def __init__(self, handover: Mapping[str, Any]) -> None:
        """``handover``: as Requests.handover() of the daemon says."""
        self._handover = handover
        self._asked: Mapping[str, Any] = handover["request"]
        base = urlsplit(handover["base_url"])
        self._host, self._scheme = base.netloc, base.scheme
        self._url = handover["base_url"] + self._asked["path"]
        self._where = f"{base.scheme}://{base.netloc}"
        if handover["unix_socket"] is not None:
            self._where = handover["unix_socket"]
        self._began = False
        self._last = b"\n"

    def tell(self, text: str) -> None:
        """A line of ours, after whatever the response was."""
        sys.stderr.write(text if self._last == b"\n" else f"\n{text}")

    def run(self) -> dict[str, Any]:
        """Make it; what came of it. The response's body goes to standard output. Raises Ended."""
        limit = self._handover["timeout_usec"]
        seconds = 0.0 if limit is None else limit / 1e6
        signal.signal(signal.SIGALRM, _expire)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            return self._exchange()
        except _Expired:
            raise timed_out(self._where, seconds, False) from None
        except httpx.ConnectTimeout:
            raise timed_out(self._where, CONNECT_SECONDS, True) from None
        except httpx.ConnectError as error:
            raise not_connected(error, self._where) from None
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
            raise broken_off(error, self._where, self._began) from None
        except httpx.HTTPError as error:
            text = f"{self._where}: {type(error).__name__}: {error}"
            raise Ended(BROKEN, type(error).__name__, text) from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _exchange(self) -> dict[str, Any]:
        transport = httpx.HTTPTransport(
            verify=self._tls(), trust_env=False, uds=self._handover["unix_socket"]
        )
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        with httpx.Client(
            transport=transport, timeout=timeout, trust_env=False, follow_redirects=False
        ) as client:
            response = client.send(self._request(), stream=True)
            try:
                return self._take(response)
            finally:
                response.close()

    def _take(self, response: httpx.Response) -> dict[str, Any]:
        self._began = True
        out = sys.stdout.buffer
        for piece in response.iter_bytes():
            out.write(piece)
            out.flush()
            self._last = piece[-1:] or self._last
        reason = response.reason_phrase[:REASON_MAX]
        end = by_status(response.status_code, reason, response.headers.get("location"))
        if end is not None:
            raise end
        kind = response.headers.get("content-type")
        kind = None if kind is None else kind[:REASON_MAX]
        return {"status": response.status_code, "reason": reason, "content_type": kind}

    def _tls(self) -> ssl.SSLContext | bool:
        """How the app's certificate is checked."""
        if self._scheme != "https":
            return False  # there is none
        try:
            context = ssl.create_default_context(cafile=self._handover["ca_file"])
        except OSError as error:
            raise not_connected(error, f"{self._where}: {self._handover['ca_file']}") from None
        if not self._handover["verify_tls"]:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _request(self) -> httpx.Request:
        query = self._asked.get("query") or ""
        url = self._url + (f"?{query}" if query else "")
        body = self._body()
        headers = {
            "Host": self._host,
            "User-Agent": f"bgtaskd/{__version__}",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
        }
        if body:
            headers["Content-Type"] = self._asked.get("body_type") or "application/octet-stream"
        elif self._asked["method"] in ("POST", "PUT", "PATCH"):
            headers["Content-Length"] = "0"
        given: Mapping[str, str] = self._handover["headers"]
        lowered = {name.lower() for name in given}
        headers = {name: text for name, text in headers.items() if name.lower() not in lowered}
        headers |= given
        cookies: Mapping[str, str] = self._handover["cookies"]
        if cookies:
            headers["Cookie"] = "; ".join(f"{name}={text}" for name, text in cookies.items())
        request = httpx.Request(self._asked["method"], url, headers=headers, content=body or None)
        # What is signed is what is sent, also where httpx writes a URL in another way than we do.
        sent_path, _, sent_query = request.url.raw_path.partition(b"?")
        request.headers.update(self._signature(sent_path, sent_query, body))
        return request

    def _signature(self, path: bytes, query: bytes, body: bytes) -> dict[str, str]:
        prefix = urlsplit(self._handover["base_url"]).path.encode()
        signed = Signed(
            timestamp=int(time.time()),
            nonce=secrets.token_hex(NONCE_BYTES),
            id=self._handover["id"],
            attempt=self._handover["attempt"],
            method=self._asked["method"],
            path=unquote_to_bytes(path)[len(prefix) :],
            query=query,
            body=body,
        )
        values = {
            "id": str(signed.id),
            "attempt": str(signed.attempt),
            "timestamp": str(signed.timestamp),
            "nonce": signed.nonce,
            "signature": sign(bytes.fromhex(self._handover["key"]), signed),
        }
        return {HEADERS[name]: value for name, value in values.items()}

    def _body(self) -> bytes:
        text = self._asked.get("body") or ""
        if self._asked.get("encoding") == "base64":
            return base64.b64decode(text)
        return str(text).encode()


def _expire(_: int, __: FrameType | None) -> None:
    raise _Expired
