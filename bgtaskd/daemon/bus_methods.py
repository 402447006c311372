# SPDX-License-Identifier: LGPL-2.1-or-later
"""The methods of the D-Bus door: a table, of operations of the daemon and how to get there and back. No I/O.

Watch and Wait are no methods, for the bus has signals; Status is in the properties.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from signal import NSIG
from typing import Any, Final

from bgtaskd import errors
from bgtaskd.daemon.bus_reader import FLAT
from bgtaskd.daemon.bus_values import (
    ASIDE_FIELDS,
    SCHEDULE_FIELDS,
    STATS_FIELDS,
    WORKER_FIELDS,
    json_text,
    task_row,
    task_values,
    text,
    variants,
)

LIST_LIMIT: Final = 1000
SIGNALS_LIMIT: Final = 1000
SIGNALS_WEIGHT: Final = 1024 * 1024
"""Characters of payloads in a reply; one payload, however long, there is always."""

Named = tuple[tuple[str, str], ...]
"""Arguments: (name, signature)…"""
Parameters = dict[str, Any]
Result = Mapping[str, Any]


def _with_id(parameters: Parameters) -> bool:
    return "id" in parameters


def _never(_: Parameters) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Method:
    """A method: the operation of the daemon behind it, and the way there and back."""

    name: str
    takes: Named
    gives: Named
    parameters: Callable[..., Parameters]
    """From the arguments; raises InvalidSpec."""
    answer: Callable[[Result], list[Any]]
    """The body of the reply, from what the operation returned."""
    for_others: Callable[[Parameters], bool] = _with_id
    """Whether polkit may let somebody do it to another user's task. Not what makes something else run as
    that user: this is for administrators alone."""
    operation: str = ""
    """Its name, where it is not the method's."""

    @property
    def signature_in(self) -> str:
        """What the method takes."""
        return "".join(signature for _, signature in self.takes)

    @property
    def signature_out(self) -> str:
        """What the method gives."""
        return "".join(signature for _, signature in self.gives)

    @property
    def is_flat(self) -> bool:
        """Whether it takes plain values only."""
        return FLAT.issuperset(self.signature_in)


def _kill(task_id: int, whom: str, signal: int) -> Parameters:
    if whom not in ("", "all", "main"):
        raise errors.InvalidSpec(field="whom", reason='not "all" or "main"')
    if not 0 < signal < NSIG:
        raise errors.InvalidSpec(field="signal", reason=f"there is no signal {signal}")
    return {"id": task_id, "signal": str(signal), "whom": whom or "all"}


def _start(spec: dict[str, Any]) -> Parameters:
    return {"spec": _without_secrets(spec)}


def _with_changes(task_id: int, changes: dict[str, Any]) -> Parameters:
    return {"id": task_id, "changes": _without_secrets(changes) or None}


def _add_schedule(schedule: dict[str, Any]) -> Parameters:
    spec = schedule.get("spec")
    if isinstance(spec, dict):
        _without_secrets(spec)
    return {"schedule": schedule}


def _without_secrets(spec: dict[str, Any]) -> dict[str, Any]:
    request = spec.get("http")
    for field, given in (("", spec), ("http.", request if isinstance(request, dict) else {})):
        for name in ("secrets", "headers", "cookies"):
            if name in given:
                raise errors.InvalidSpec(
                    field=field + name,
                    reason="not over D-Bus, where root may listen in: use the control socket",
                )
    return spec


def _id(task_id: int) -> Parameters:
    return {"id": task_id}


def _queue(name: str) -> Parameters:
    return {"queue": name}


def _name(name: str) -> Parameters:
    return {"name": name}


def _call(name: str, payload: str, merge_key: str, timeout_usec: int) -> Parameters:
    return {
        "name": name,
        "payload": payload,
        "merge_key": merge_key or None,
        "timeout_usec": timeout_usec or None,
    }


def _ids(result: Result) -> list[Any]:
    return [result["ids"]]


def _nothing(_: Result) -> list[Any]:
    return []


def _messages(result: Result) -> list[Any]:
    rows: list[Any] = []
    weight = 0
    for one in result["signals"][:SIGNALS_LIMIT]:
        payload = "" if one["payload"] is None else json_text(one["payload"])
        weight += len(payload)
        if rows and weight > SIGNALS_WEIGHT:
            break
        rows.append([one["seq"], text(one["name"]), payload, one["created"]])
    return [rows]


def _queues(result: Result) -> list[Any]:
    fields = ("slots", "running", "waiting", "delayed", "paused")
    return [[[text(one["name"]), *(one[field] for field in fields)] for one in result["queues"]]]


def _records(key: str, fields: Mapping[str, str]) -> Callable[[Result], list[Any]]:
    return lambda result: [[variants(fields, one) for one in result[key]]]


def _output(result: Result) -> list[Any]:
    place = [result[field] for field in ("offset", "next_offset", "dropped", "eof")]
    return [text(result["data"]), *place]


_ID: Final = ("id", "t")
_IDS: Final = ("ids", "at")
_NAME: Final = ("name", "s")
_QUEUE: Final = ("queue", "s")
_CHANGES: Final = ("changes", "a{sv}")
_PAGE: Final = (
    ("data", "s"),
    ("offset", "t"),
    ("next_offset", "t"),
    ("dropped", "t"),
    ("eof", "b"),
)

METHODS: Final[Mapping[str, Method]] = {
    method.name: method
    for method in (
        Method(
            "List",
            (),
            (("tasks", "a(tssssssd)"),),
            lambda: {"limit": LIST_LIMIT},
            lambda result: [[task_row(task) for task in result["tasks"]]],
        ),
        Method(
            "ListFiltered",
            (("filter", "a{sv}"),),
            (("tasks", "a(tssssssd)"),),
            lambda given: {"limit": LIST_LIMIT, **given},
            lambda result: [[task_row(task) for task in result["tasks"]]],
            operation="List",
        ),
        Method(
            "Get", (_ID,), (("task", "a{sv}"),), _id, lambda result: [task_values(result["task"])]
        ),
        Method(
            "Start",
            (("spec", "a{sv}"),),
            (_ID, ("merged", "b")),
            _start,
            lambda result: [result["id"], result["merged"]],
        ),
        Method(
            "Edit",
            (_ID, _CHANGES),
            (),
            lambda task_id, changes: {"id": task_id, "changes": _without_secrets(changes)},
            _nothing,
            _never,
        ),
        Method(
            "Retry",
            (_ID, _CHANGES),
            (),
            _with_changes,
            _nothing,
            lambda parameters: parameters["changes"] is None,
        ),
        Method("Remove", (_ID,), (), _id, _nothing),
        Method("Pause", (_ID,), (), _id, _nothing),
        Method("Resume", (_ID,), (), _id, _nothing),
        Method("Stop", (_ID,), (), _id, _nothing),
        Method("Kill", (_ID, ("whom", "s"), ("signal", "i")), (), _kill, _nothing),
        Method(
            "Send",
            (_ID, ("text", "s"), ("eof", "b")),
            (),
            lambda task_id, words, eof: {"id": task_id, "text": words, "eof": eof},
            _nothing,
            _never,
        ),
        Method(
            "Output",
            (_ID, ("offset", "x"), ("limit", "t")),
            _PAGE,
            lambda task_id, offset, limit: {
                "id": task_id,
                "offset": offset,
                "limit": limit or None,
            },
            _output,
        ),
        Method(
            "Signal",
            (_ID, _NAME, ("payload", "s")),
            (("seq", "t"),),
            lambda task_id, name, payload: {"id": task_id, "name": name, "payload": payload},
            lambda result: [result["seq"]],
        ),
        Method(
            "Signals",
            (_ID, ("after", "t")),
            (("signals", "a(tsst)"),),
            lambda task_id, after: {"id": task_id, "after": after},
            _messages,
        ),
        Method(
            "ClearSignals",
            (_ID, ("seqs", "at")),
            (("cleared", "t"),),
            lambda task_id, seqs: {"id": task_id, "seqs": seqs or None},
            lambda result: [result["cleared"]],
        ),
        Method(
            "SetConfig",
            (_ID, ("config", "s")),
            (),
            lambda task_id, config: {"id": task_id, "config": config},
            _nothing,
        ),
        Method(
            "GetConfig",
            (_ID,),
            (("config", "s"),),
            _id,
            lambda result: [json_text(result["config"])],
        ),
        Method(
            "Report",
            (_ID, ("report", "a{sv}")),
            (),
            lambda task_id, report: {**report, "id": task_id},
            _nothing,
        ),
        Method(
            "Record",
            (_ID, ("state", "s"), ("more", "a{sv}")),
            (),
            lambda task_id, state, more: {**more, "id": task_id, "state": state},
            _nothing,
        ),
        Method(
            "Schedules",
            (),
            (("schedules", "aa{sv}"),),
            dict,
            _records("schedules", SCHEDULE_FIELDS),
        ),
        Method(
            "AddSchedule",
            (("schedule", "a{sv}"),),
            (),
            _add_schedule,
            _nothing,
        ),
        Method("RemoveSchedule", (_NAME,), (), _name, _nothing),
        Method(
            "EnableSchedule",
            (_NAME, ("enabled", "b")),
            (),
            lambda name, enabled: {"name": name, "enabled": enabled},
            _nothing,
        ),
        Method("FireSchedule", (_NAME,), (_ID,), _name, lambda result: [result["id"] or 0]),
        Method(
            "Stats",
            (_NAME,),
            (("names", "aa{sv}"),),
            lambda name: {"name": name or None},
            _records("names", STATS_FIELDS),
        ),
        Method(
            "Call",
            (_NAME, ("payload", "s"), ("merge_key", "s"), ("timeout_usec", "t")),
            (("answer", "s"), _ID),
            _call,
            lambda result: [json_text(result["answer"]), result["id"] or 0],
        ),
        Method(
            "Submit",
            (_NAME, ("payloads", "as")),
            (_IDS,),
            lambda name, payloads: {"name": name, "payloads": payloads},
            _ids,
        ),
        Method("Workers", (), (("workers", "aa{sv}"),), dict, _records("workers", WORKER_FIELDS)),
        Method(
            "AsidePayloads",
            (_NAME, ("before", "t"), ("limit", "t")),
            (("payloads", "aa{sv}"),),
            lambda name, before, limit: {
                "name": name or None,
                "before": before or None,
                "limit": limit or None,
            },
            _records("payloads", ASIDE_FIELDS),
        ),
        Method("RetryPayloads", (_IDS,), (_IDS,), lambda ids: {"ids": ids}, _ids),
        Method("DropPayloads", (_IDS,), (_IDS,), lambda ids: {"ids": ids}, _ids),
        Method("Queues", (), (("queues", "a(sttttb)"),), dict, _queues),
        Method("PauseQueue", (_QUEUE,), (), _queue, _nothing),
        Method("ResumeQueue", (_QUEUE,), (), _queue, _nothing),
        Method("Clean", (), (("removed", "t"),), dict, lambda result: [result["removed"]]),
        Method("Reload", (), (("mistakes", "as"),), dict, lambda result: [result["mistakes"]]),
    )
}
