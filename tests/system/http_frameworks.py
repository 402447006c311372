# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run inside the machine: Debian's Flask, Django and Starlette, each with a route that verifies."""

import secrets
import sys
import time
from typing import Any

import bgtaskd
from bgtaskd.signing import HEADERS, Signed, sign
from bgtaskd.web import AsyncBackground, Background, NotVerified, verify, verify_async

KEY = "k" * 32
BODY = b"name=Zo%C3%AB&n=1"
FORM = "application/x-www-form-urlencoded"


def signed(path: str, query: str = "a=1") -> dict[str, str]:
    request = Signed(
        int(time.time()), secrets.token_hex(16), 7, 1, "POST", path.encode(), query.encode(), BODY
    )
    parts = [7, 1, request.timestamp, request.nonce, sign(KEY.encode(), request)]
    return {name: str(part) for name, part in zip(HEADERS.values(), parts, strict=True)}


def outside() -> bool:
    try:
        bgtaskd.current()
    except bgtaskd.BgtaskdError:
        return True
    return False


def flask_app() -> None:
    import flask

    app = flask.Flask(__name__)

    @app.post("/café")
    def cafe() -> Any:
        try:
            status = verify(flask.request, KEY)
        except NotVerified as error:
            flask.abort(403, str(error))
        with status:
            return f"{bgtaskd.current().id} {flask.request.form['name']}"

    @app.post("/late")
    def late() -> Any:
        form = dict(flask.request.form)
        try:
            verify(flask.request, KEY)
        except NotVerified as error:
            return f"{error} {len(form)}"
        return "verified"

    @app.post("/wrapped")
    def wrapped() -> Any:
        return f"{'outside' if outside() else bgtaskd.current().id} {flask.request.form['n']}"

    app.wsgi_app = Background(app.wsgi_app, KEY)
    client = app.test_client()

    def post(path: str, base: str = "http://localhost", **headers: str) -> Any:
        return client.post(
            f"{path}?a=1", data=BODY, content_type=FORM, headers=headers, base_url=base
        )

    assert post("/wrapped", **signed("/wrapped")).text == "7 1"
    assert post("/wrapped", "http://localhost/shop", **signed("/wrapped")).text == "7 1"
    assert post("/wrapped", "http://localhost/shop", **signed("/shop/wrapped")).text == "7 1"
    assert post("/wrapped").text == "outside 1"
    assert post("/wrapped", **signed("/other")).status_code == 403
    app.wsgi_app = app.wsgi_app._app
    headers = signed("/café")
    assert post("/café", **headers).text == "7 Zoë"
    again = post("/café", **headers)
    assert (again.status_code, "been here already" in again.text) == (403, True)
    assert post("/café").status_code == 403
    assert "verify() comes first 2" in post("/late", **signed("/late")).text
    assert outside()


def django_app() -> None:
    import django
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIHandler
    from django.http import HttpRequest, HttpResponse
    from django.test import Client
    from django.urls import path

    def cafe(request: HttpRequest) -> HttpResponse:
        try:
            with verify(request, KEY):
                return HttpResponse(f"{bgtaskd.current().id} {request.POST['name']}")
        except NotVerified as error:
            return HttpResponse(str(error), status=403)

    sys.modules["urls"] = type(sys)("urls")
    sys.modules["urls"].urlpatterns = [path("café", cafe)]  # type: ignore[attr-defined]
    settings.configure(ROOT_URLCONF="urls", ALLOWED_HOSTS=["*"], SECRET_KEY="x", USE_TZ=True)
    django.setup()
    client = Client()

    def post(**headers: str) -> Any:
        environ = {f"HTTP_{name.upper().replace('-', '_')}": one for name, one in headers.items()}
        return client.post("/café?a=1", data=BODY, content_type=FORM, **environ)

    headers = signed("/café")
    assert post(**headers).content.decode() == "7 Zoë"
    assert b"been here already" in post(**headers).content
    assert post(**signed("/cafe")).status_code == 403
    assert post().status_code == 403
    assert Background(WSGIHandler(), KEY) is not None
    assert outside()


def starlette_app() -> None:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, StreamingResponse
    from starlette.routing import Mount, Route
    from starlette.testclient import TestClient

    async def cafe(request: Request) -> PlainTextResponse:
        try:
            with await verify_async(request, KEY):
                return PlainTextResponse(
                    f"{bgtaskd.current().id} {(await request.body()).decode()}"
                )
        except NotVerified as error:
            return PlainTextResponse(str(error), 403)

    def streamed(request: Request) -> StreamingResponse:
        """Not async: runs in a thread, and its pieces in others."""

        def pieces() -> Any:
            for _ in range(2):
                yield "outside " if outside() else f"{bgtaskd.current().id} "

        return StreamingResponse(pieces())

    routes = [
        Route("/café", cafe, methods=["POST"]),
        Route("/streamed", streamed, methods=["POST"]),
    ]
    app = Starlette(routes=[Mount("/shop", routes=routes), *routes])

    def post(client: Any, path: str, headers: dict[str, str]) -> Any:
        return client.post(f"{path}?a=1", content=BODY, headers={"Content-Type": FORM, **headers})

    bare = TestClient(app)
    headers = signed("/café")
    assert post(bare, "/café", headers).text == f"7 {BODY.decode()}"
    assert "been here already" in post(bare, "/café", headers).text
    for path in ("/shop/café", "/café"):  # the whole path, or what is below the mount
        assert post(bare, "/shop/café", signed(path)).status_code == 200
    assert post(bare, "/café", signed("/shop/café")).status_code == 403
    assert post(bare, "/café", {}).status_code == 403
    wrapped = TestClient(AsyncBackground(app, KEY))
    assert post(wrapped, "/streamed", signed("/streamed")).text == "7 7 "
    assert post(wrapped, "/streamed", {}).text == "outside outside "
    assert post(wrapped, "/streamed", signed("/other")).status_code == 403
    rooted = TestClient(AsyncBackground(app, KEY), root_path="/prefix")
    assert post(rooted, "/streamed", signed("/streamed")).text == "7 7 "
    assert outside()


if __name__ == "__main__":
    {"flask": flask_app, "django": django_app, "starlette": starlette_app}[sys.argv[1]]()
