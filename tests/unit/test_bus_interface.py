# SPDX-License-Identifier: LGPL-2.1-or-later
"""The D-Bus door's table: what goes in is checked, what comes out is D-Bus."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("dbus_next")

from dbus_next import Message, MessageType, Variant, introspection
from hypothesis import given
from hypothesis import strategies as st

from bgtaskd import errors
from bgtaskd.daemon import bus_interface
from bgtaskd.daemon.bus_interface import METHODS, PAYLOAD_LIMIT, payload_value, task_values
from bgtaskd.daemon.bus_signals import INTERFACE, PATH
from tests.unit.test_bus_signals import a_task


def marshalled(signature: str, body: list[Any]) -> bytes:
    message = Message(
        message_type=MessageType.METHOD_RETURN, reply_serial=1, signature=signature, body=body
    )
    return bytes(message._marshall())


def test_a_task_travels_without_what_is_not_known() -> None:
    task = a_task(percent=12.5, message="nul \0 and \udc80", total=2**70)
    wire = task.to_json() | {"settings": {"a": [1, None]}, "new_field": 1}
    values = task_values(wire)
    assert values["id"] == Variant("t", 42)
    assert values["percent"] == Variant("d", 12.5)
    assert values["message"].value == "nul \N{REPLACEMENT CHARACTER} and ?"
    assert values["total"] == Variant("x", 2**63 - 1)
    assert json.loads(values["settings"].value) == {"a": [1, None]}
    assert not {"result", "ended", "new_field"} & set(values)
    assert marshalled("a{sv}", [values])


def test_every_field_of_a_task_has_its_place() -> None:
    assert list(a_task().to_json()) == list(bus_interface.TASK_FIELDS)


def test_a_row_of_list() -> None:
    [rows] = METHODS["List"].answer({"tasks": [a_task().to_json()]})
    assert rows == [
        [42, "a name", "running", "", "default", "alice", "bgtask-42.scope", -1.0],
    ]
    assert marshalled(METHODS["List"].signature_out, [rows])


@given(st.recursive(st.none() | st.booleans() | st.text() | st.integers(), st.lists))
def test_payloads_are_json(value: Any) -> None:
    assert payload_value(json.dumps(value)) == value


@pytest.mark.parametrize(
    "payload",
    [
        "{",
        "NaN",
        "[Infinity]",
        '"\\ud800"',
        "[" * 100_000,
        '"' + "a" * PAYLOAD_LIMIT + '"',
        "9" * 5000,
    ],
    ids=["open", "nan", "infinity", "surrogate", "deep", "large", "digits"],
)
def test_other_payloads_are_refused(payload: str) -> None:
    with pytest.raises(errors.InvalidSpec) as refused:
        payload_value(payload)
    assert refused.value.parameters["field"] == "payload"


def test_no_payload_is_null() -> None:
    assert METHODS["Signal"].parameters(1, "hello", "") == {
        "id": 1,
        "name": "hello",
        "payload": None,
    }


@pytest.mark.parametrize(
    ("whom", "signal", "field"),
    [("control", 15, "whom"), ("all", 0, "signal"), ("all", -1, "signal"), ("main", 65, "signal")],
)
def test_kill_refuses(whom: str, signal: int, field: str) -> None:
    with pytest.raises(errors.InvalidSpec) as refused:
        METHODS["Kill"].parameters(1, whom, signal)
    assert refused.value.parameters["field"] == field


def test_kill_means_all_processes_unless_told() -> None:
    assert METHODS["Kill"].parameters(1, "", 9) == {"id": 1, "signal": "9", "whom": "all"}


def test_the_introspection_is_what_is_served() -> None:
    text = bus_interface.introspection(PATH)
    assert text is not None
    node = introspection.Node.parse(text)
    [manager] = [one for one in node.interfaces if one.name == INTERFACE]
    assert {one.name: (one.in_signature, one.out_signature) for one in manager.methods} == {
        "List": ("", "a(tssssssd)"),
        "Get": ("t", "a{sv}"),
        "Signal": ("tss", "t"),
        "Kill": ("tsi", ""),
        "Stop": ("t", ""),
        "Pause": ("t", ""),
        "Resume": ("t", ""),
    }
    assert {one.name: one.signature for one in manager.signals} == {
        "TaskAdded": "t",
        "TaskChanged": "ta{sv}",
        "TaskFinished": "tss",
        "TaskSignaled": "tss",
    }
    assert {one.name: (one.signature, one.access.value) for one in manager.properties} == {
        "Version": ("s", "read"),
        "Launcher": ("s", "read"),
        "NTasks": ("t", "read"),
        "NRunning": ("t", "read"),
    }


def test_the_way_to_the_object_can_be_walked() -> None:
    path = "/"
    for _ in range(2):
        text = bus_interface.introspection(path)
        assert text is not None
        [child] = ElementTree.fromstring(text).findall("node")
        path = path.rstrip("/") + "/" + child.attrib["name"]
    assert path == PATH
    assert bus_interface.introspection("/org/other") is None
