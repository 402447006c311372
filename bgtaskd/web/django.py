# SPDX-License-Identifier: LGPL-2.1-or-later
"""The app to mount, as a URL pattern of Django's. Django is imported only where it is there already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bgtaskd.client.blocking import Client
from bgtaskd.web.page import Page, Request
from bgtaskd.web.wsgi import Frames


def path(
    prefix: str,
    *,
    key: str | bytes,
    user: Callable[[Any], str | None],
    client: Client | None = None,
    events: bool | int = 0,
) -> Any:
    """A line of ``urlpatterns``: ``path("bgtask/", key=settings.SECRET_KEY, user=who)``.

    ``user``: from a request, who its user is in the app's own words. ``events``: as for wsgi.Page.
    """
    from django.http import HttpResponse, StreamingHttpResponse
    from django.urls import path as django_path

    page = Page(key=key, client=client, events=events)

    def serve(request: Any, rest: str) -> Any:
        headers = {name.lower(): value for name, value in request.headers.items()}
        query = request.META.get("QUERY_STRING", "")
        whom = user(request) if page.needs_user(rest) else None
        answer = page.answer(Request(request.method, rest, query, headers, whom))
        if answer.stream is not None:
            response = StreamingHttpResponse(Frames(answer.stream), status=answer.status)
        else:
            response = HttpResponse(answer.body, status=answer.status)
        for name, value in answer.headers:
            response[name] = value
        return response

    # The page has a check of its own against requests of other sites: see page.py.
    serve.csrf_exempt = True  # type: ignore[attr-defined]
    return django_path(f"{prefix.rstrip('/')}/<path:rest>", serve)
