# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the pages look like. Pure: tasks in, markup out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlencode

from bgtaskd.client.task import QueueInfo, TaskInfo
from bgtaskd.client.workers import WorkerInfo
from bgtaskd.web.admin.html import el, text
from bgtaskd.web.page import Html, tags

STATES: Final = ("delayed", "queued", "running", "paused", "finished", "failed", "stopped")
FILTERS: Final = ("name", "state", "user", "queue")
TEXT_MAX: Final = 20_000
"""Characters of settings, value or traceback that are shown."""


def page(title: str, who: str | None, *content: Any) -> bytes:
    """A whole page."""
    menu = [el("a", "Tasks", href="/"), el("a", "Queues and workers", href="/queues")]
    leave = el("form", el("button", "Log out"), method="post", action="/logout")
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width"),
        el("title", f"{title} – bgtaskd"),
        el("link", rel="stylesheet", href="/static/admin.css"),
        tags("/bgtask"),
        el("script", type="module", src="/static/admin.js"),
    )
    top = el("header", el("b", "bgtaskd"), el("nav", menu), el("span", who), leave) if who else None
    body = el("body", top, el("main", el("h1", title), content))
    return f"<!doctype html>{el('html', head, body, lang='en')}".encode()


def login(refused: bool) -> bytes:
    """Where the token is asked for."""
    wrong = el("p", "That is not the token.", role="alert") if refused else None
    field = el(
        "input", type="password", name="token", autocomplete="off", required=True, autofocus=True
    )
    return page(
        "Log in",
        None,
        wrong,
        el("p", "The token is in ", el("code", "/run/bgtaskd-web/token"), ", for root to read."),
        el(
            "form",
            el("label", "Token ", field),
            " ",
            el("button", "Log in"),
            method="post",
            action="/login",
        ),
    )


def tasks(found: Sequence[TaskInfo], given: Mapping[str, str], more: int | None) -> list[Any]:
    """The list, and its filters. ``more``: before which id the next page begins."""
    fields: list[Any] = []
    for name in FILTERS:
        if name == "state":
            options = [el("option", "any", value="")]
            options += [el("option", one, selected=given.get(name) == one) for one in STATES]
            field = el("select", options, name=name)
        else:
            hint = "resize-*" if name == "name" else None
            field = el("input", name=name, value=given.get(name, ""), size=12, placeholder=hint)
        fields.append(el("label", name, " ", field))
    rows = [row(one) for one in found] or el("tr", el("td", "No task is like that.", colspan=8))
    head = el("tr", [el("th", one, scope="col") for one in HEADS])
    older = None
    if more is not None:
        older = el("p", el("a", "Older", href="/?" + urlencode({**given, "before": more})))
    table = el("table", el("thead", head), el("tbody", rows))
    form = el("form", fields, el("button", "Show"), method="get", class_="filters")
    return [form, el("div", table, older, id="live", class_="wide", data_every=2000)]


HEADS: Final = ("Id", "Name", "State", "Done", "User", "Queue", "Began", "Says")


def row(task: TaskInfo) -> Html:
    """A task in the list."""
    done = "" if task.percent is None else f"{int(task.percent)} %"
    said = (task.error if task.state == "failed" else None) or task.message or ""
    return el(
        "tr",
        el("td", el("a", task.id, href=f"/tasks/{task.id}")),
        el("td", el("a", task.name, href=f"/tasks/{task.id}"), class_="words"),
        el("td", badge(task.state)),
        el("td", done),
        el("td", task.user),
        el("td", task.queue),
        el("td", when(task.started or task.created)),
        el("td", said[:200], class_="words"),
    )


def badge(state: str) -> Html:
    """A state, in its colour."""
    return el("span", state, class_=f"badge {state}")


def when(usec: int | None) -> Html:
    """A time, which the script puts into the browser's own zone."""
    if usec is None:
        return text("–")
    at = datetime.fromtimestamp(usec // 1_000_000, UTC)
    return el("time", f"{at:%Y-%m-%d %H:%M:%S} UTC", datetime=f"{at:%Y-%m-%dT%H:%M:%SZ}")


def task(one: TaskInfo, ref: str) -> list[Any]:
    """A task's own page."""
    deeds = ["kill"] if not one.is_ended() else ["retry", "remove"]
    forms = [
        el("form", el("button", deed.capitalize()), method="post", action=f"/tasks/{one.id}/{deed}")
        for deed in deeds
    ]
    return [
        el("bgtask-progress", ref=ref),
        el("div", forms, class_="deeds"),
        el("div", facts(one), id="live", data_every=2000),
        el("h2", "Resources"),
        el("div", id="chart", data_from=f"/tasks/{one.id}/now", data_ended=one.is_ended()),
        el("h2", "Output"),
        el("bgtask-output", ref=ref),
        el("p", "In the journal: ", el("code", f"journalctl -u {one.unit}")),
    ]


def facts(one: TaskInfo) -> Html:
    """All that is known of a task."""
    command = one.target or shlex.join(one.argv)
    known: dict[str, Any] = {
        "State": [badge(one.state), " ", one.result],
        "Error": one.error,
        "Exit": one.signal or one.exit_status,
        "User": one.user,
        "Queue": one.queue,
        "Priority": one.priority or None,
        "Command": el("code", command) if command else None,
        "Unit": el("code", one.unit),
        "Attempt": one.attempt,
        "Created": when(one.created),
        "Not before": when(one.not_before) if one.state == "delayed" else None,
        "Started": when(one.started),
        "Ended": when(one.ended) if one.ended else None,
        "Processor": None if one.cpu_usec is None else f"{one.cpu_usec / 1e6:.2f} s",
        "Memory": size(one.memory_current),
        "Memory, peak": size(one.memory_peak),
        "Read": size(one.io_read_bytes),
        "Written": size(one.io_write_bytes),
        "Settings": code(one.settings),
        "Value": code(one.value),
        "Failure": None if one.failure is None else el("pre", one.failure.traceback[-TEXT_MAX:]),
    }
    return el(
        "dl",
        [
            [el("dt", name), el("dd", value)]
            for name, value in known.items()
            if value is not None and value != ""
        ],
    )


def size(count: int | None) -> str | None:
    """Bytes for people."""
    if count is None:
        return None
    amount, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def code(value: Any) -> Html | None:
    """JSON to be read."""
    if value is None:
        return None
    return el("pre", json.dumps(value, indent=2, ensure_ascii=False)[:TEXT_MAX])


WORKER_HEADS: Final = ("Name", "User", "Processes", "Payloads to do", "Given up")


def queues(found: Sequence[QueueInfo], workers: Sequence[WorkerInfo]) -> list[Any]:
    """Queues, with a switch each, and the named tasks."""
    lines = []
    for one in found:
        deed = "resume" if one.paused else "pause"
        switch = el(
            "form",
            el("button", deed.capitalize()),
            method="post",
            action=f"/queues/{one.name}/{deed}",
        )
        name = el("a", one.name, href="/?" + urlencode({"queue": one.name}))
        state = badge("paused") if one.paused else badge("running")
        cells = [
            name,
            state,
            one.running,
            one.waiting,
            one.delayed,
            one.slots or "no limit",
            switch,
        ]
        lines.append(el("tr", [el("td", cell) for cell in cells]))
    heads = ("Queue", "", "Running", "Waiting", "Delayed", "Slots", "")
    table = el("table", el("thead", el("tr", [el("th", one) for one in heads])), el("tbody", lines))
    named = [
        el(
            "tr",
            [
                el("td", cell)
                for cell in (one.name, one.user, len(one.processes), one.backlog, one.aside)
            ],
        )
        for one in workers
    ]
    head = el("tr", [el("th", one) for one in WORKER_HEADS])
    work = el("table", el("thead", head), el("tbody", named))
    return [
        el(
            "div",
            table,
            el("h2", "Workers") if named else None,
            work if named else None,
            class_="wide",
        )
    ]
