# SPDX-License-Identifier: LGPL-2.1-or-later
"""A click, a background task, a bar on every page: with Django, in one file.

python3 shop.py runserver 8080            then open http://127.0.0.1:8080/
"""

import secrets
import sys
import time

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpResponse, HttpResponseRedirect
from django.middleware.csrf import get_token
from django.urls import path
from django.utils.html import format_html

import bgtaskd
import bgtaskd.web.django
from bgtaskd.web import reference, tags

if not settings.configured:
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


@bgtaskd.background(name="Nightly catalogue")
def catalogue(status):
    for number in range(50):
        time.sleep(0.05)
        status.operations(total=50, finished=number + 1)


def who(request):
    """Who the user is: a site with logins says request.user.get_username()."""
    return request.session.setdefault("who", secrets.token_hex())


def shop(request):
    if request.method == "POST":
        catalogue.initiate()
        return HttpResponseRedirect("/")
    # The last task of that name, for whoever sees the page.
    strip = reference(name="Nightly catalogue", key=settings.SECRET_KEY, user=who(request))
    response = HttpResponse(
        format_html(
            '<!doctype html><html lang="en"><head><title>Catalogue</title>{}</head><body><h1>Catalogue</h1>'
            '<form method="post"><input type="hidden" name="csrfmiddlewaretoken" value="{}">'
            '<button>Print it</button></form><bgtask-global name-ref="{}"></bgtask-global>',
            tags("/bgtask"),
            get_token(request),
            strip,
        )
    )
    response["Content-Security-Policy"] = "default-src 'self'"
    return response


urlpatterns = [
    path("", shop),
    # One import and one line: the status, the events, the widgets.
    bgtaskd.web.django.path("bgtask/", key=settings.SECRET_KEY, user=who, events=50),
]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
