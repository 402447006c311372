# SPDX-License-Identifier: LGPL-2.1-or-later
"""A click, a route of this very app in the background, as the user or as nobody, and a bar: with Flask.

    python3 reports.py /etc/reports.key        then open http://127.0.0.1:8080/

bgtaskd must know the app: see "The app, to bgtaskd" in http.md, with base_url http://127.0.0.1:8080.
"""

import secrets
import sys
import time
from pathlib import Path

from flask import Flask, abort, redirect, render_template_string, request, session

import bgtaskd
from bgtaskd.web import Background, reference, tags, wsgi

app = Flask(__name__)
app.secret_key = (
    secrets.token_hex()
)  # a site keeps its own in a file: references are signed with it
app.config["SESSION_COOKIE_SAMESITE"] = "Lax"  # no other site's form starts anything

page = wsgi.Page(key=app.secret_key, user=lambda environ: session.get("name"))
app.add_url_rule("/bgtask/<path:_>", "bgtask", lambda _: page, methods=["GET", "POST"])

PAGE = """<!doctype html><html lang="en"><head><title>Reports</title>{{ tags }}</head><body>
<h1>Reports</h1>
{% if name %}<form method="post" action="/start"><button>Build it as {{ name }}</button>
<button id="anonymous" name="anonymous" value="1">Build it as nobody</button></form>
{% else %}<form method="post" action="/login"><input name="name" value="ann"> <button>Log in</button></form>
{% endif %}
{% if ref %}<bgtask-progress ref="{{ ref }}"></bgtask-progress>
<bgtask-output ref="{{ ref }}"></bgtask-output>{% endif %}
</body></html>"""


@app.get("/")
def reports():
    name, task_id = session.get("name"), session.get("task")
    ref = task_id and reference(task_id, key=app.secret_key, user=name, may=("output", "stop"))
    return render_template_string(PAGE, name=name, ref=ref, tags=tags("/bgtask"))


@app.post("/login")
def login():
    session["name"] = request.form["name"]
    return redirect("/")


@app.post("/start")
def start():
    session["task"] = bgtaskd.Client().http(
        "POST", "/build", cookies=request.cookies, as_user="anonymous" not in request.form
    )
    return redirect("/")


@app.post("/build")
def build():
    """What takes long. Its session is that of the user who clicked."""
    try:
        status = bgtaskd.current()
    except bgtaskd.errors.NotInTask:  # a browser's own request
        abort(403)
    for number in range(20):
        time.sleep(0.05)
        status.operations(total=20, finished=number + 1)
        status.update(message=f"page {number + 1}")
    return f"a report for {session.get('name', 'nobody')}\n"


if __name__ == "__main__":
    app.wsgi_app = Background(app.wsgi_app, Path(sys.argv[1]).read_text().strip())
    app.run(port=8080, threaded=True)
