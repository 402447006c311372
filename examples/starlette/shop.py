# SPDX-License-Identifier: LGPL-2.1-or-later
"""A click, a background task, a page that waits: with Starlette. FastAPI is mounted to in the same way.

python3 -m uvicorn shop:app --port 8080            then open http://127.0.0.1:8080/
"""

import asyncio
import secrets
import time

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.routing import Mount, Route

import bgtaskd
from bgtaskd.web import asgi, reference, tags

KEY = secrets.token_hex()  # a site keeps its own in a file: references are signed with it
HEAD = (
    f'<!doctype html><html lang="en"><head><title>Photo shop</title>{tags("/bgtask")}</head><body>'
)
POLICY = {"Content-Security-Policy": "default-src 'self'"}


@bgtaskd.background(name="Developing photos")
def develop(status):
    for number in range(50):
        time.sleep(0.05)
        status.operations(total=50, finished=number + 1)


async def shop(request):
    form = '<form method="post" action="/start"><button>Develop</button></form>'
    return HTMLResponse(f"{HEAD}<h1>Photo shop</h1>{form}", headers=POLICY)


async def start(request):
    who = request.session.setdefault("who", secrets.token_hex())
    task = await asyncio.to_thread(develop.initiate)
    ref = reference(task.id, key=KEY, user=who, may=("stop",))
    return RedirectResponse(f"/wait?ref={ref}", status_code=303)


async def wait(request):
    ref = "".join(one for one in request.query_params["ref"] if one.isalnum() or one in "-_")
    return HTMLResponse(
        f'{HEAD}<bgtask-wait ref="{ref}" acceptable-wait="500" redirect="/done">'
        '<p class="bgtask-please">Your photos are in the bath.</p></bgtask-wait>',
        headers=POLICY,
    )


async def done(request):
    return HTMLResponse(f"{HEAD}<h1>They are dry</h1>", headers=POLICY)


app = Starlette(
    routes=[
        Route("/", shop),
        Route("/start", start, methods=["POST"]),
        Route("/wait", wait),
        Route("/done", done),
        # One import and one line: the status, the events, the widgets.
        Mount("/bgtask", asgi.Page(key=KEY, user=lambda scope: scope["session"].get("who"))),
    ],
    middleware=[Middleware(SessionMiddleware, secret_key=KEY)],
)
