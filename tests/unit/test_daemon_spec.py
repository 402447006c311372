# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a Spec may say: whatever is accepted can be stored, and shown again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgtaskd.config import load_config
from bgtaskd.daemon.spec import BYTES_MAX, check_failure, read_spec
from bgtaskd.errors import InvalidSpec, NoSuchQueue
from bgtaskd.model import State, Task, TaskSpec
from bgtaskd.storage.interface import PutTask
from bgtaskd.storage.sqlite import open_storage

CONFIG = load_config("/nonexistent", "/nonexistent")
HALF = "\ud800"
ANY_TEXT = st.text(st.characters(), max_size=20)
ANY_JSON = st.recursive(st.none() | st.floats() | st.integers() | ANY_TEXT, st.lists, max_leaves=5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("argv", []),
        ("argv", [""]),
        ("argv", ["a\0"]),
        ("argv", ["a" * BYTES_MAX]),
        ("argv", [HALF]),
        ("env", {"A=B": "x"}),
        ("env", {"": "x"}),
        ("env", {"A": "\0"}),
        ("cwd", "relative"),
        ("name", "a" * 201),
        ("name", "a\0b"),
        ("name", "a\udc80"),
        ("name", HALF),
        ("merge_key", ""),
        ("merge_key", HALF),
        ("queue", HALF),
        ("priority", 1001),
        ("delay_usec", -1),
        ("timeout_usec", 0),
        ("retries", -1),
        ("retry_on", ["success"]),
        ("settings", {"x": HALF}),
        ("settings", float("inf")),
        ("settings", "a" * BYTES_MAX),
        ("kind", "none"),
        ("target", "a:b"),
        ("import_path", ["/a"]),
    ],
)
def test_what_is_wrong_is_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidSpec) as caught:
        read_spec({"argv": ["true"], field: value}, CONFIG, "root")
    assert caught.value.parameters["field"] == field


@pytest.mark.parametrize(
    ("target", "import_path", "field"),
    [
        (None, [], "target"),
        ("", [], "target"),
        ("module", [], "target"),
        ("module:", [], "target"),
        (":name", [], "target"),
        ("module:name()", [], "target"),
        ("os;x:name", [], "target"),
        ("1a:name", [], "target"),
        ("relative/script.py:name", [], "target"),
        ("/script\n.py:name", [], "target"),
        ("/" + "a" * 5000 + ":name", [], "target"),
        ("/a" + HALF + ":name", [], "target"),
        ("a:b", ["relative"], "import_path"),
        ("a:b", ["/a\0"], "import_path"),
        ("a:b", ["/" + "a" * BYTES_MAX], "import_path"),
    ],
)
def test_a_python_task_has_a_target(target: str | None, import_path: list[str], field: str) -> None:
    spec = {"kind": "python", "argv": ["x"], "target": target, "import_path": import_path}
    with pytest.raises(InvalidSpec) as caught:
        read_spec(spec, CONFIG, "root")
    assert caught.value.parameters["field"] == field


@pytest.mark.parametrize("target", ["a:B", "a.b_1:C.d", "/srv/an app/été.py:Größe", "é:f"])
def test_a_target_that_python_can_import_is_taken(target: str) -> None:
    given = {"kind": "python", "argv": ["python3"], "target": target, "import_path": ["/srv"]}
    spec = read_spec(given, CONFIG, "root")
    assert (spec.target, spec.import_path) == (target, ("/srv",))
    assert spec.name == target.rpartition(":")[2]
    assert TaskSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    ("field", "value"),
    [("argv", ["true"]), ("env", {"A": "b"}), ("retries", 1), ("timeout_usec", 5), ("cwd", "/")],
)
def test_a_record_runs_nothing(field: str, value: Any) -> None:
    given = {"kind": "record", "argv": [], "name": "import"}
    assert read_spec(given, CONFIG, "root").name == "import"
    for wrong in ({**given, field: value}, {**given, "name": None}):
        with pytest.raises(InvalidSpec) as caught:
            read_spec(wrong, CONFIG, "root")
    assert caught.value.parameters["field"] == "name"


def test_a_failure_is_bounded() -> None:
    check_failure({"type": "E", "message": "m", "traceback": "t" * 60_000})
    for wrong in ({"traceback": "é" * 33_000}, {"message": HALF}):
        with pytest.raises(InvalidSpec):
            check_failure(wrong)


def test_an_unknown_queue() -> None:
    with pytest.raises(NoSuchQueue):
        read_spec({"argv": ["true"], "queue": "none"}, CONFIG, "root")


def test_arguments_need_not_be_text() -> None:
    spec = read_spec({"argv": ["/bin/\udcff"], "cwd": "/\udcff"}, CONFIG, "root")
    assert spec.argv == ("/bin/\udcff",)
    assert spec.name == "\N{REPLACEMENT CHARACTER}"


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries(
        {"argv": st.lists(ANY_TEXT, min_size=1, max_size=3)},
        optional={
            "name": ANY_TEXT,
            "merge_key": ANY_TEXT,
            "cwd": ANY_TEXT.map("/".__add__),
            "env": st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=3),
            "settings": ANY_JSON,
        },
    )
)
def test_what_is_accepted_is_stored_and_shown(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]
) -> None:
    try:
        spec = read_spec(data, CONFIG, "root")
    except InvalidSpec:
        return
    where: Path = tmp_path_factory.mktemp("spec")
    storage, _ = open_storage(where / "state.db")
    task = Task(1, spec, uid=0, user="root", owner_uid=0, state=State.QUEUED, created=1, updated=1)
    storage.apply([PutTask(task)])
    kept = storage.get(1)
    storage.close()
    assert kept is not None
    assert kept.spec == spec
    json.dumps(kept.to_json(), allow_nan=False)
