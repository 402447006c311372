# SPDX-License-Identifier: LGPL-2.1-or-later
"""A site under a strict Content-Security-Policy; inside the machine: app.py asgi|wsgi PORT. Its user: "me"."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

from bgtaskd.web import asgi, tags, wsgi

KEY = "the-key-of-the-browser-tests"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'self';"
    " frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'"
)
SPY = b"""
window.violations = [];
window.seen = [];
addEventListener("securitypolicyviolation", (event) => {
  violations.push(`${event.violatedDirective} ${event.blockedURI}`);
});
for (const name of ["bgtask-change", "bgtask-complete"]) {
  addEventListener(name, (event) => seen.push([name, event.target.localName, event.detail.state]));
}
"""
PAGE = """<!doctype html>
<html lang="en" dir="{dir}"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<script src="/spy.js"></script><link rel="stylesheet" href="/site.css">{tags}</head>
<body><main><h1>{title}</h1><p>What the page is about.</p><form id="form" action="/thanks" method="get"></form>
<div id="here"></div></main></body></html>
"""
CSS = b"""
:root { color-scheme: light dark; }
body { margin: 0; font: 1rem/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 40rem; margin: 0 auto; padding: 1rem; }
"""


def site(path: str, query: str) -> tuple[str, bytes]:
    """Content type and body of a page that is not bgtaskd's."""
    if path == "/spy.js":
        return "text/javascript", SPY
    if path == "/site.css":
        return "text/css", CSS
    given = {name: values[0] for name, values in parse_qs(query).items()}
    title = "Thank you" if path == "/thanks" else given.get("title", "A shop")
    page = PAGE.format(title=title, tags=tags("/bgtask"), dir=given.get("dir", "ltr"))
    return "text/html; charset=utf-8", page.encode()


mounted_wsgi = wsgi.Page(key=KEY, user=lambda environ: "me")
mounted_asgi = asgi.Page(key=KEY, user=lambda scope: "me")


def wsgi_app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path.startswith("/bgtask/"):
        return mounted_wsgi(environ, start_response)
    kind, body = site(path, environ["QUERY_STRING"])
    start_response("200 OK", [("Content-Type", kind), ("Content-Security-Policy", POLICY)])
    return [body]


async def asgi_app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http" or scope["path"].startswith("/bgtask/"):
        await mounted_asgi(scope, receive, send)
        return
    kind, body = site(scope["path"], scope["query_string"].decode())
    headers = [(b"content-type", kind.encode()), (b"content-security-policy", POLICY.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    port = int(sys.argv[2])
    if sys.argv[1] == "asgi":
        import uvicorn

        uvicorn.run(asgi_app, host="127.0.0.1", port=port, log_level="warning")
    else:
        import waitress

        waitress.serve(wsgi_app, host="127.0.0.1", port=port)
