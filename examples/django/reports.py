# SPDX-License-Identifier: LGPL-2.1-or-later
"""A click, a view of this very app in the background, as the user or as nobody, and a bar: with Django.

    REPORTS_KEY=/etc/reports.key python3 reports.py runserver 8080    then open http://127.0.0.1:8080/

bgtaskd must know the app: see "The app, to bgtaskd" in http.md, with base_url http://127.0.0.1:8080.
"""

import os
import secrets
import sys
import time
from pathlib import Path

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpResponse, HttpResponseForbidden, HttpResponseRedirect
from django.middleware.csrf import get_token
from django.urls import path
from django.utils.html import format_html
from django.views.decorators.csrf import csrf_exempt

import bgtaskd
import bgtaskd.web.django
from bgtaskd.web import NotVerified, reference, tags, verify

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    DEBUG=True,
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
    ],
    ROOT_URLCONF=__name__,
    SECRET_KEY=secrets.token_hex(),  # a site keeps its own in a file: references are signed with it
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
)
KEY = Path(os.environ["REPORTS_KEY"]).read_text().strip()


def who(request):
    """Who the user is: a site with logins says request.user.get_username()."""
    return request.session.get("name")


def reports(request):
    name, task_id = who(request), request.session.get("task")
    bar = ""
    if task_id:
        ref = reference(task_id, key=settings.SECRET_KEY, user=name, may=("output", "stop"))
        bar = format_html(
            '<bgtask-progress ref="{}"></bgtask-progress><bgtask-output ref="{}"></bgtask-output>',
            ref,
            ref,
        )
    button = "Log in as ann" if name is None else f"Build it as {name}"
    return HttpResponse(
        format_html(
            '<!doctype html><html lang="en"><head><title>Reports</title>{}</head><body><h1>Reports</h1>'
            '<form method="post" action="{}"><input type="hidden" name="csrfmiddlewaretoken" value="{}">'
            '<button>{}</button> <button id="anonymous" name="anonymous" value="1">As nobody</button>'
            "</form>{}",
            tags("/bgtask"),
            "/login" if name is None else "/start",
            get_token(request),
            button,
            bar,
        )
    )


def login(request):
    request.session["name"] = "ann"
    return HttpResponseRedirect("/")


def start(request):
    request.session["task"] = bgtaskd.Client().http(
        "POST", "/build", cookies=request.COOKIES, as_user="anonymous" not in request.POST
    )
    return HttpResponseRedirect("/")


@csrf_exempt  # the signature is stronger, and no browser can make it
def build(request):
    """What takes long. Its session is that of the user who clicked."""
    try:
        status = verify(request, KEY)
    except NotVerified as error:
        return HttpResponseForbidden(str(error))
    with status:
        for number in range(20):
            time.sleep(0.05)
            status.operations(total=20, finished=number + 1)
            status.update(message=f"page {number + 1}")
        return HttpResponse(f"a report for {who(request) or 'nobody'}\n", content_type="text/plain")


urlpatterns = [
    path("", reports),
    path("login", login),
    path("start", start),
    path("build", build),
    bgtaskd.web.django.path("bgtask/", key=settings.SECRET_KEY, user=who, events=50),
]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
