# SPDX-License-Identifier: LGPL-2.1-or-later
"""A click, a background task, a bar: with Flask.

python3 shop.py            then open http://127.0.0.1:8080/
"""

import secrets
import time

from flask import Flask, redirect, render_template_string, request, session

import bgtaskd
from bgtaskd.web import acceptable_wait, reference, tags, wsgi

app = Flask(__name__)
app.secret_key = (
    secrets.token_hex()
)  # a site keeps its own in a file: references are signed with it
app.config["SESSION_COOKIE_SAMESITE"] = "Lax"  # no other site's form starts anything


@bgtaskd.background(name="Resizing photos")
def resize(status, photos):
    for number in range(photos):
        print("resizing photo", number + 1)
        time.sleep(0.05)
        status.operations(total=photos, finished=number + 1)
        status.update(message=f"photo {number + 1}")


def who():
    """The session's own name: an anonymous visitor sees what this browser started, and nobody else does."""
    return session.setdefault("who", secrets.token_hex())


# One import and one line: the status, the events, the widgets. A Flask view may return a WSGI app.
page = wsgi.Page(key=app.secret_key, user=lambda environ: who())
app.add_url_rule("/bgtask/<path:_>", "bgtask", lambda _: page, methods=["GET", "POST"])

SHOP = """<!doctype html><html lang="en"><head><title>Photo shop</title>{{ tags }}</head><body>
<h1>Photo shop</h1>
<form method="post"><label>Photos <input name="photos" value="100"></label> <button>Resize</button></form>
{% if ref %}<bgtask-progress ref="{{ ref }}"></bgtask-progress>
<bgtask-output ref="{{ ref }}"></bgtask-output>{% endif %}
</body></html>"""


@app.get("/")
def shop():
    task_id = session.get("task")
    ref = task_id and reference(
        task_id, key=app.secret_key, user=who(), may=("output", "stop", "pause", "resume")
    )
    return render_template_string(SHOP, ref=ref, tags=tags("/bgtask"))


@app.post("/")
def start():
    who()
    status = resize.initiate(photos=min(int(request.form["photos"]), 10_000))
    session["task"] = status.id
    if acceptable_wait(status, 0.2):  # so fast that no bar need be shown
        session.pop("task")
    return redirect("/")


@app.after_request
def strict(response):
    response.headers.setdefault("Content-Security-Policy", "default-src 'self'")
    return response


if __name__ == "__main__":
    app.run(port=8080, threaded=True)
