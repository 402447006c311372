# SPDX-License-Identifier: LGPL-2.1-or-later
"""The administrator's page as a WSGI app."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qs

from bgtaskd.client.blocking import Client
from bgtaskd.client.task import TaskInfo
from bgtaskd.errors import BgtaskdError, NoSuchTask, NotReachable
from bgtaskd.web import wsgi
from bgtaskd.web.admin import pages
from bgtaskd.web.admin.door import ADMINISTRATOR, Door
from bgtaskd.web.page import Request, is_same_origin, static
from bgtaskd.web.references import reference
from bgtaskd.web.views import as_json

FILES: Final = {
    "admin.js": "text/javascript; charset=utf-8",
    "admin.css": "text/css; charset=utf-8",
}
SHOWN: Final = 100
"""Tasks on a page."""
FORM_MAX: Final = 4096
DEEDS: Final = ("kill", "retry", "remove")
MAY: Final = ("output", "stop", "pause", "resume")
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'self';"
    " frame-ancestors 'none'; base-uri 'none'"
)
HEADERS: Final = [
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
]
HTML: Final = "text/html; charset=utf-8"
Told = tuple[int, list[tuple[str, str]], bytes]

log = logging.getLogger(__name__)


class Refused(Exception):
    """The request cannot be served: a status, and words for it."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        super().__init__(reason)


class Admin:
    """The app."""

    def __init__(self, client: Client, door: Door) -> None:
        self._client = client
        self._door = door
        self._page = wsgi.Page(key=door.key, user=lambda environ: ADMINISTRATOR, client=client)

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """A request."""
        headers = {
            name[5:].replace("_", "-").lower(): value
            for name, value in environ.items()
            if name.startswith("HTTP_")
        }
        path = environ.get("PATH_INFO", "/")
        method = environ.get("REQUEST_METHOD", "GET")
        request = Request(method, path, environ.get("QUERY_STRING", ""), headers)
        who = self._door.who(request)
        if path.startswith("/bgtask/") and (who or not self._page.needs_user(path)):
            return self._page(environ, start_response)
        try:
            status, more, body = self._answer(request, who, environ)
        except Refused as error:
            status, more, body = _html(error.status, who, str(error))
        except NoSuchTask:
            status, more, body = _html(404, who, "There is no such task.")
        except NotReachable as error:
            status, more, body = _html(503, who, f"{error}. Load this page again in a moment.")
        except BgtaskdError as error:
            status, more, body = _html(409, who, str(error))
        given = {name for name, _ in more}
        lines = [*more, *(one for one in HEADERS if one[0] not in given)]
        lines.append(("Content-Length", str(len(body))))
        start_response(f"{status} {HTTPStatus(status).phrase}", lines)
        return [] if method == "HEAD" else [body]

    def _answer(self, request: Request, who: str | None, environ: dict[str, Any]) -> Told:
        parts = [one for one in request.path.split("/") if one]
        if parts[:1] == ["static"] and parts[-1] in FILES:
            file = static(request, parts[-1], FILES[parts[-1]])
            return file.status, list(file.headers), file.body
        if request.method == "POST":
            form = _form(environ)
            if not (who and "authorization" in request.headers) and not is_same_origin(request):
                raise Refused(403, "This was sent from another site.")
            if parts == ["login"]:
                return self._login(form)
            if who is None:
                raise Refused(401, "Log in first.")
            return self._do(parts, who)
        if request.method not in ("GET", "HEAD"):
            raise Refused(405, "Nothing can be done this way.")
        if who is None:
            return 200 if parts == ["login"] else 401, [("Content-Type", HTML)], pages.login(False)
        return self._show(parts, who, request.query)

    def _show(self, parts: list[str], who: str, query: str) -> Told:
        if not parts:
            return self._list(who, {name: one[-1] for name, one in parse_qs(query).items()})
        if parts == ["queues"]:
            found = pages.queues(self._client.queues(), self._client.workers())
            return 200, [("Content-Type", HTML)], pages.page("Queues and workers", who, found)
        if parts[0] == "tasks" and len(parts) == 2:
            task = self._client.get(_number(parts[1]))
            ref = reference(task.id, key=self._door.key, user=ADMINISTRATOR, expires=43200, may=MAY)
            body = pages.page(f"{task.id} {task.name}", who, pages.task(task, ref))
            return 200, [("Content-Type", HTML)], body
        if parts[0] == "tasks" and parts[2:] == ["now"]:
            return (
                200,
                [("Content-Type", "application/json")],
                _usage(self._client.get(_number(parts[1]))),
            )
        raise Refused(404, "There is no such page.")

    def _list(self, who: str, given: dict[str, str]) -> Told:
        asked: dict[str, Any] = {
            name: given[name] for name in ("name", "user", "queue") if given.get(name)
        }
        if given.get("state"):
            asked["states"] = [given["state"]]
        if given.get("before"):
            asked["before"] = _number(given["before"])
        found = self._client.list(**asked, limit=SHOWN + 1)
        more = found[SHOWN - 1].id if len(found) > SHOWN else None
        kept = {name: given[name] for name in pages.FILTERS if given.get(name)}
        body = pages.page("Tasks", who, pages.tasks(found[:SHOWN], kept, more))
        return 200, [("Content-Type", HTML)], body

    def _login(self, form: dict[str, str]) -> Told:
        if not self._door.is_token(form.get("token", "")):
            log.warning("somebody tried to log in with a wrong token")
            return 401, [("Content-Type", HTML)], pages.login(True)
        return 303, [("Location", "/"), ("Set-Cookie", self._door.cookie())], b""

    def _do(self, parts: list[str], who: str) -> Told:
        match parts:
            case ["logout"]:
                gone = "bgtaskd-web=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0"
                return 303, [("Location", "/login"), ("Set-Cookie", gone)], b""
            case ["tasks", number, deed] if deed in DEEDS:
                task_id = _number(number)
                getattr(self._client, deed)(task_id)
                log.info("%s: %s task %d", who, deed, task_id)
                return 303, [("Location", "/" if deed == "remove" else f"/tasks/{task_id}")], b""
            case ["queues", name, "pause" | "resume" as deed]:
                getattr(self._client, f"{deed}_queue")(name)
                log.info("%s: %s queue %s", who, deed, name)
                return 303, [("Location", "/queues")], b""
        raise Refused(404, "There is no such page.")


def _html(status: int, who: str | None, reason: str) -> Told:
    return status, [("Content-Type", HTML)], pages.page(reason, who)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise Refused(404, "There is no such task.")
    return int(text)


def _form(environ: dict[str, Any]) -> dict[str, str]:
    length = environ.get("CONTENT_LENGTH") or "0"
    if not (length.isascii() and length.isdigit() and len(length) < 6 and int(length) <= FORM_MAX):
        raise Refused(413, "That is too much.")
    body = environ["wsgi.input"].read(int(length)).decode("utf-8", "replace")
    return {name: values[-1] for name, values in parse_qs(body, max_num_fields=20).items()}


def _usage(task: TaskInfo) -> bytes:
    return as_json(
        {
            "ended": task.is_ended(),
            "cpu_usec": task.cpu_usec,
            "memory": task.memory_current,
            "read": task.io_read_bytes,
            "written": task.io_write_bytes,
        }
    )
