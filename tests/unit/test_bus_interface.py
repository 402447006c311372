# SPDX-License-Identifier: LGPL-2.1-or-later
"""The D-Bus door's table: what goes in is checked, what comes out is D-Bus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("dbus_next")

from dbus_next import Message, MessageType, Variant, introspection
from hypothesis import given, settings
from hypothesis import strategies as st

from bgtaskd import errors
from bgtaskd.daemon import bus_interface
from bgtaskd.daemon.api import OPERATIONS
from bgtaskd.daemon.bus_methods import METHODS
from bgtaskd.daemon.bus_signals import INTERFACE, PATH
from bgtaskd.daemon.bus_values import (
    ASIDE_FIELDS,
    PAYLOAD_LIMIT,
    PROCESS_FIELDS,
    SCHEDULE_FIELDS,
    STATS_FIELDS,
    TASK_FIELDS,
    WORKER_FIELDS,
    parameters_of,
    payload_value,
    task_values,
)
from bgtaskd.protocol.interface import bgtaskd_interface
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
    assert list(a_task().to_json()) == list(TASK_FIELDS)


def test_a_row_of_list() -> None:
    [rows] = METHODS["List"].answer({"tasks": [a_task().to_json()]})
    assert rows == [
        [42, "a name", "running", "", "default", "alice", "bgtask-42.scope", -1.0],
    ]
    assert marshalled(METHODS["List"].signature_out, [rows])


@settings(deadline=None)
@given(
    st.recursive(st.none() | st.booleans() | st.text() | st.integers(-(2**63), 2**63 - 1), st.lists)
)
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
    parameters = parameters_of("Signal", METHODS["Signal"].parameters(1, "hello", ""))
    assert parameters == {"id": 1, "name": "hello", "payload": None}


def test_a_spec_is_what_the_varlink_interface_says() -> None:
    spec = {"argv": ["true"], "on_end": {"argv": ["true"]}, "settings": '{"a": [1]}', "weight": 2}
    assert parameters_of("Start", METHODS["Start"].parameters(spec)) == {
        "spec": spec | {"settings": {"a": [1]}}
    }
    changes = {"settings": '"x"', "priority": 3}
    assert parameters_of("Edit", METHODS["Edit"].parameters(1, changes)) == {
        "id": 1,
        "changes": {"settings": "x", "priority": 3},
    }
    assert parameters_of("Report", METHODS["Report"].parameters(1, {"value": "[1]"})) == {
        "id": 1,
        "value": [1],
    }
    submitted = METHODS["Submit"].parameters("mailer", ['{"to": 1}', "2"])
    assert parameters_of("Submit", submitted)["payloads"] == [{"to": 1}, 2]
    assert parameters_of("Call", METHODS["Call"].parameters("adder", "[1]", "", 0)) == {
        "name": "adder",
        "payload": [1],
        "merge_key": None,
        "timeout_usec": None,
    }
    listed = METHODS["ListFiltered"].parameters({"states": ["running"], "group": "g"})
    assert parameters_of("List", listed) == {"limit": 1000, "states": ["running"], "group": "g"}
    assert parameters_of("Retry", METHODS["Retry"].parameters(1, {}))["changes"] is None
    assert parameters_of("Stats", METHODS["Stats"].parameters(""))["name"] is None


@pytest.mark.parametrize(
    ("method", "arguments", "field", "reason"),
    [
        ("Start", [{}], "argv", "missing"),
        ("Start", [{"argv": "true"}], "argv", "must be an array"),
        ("Start", [{"argv": [1]}], "argv[0]", "must be of type string"),
        (
            "Start",
            [{"argv": ["true"], "colour": "red"}],
            "colour",
            "unknown; known are kind, name,",
        ),
        ("Start", [{"argv": ["true"], "env": {"A": 1}}], "env.A", "must be of type string"),
        (
            "Start",
            [{"argv": ["true"], "settings": {"a": 1}}],
            "settings",
            "must be a string: JSON text",
        ),
        ("Start", [{"argv": ["true"], "settings": "{"}], "settings", "not JSON"),
        ("Start", [{"argv": ["true"], "on_end": {}}], "on_end.argv", "missing"),
        ("Start", [{"argv": ["true"], "secrets": {"a": "b"}}], "secrets", "not over D-Bus"),
        ("Start", [{"argv": [], "http": {"cookies": {}}}], "http.cookies", "not over D-Bus"),
        ("Edit", [1, {"secrets": {}}], "secrets", "not over D-Bus"),
        ("Edit", [1, {"weight": True}], "weight", "must be of type int"),
        ("Retry", [1, {"user": "root"}], "user", "unknown"),
        ("AddSchedule", [{"name": "x", "calendar": ["daily"]}], "schedule.spec", "missing"),
        ("AddSchedule", [{"spec": {"secrets": {}}}], "secrets", "not over D-Bus"),
        ("Record", [1, "sleeping", {}], "state", "must be one of"),
        ("ListFiltered", [{"states": ["sleeping"]}], "states[0]", "must be one of"),
        ("ListFiltered", [{"limit": "1"}], "limit", "must be of type int"),
        ("Report", [1, {"percent": "9"}], "percent", "must be of type float"),
    ],
)
def test_other_values_are_refused_by_their_fields_name(
    method: str, arguments: list[Any], field: str, reason: str
) -> None:
    with pytest.raises(errors.InvalidSpec) as refused:
        parameters_of(METHODS[method].operation or method, METHODS[method].parameters(*arguments))
    assert refused.value.parameters["field"] == field
    assert refused.value.parameters["reason"].startswith(reason)


PLAIN = st.recursive(
    st.booleans() | st.text() | st.integers() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(deadline=None)
@given(st.sampled_from(sorted(METHODS)), st.data())
def test_whatever_comes_is_checked_or_refused(name: str, data: st.DataObject) -> None:
    """What passes may go to the operation: the Varlink interface has it so."""
    known = st.sampled_from(
        "argv settings env spec name calendar value failure http on_end".split()
    )
    draws = {
        "s": st.text(),
        "b": st.booleans(),
        "t": st.integers(0, 2**63 - 1),
        "x": st.integers(-(2**63), 2**63 - 1),
        "i": st.integers(-(2**31), 2**31 - 1),
        "at": st.lists(st.integers(0, 2**63 - 1)),
        "as": st.lists(st.text()),
        "a{sv}": st.dictionaries(known | st.text(), PLAIN),
    }
    method = METHODS[name]
    arguments = [data.draw(draws[signature]) for _, signature in method.takes]
    operation = method.operation or name
    try:
        parameters = parameters_of(operation, method.parameters(*arguments))
    except errors.InvalidSpec as error:
        assert error.parameters["reason"]
    else:
        bgtaskd_interface().check(operation, parameters)


def test_every_operation_is_there_but_for_those_that_the_bus_has_otherwise() -> None:
    there = {one.operation or name for name, one in METHODS.items()}
    assert set(OPERATIONS) - there == {"Watch", "Wait", "Status"}
    assert there <= set(OPERATIONS)


def test_what_runs_something_as_its_owner_is_not_for_polkit() -> None:
    """The operations that decide what runs as somebody are for that somebody, and administrators."""

    def may_ask(name: str, *arguments: Any) -> bool:
        method = METHODS[name]
        return method.for_others(parameters_of(name, method.parameters(*arguments)))

    assert may_ask("Stop", 1)
    assert may_ask("Retry", 1, {})
    assert not may_ask("Retry", 1, {"argv": ["true"]})
    assert not may_ask("Edit", 1, {})
    assert not may_ask("Send", 1, "rm -rf ~", False)
    assert not may_ask("FireSchedule", "x")
    assert not may_ask("Start", {"argv": ["true"]})


def test_fields_of_records_are_those_of_the_varlink_interface() -> None:
    types = bgtaskd_interface().types
    assert list(SCHEDULE_FIELDS) == list(types["Schedule"].fields)
    assert list(STATS_FIELDS) == list(types["NameStats"].fields)
    assert list(WORKER_FIELDS) == list(types["Worker"].fields)
    assert list(PROCESS_FIELDS) == list(types["WorkerProcess"].fields)
    assert list(ASIDE_FIELDS) == list(types["AsidePayload"].fields)


def test_answers() -> None:
    def body(name: str, result: Any) -> list[Any]:
        out = METHODS[name].answer(result)
        assert marshalled(METHODS[name].signature_out, out) is not None
        return out

    queue = {"name": "q", "slots": 4, "running": 1, "waiting": 2, "delayed": 0, "paused": True}
    assert body("Queues", {"queues": [queue]}) == [[["q", 4, 1, 2, 0, True]]]
    [[stats]] = body(
        "Stats", {"names": [{"name": "n", "runs": 2, "p50_usec": None, "cpu_usec": 7}]}
    )
    assert {key: one.value for key, one in stats.items()} == {"name": "n", "runs": 2, "cpu_usec": 7}
    [[schedule]] = body("Schedules", {"schedules": [{"name": "n", "persistent": False, "next": 9}]})
    assert schedule["persistent"] == Variant("b", False)
    assert schedule["next"] == Variant("t", 9)
    assert body("GetConfig", {"config": None}) == ["null"]
    assert body("FireSchedule", {"id": None}) == [0]
    process = {"id": 7, "state": "running", "started": None, "memory_current": 2**40}
    worker = {"name": "w", "wanted": 1, "processes": [process]}
    [[shown]] = body("Workers", {"workers": [worker]})
    assert shown["processes"].value[0]["memory_current"] == Variant("t", 2**40)
    assert body("Call", {"answer": {"sum": 3}, "id": None}) == ['{"sum": 3}', 0]
    page = {"data": "nul \0", "offset": 1, "next_offset": 6, "dropped": 0, "eof": False}
    assert body("Output", page) == ["nul \N{REPLACEMENT CHARACTER}", 1, 6, 0, False]


def test_only_so_many_messages_are_told_at_once() -> None:
    def told(payload: Any, count: int) -> list[Any]:
        one = {"name": "n", "payload": payload, "created": 9}
        signals = [{**one, "seq": seq} for seq in range(1, count + 1)]
        [rows] = METHODS["Signals"].answer({"signals": signals})
        return [row[0] for row in rows]

    assert told(None, 1001) == list(range(1, 1001))
    assert told("x" * 400_000, 9) == [1, 2]
    assert told("x" * 2_000_000, 2) == [1]


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
        "ListFiltered": ("a{sv}", "a(tssssssd)"),
        "Get": ("t", "a{sv}"),
        "Start": ("a{sv}", "tb"),
        "Edit": ("ta{sv}", ""),
        "Retry": ("ta{sv}", ""),
        "Remove": ("t", ""),
        "Pause": ("t", ""),
        "Resume": ("t", ""),
        "Stop": ("t", ""),
        "Kill": ("tsi", ""),
        "Send": ("tsb", ""),
        "Output": ("txt", "stttb"),
        "Signal": ("tss", "t"),
        "Signals": ("tt", "a(tsst)"),
        "ClearSignals": ("tat", "t"),
        "SetConfig": ("ts", ""),
        "GetConfig": ("t", "s"),
        "Report": ("ta{sv}", ""),
        "Record": ("tsa{sv}", ""),
        "Schedules": ("", "aa{sv}"),
        "AddSchedule": ("a{sv}", ""),
        "RemoveSchedule": ("s", ""),
        "EnableSchedule": ("sb", ""),
        "FireSchedule": ("s", "t"),
        "Stats": ("s", "aa{sv}"),
        "Call": ("ssst", "st"),
        "Submit": ("sas", "at"),
        "Workers": ("", "aa{sv}"),
        "AsidePayloads": ("stt", "aa{sv}"),
        "RetryPayloads": ("at", "at"),
        "DropPayloads": ("at", "at"),
        "Queues": ("", "a(sttttb)"),
        "PauseQueue": ("s", ""),
        "ResumeQueue": ("s", ""),
        "Clean": ("", "t"),
        "Reload": ("", "as"),
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


def test_the_manual_page_has_every_method() -> None:
    page = (Path(__file__).parents[2] / "man/org.bgtaskd1.7").read_text()
    synopsis, _, rest = page.partition(".SH DESCRIPTION")
    for method in METHODS.values():
        words = [f"in {signature} {name}" for name, signature in method.takes]
        words += [f"out {signature} {name}" for name, signature in method.gives]
        assert f"\n  {method.name}({', '.join(words)});\n" in synopsis
        assert f"{method.name}(" in rest


def test_the_way_to_the_object_can_be_walked() -> None:
    path = "/"
    for _ in range(2):
        text = bus_interface.introspection(path)
        assert text is not None
        [child] = ElementTree.fromstring(text).findall("node")
        path = path.rstrip("/") + "/" + child.attrib["name"]
    assert path == PATH
    assert bus_interface.introspection("/org/other") is None
