# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the D-Bus door looks like: the table of its methods, and tasks as D-Bus values. No I/O.

The introspection data is made from the tables, so the two cannot disagree.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from signal import NSIG
from typing import Any, Final

from dbus_next import Variant

from bgtaskd import errors
from bgtaskd.daemon.bus_signals import INTERFACE, PATH, SIGNALS, clean, int64

PAYLOAD_LIMIT: Final = 1024 * 1024
"""Bytes of JSON in a message to a task; as much as fits through the control socket."""
LIST_LIMIT: Final = 1000

Named = tuple[tuple[str, str], ...]
"""Arguments: (name, signature)…"""
Parameters = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Method:
    """A method: the operation of the daemon behind it, and the way there and back."""

    name: str
    takes: Named
    gives: Named
    parameters: Callable[..., Parameters]
    """From the arguments; raises InvalidSpec."""
    answer: Callable[[Mapping[str, Any]], list[Any]]
    """The body of the reply, from what the operation returned."""

    @property
    def signature_in(self) -> str:
        """What the method takes."""
        return "".join(signature for _, signature in self.takes)

    @property
    def signature_out(self) -> str:
        """What the method gives."""
        return "".join(signature for _, signature in self.gives)

    @property
    def is_about_a_task(self) -> bool:
        """Whether the first argument is a task's id, so that somebody else's may be meant."""
        return bool(self.takes)


# How the fields of a task travel. "json": as JSON text, in a string.
TASK_FIELDS: Final[Mapping[str, str]] = {
    "id": "t",
    "name": "s",
    "kind": "s",
    "state": "s",
    "result": "s",
    "exit_status": "i",
    "signal": "s",
    "percent": "d",
    "total": "x",
    "finished": "x",
    "message": "s",
    "queue": "s",
    "user": "s",
    "priority": "i",
    "attempt": "u",
    "unit": "s",
    "settings": "json",
    "value": "json",
    "error": "s",
    "failure": "json",
    "target": "s",
    "argv": "as",
    "cwd": "s",
    "group": "s",
    "after": "at",
    "http": "json",
    "created": "t",
    "started": "t",
    "updated": "t",
    "ended": "t",
    "not_before": "t",
    "cpu_usec": "t",
    "memory_current": "t",
    "memory_peak": "t",
    "io_read_bytes": "t",
    "io_write_bytes": "t",
}


def text(value: str | None) -> str:
    """A string that D-Bus takes; empty for None."""
    return "" if value is None else clean(value).decode()


def task_values(task: Mapping[str, Any]) -> dict[str, Variant]:
    """A task as an a{sv}, from the fields that every door shows. What is not known is not there."""
    values = {}
    for name, signature in TASK_FIELDS.items():
        value = task.get(name)
        if value is None:
            continue
        if signature == "json":
            values[name] = Variant("s", text(json.dumps(value, ensure_ascii=False)))
        elif signature == "s":
            values[name] = Variant("s", text(value))
        elif signature == "at":
            values[name] = Variant("at", list(value))
        elif signature == "as":
            values[name] = Variant("as", [text(one) for one in value])
        elif signature == "d":
            values[name] = Variant("d", float(value))
        else:
            values[name] = Variant(signature, int64(value))
    return values


def task_row(task: Mapping[str, Any]) -> list[Any]:
    """A task as a line of List: id, name, state, result, queue, user, unit, percent (-1: not known)."""
    percent = task.get("percent")
    return [
        task["id"],
        text(task["name"]),
        task["state"],
        text(task.get("result")),
        text(task["queue"]),
        text(task["user"]),
        text(task["unit"]),
        -1.0 if percent is None else float(percent),
    ]


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def payload_value(payload: str) -> Any:
    """The value in a message's payload; None where it is empty. Raises InvalidSpec."""
    if not payload:
        return None
    if len(payload.encode()) > PAYLOAD_LIMIT:
        raise errors.InvalidSpec(field="payload", reason=f"more than {PAYLOAD_LIMIT} bytes")
    try:
        value = json.loads(payload, parse_constant=_refuse_constant)
        # "\ud800" is JSON, but no text: it could be neither stored nor sent on.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise errors.InvalidSpec(field="payload", reason=f"not JSON: {error}") from None
    return value


def _kill(task_id: int, whom: str, signal: int) -> Parameters:
    if whom not in ("", "all", "main"):
        raise errors.InvalidSpec(field="whom", reason='not "all" or "main"')
    if not 0 < signal < NSIG:
        raise errors.InvalidSpec(field="signal", reason=f"there is no signal {signal}")
    return {"id": task_id, "signal": str(signal), "whom": whom or "all"}


def _signal(task_id: int, name: str, payload: str) -> Parameters:
    return {"id": task_id, "name": name, "payload": payload_value(payload)}


def _id(task_id: int) -> Parameters:
    return {"id": task_id}


def _nothing(_: Mapping[str, Any]) -> list[Any]:
    return []


_ID: Final = ("id", "t")

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
            "Get", (_ID,), (("task", "a{sv}"),), _id, lambda result: [task_values(result["task"])]
        ),
        Method(
            "Signal",
            (_ID, ("name", "s"), ("payload", "s")),
            (("seq", "t"),),
            _signal,
            lambda result: [result["seq"]],
        ),
        Method("Kill", (_ID, ("whom", "s"), ("signal", "i")), (), _kill, _nothing),
        Method("Stop", (_ID,), (), _id, _nothing),
        Method("Pause", (_ID,), (), _id, _nothing),
        Method("Resume", (_ID,), (), _id, _nothing),
    )
}


# Property: signature, and what PropertiesChanged says of it: "const": it never changes while the daemon
# runs; "false": it changes too often for signals (as NJobs of org.freedesktop.systemd1.Manager).
PROPERTIES: Final[Mapping[str, tuple[str, str]]] = {
    "Version": ("s", "const"),
    "Launcher": ("s", "const"),
    "NTasks": ("t", "false"),
    "NRunning": ("t", "false"),
}


def property_values(status: Mapping[str, Any]) -> dict[str, Variant]:
    """All properties, from what the operation Status returned."""
    tasks: Mapping[str, int] = status["tasks"]
    running = tasks.get("running", 0) + tasks.get("paused", 0)
    waiting = tasks.get("queued", 0) + tasks.get("delayed", 0)
    values: dict[str, Any] = {
        "Version": text(status["version"]),
        "Launcher": text(status["launcher"]),
        "NTasks": running + waiting,
        "NRunning": running,
    }
    return {name: Variant(PROPERTIES[name][0], value) for name, value in values.items()}


def _arguments(arguments: Named, direction: str) -> str:
    how = f' direction="{direction}"' if direction else ""
    return "".join(
        f'   <arg type="{signature}" name="{name}"{how}/>\n' for name, signature in arguments
    )


def _manager() -> str:
    parts = [f' <interface name="{INTERFACE}">\n']
    for method in METHODS.values():
        arguments = _arguments(method.takes, "in") + _arguments(method.gives, "out")
        parts.append(f'  <method name="{method.name}">\n{arguments}  </method>\n')
    for name, (named, _) in SIGNALS.items():
        parts.append(f'  <signal name="{name}">\n{_arguments(named, "")}  </signal>\n')
    for name, (signature, changes) in PROPERTIES.items():
        annotation = (
            f'   <annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal"'
            f' value="{changes}"/>\n'
        )
        opening = f'  <property name="{name}" type="{signature}" access="read">\n'
        parts.append(f"{opening}{annotation}  </property>\n")
    parts.append(" </interface>\n")
    return "".join(parts)


_DOCTYPE: Final = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    '"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)
_STANDARD: Final = """\
 <interface name="org.freedesktop.DBus.Peer">
  <method name="Ping"/>
  <method name="GetMachineId">
   <arg type="s" name="machine_uuid" direction="out"/>
  </method>
 </interface>
 <interface name="org.freedesktop.DBus.Introspectable">
  <method name="Introspect">
   <arg type="s" name="xml_data" direction="out"/>
  </method>
 </interface>
 <interface name="org.freedesktop.DBus.Properties">
  <method name="Get">
   <arg type="s" name="interface_name" direction="in"/>
   <arg type="s" name="property_name" direction="in"/>
   <arg type="v" name="value" direction="out"/>
  </method>
  <method name="GetAll">
   <arg type="s" name="interface_name" direction="in"/>
   <arg type="a{sv}" name="props" direction="out"/>
  </method>
  <method name="Set">
   <arg type="s" name="interface_name" direction="in"/>
   <arg type="s" name="property_name" direction="in"/>
   <arg type="v" name="value" direction="in"/>
  </method>
  <signal name="PropertiesChanged">
   <arg type="s" name="interface_name"/>
   <arg type="a{sv}" name="changed_properties"/>
   <arg type="as" name="invalidated_properties"/>
  </signal>
 </interface>
"""


def introspection(path: str) -> str | None:
    """The introspection data of an object; None where there is none."""
    if path == PATH:
        return f"{_DOCTYPE}<node>\n{_STANDARD}{_manager()}</node>\n"
    ancestors = {"/": "org"}
    steps = PATH.split("/")[1:]
    for depth in range(1, len(steps)):
        ancestors["/" + "/".join(steps[:depth])] = steps[depth]
    child = ancestors.get(path)
    return None if child is None else f'{_DOCTYPE}<node>\n <node name="{child}"/>\n</node>\n'
