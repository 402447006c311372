# SPDX-License-Identifier: LGPL-2.1-or-later
"""What can be named in another process can run in the background; all else is refused with the reason."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import bgtaskd
from bgtaskd.errors import InvalidTarget, StartedWhileLoading
from bgtaskd.task import target

ROOT = str(Path(__file__).parents[2])


class Work(bgtaskd.BackgroundTask):
    class Inner(bgtaskd.BackgroundTask):
        pass


@bgtaskd.background
def work(status: Any, n: int) -> int:
    return n


def test_a_class_and_a_function_of_a_module_have_a_target() -> None:
    assert target.target_of(Work, "Work", __name__) == f"{__name__}:Work"
    assert target.target_of(Work.Inner, "Work.Inner", __name__) == f"{__name__}:Work.Inner"
    assert target.load(f"{__name__}:Work.Inner") is Work.Inner
    assert work(None, n=3) == 3


def test_what_has_no_name_is_refused() -> None:
    @bgtaskd.background
    def inner(status: Any) -> None: ...

    with pytest.raises(InvalidTarget, match="inside of test_what_has_no_name_is_refused"):
        inner.initiate()
    with pytest.raises(InvalidTarget, match="lambda"):
        bgtaskd.background(lambda status: None).initiate()

    class Local(bgtaskd.BackgroundTask): ...

    with pytest.raises(InvalidTarget, match="settings"):
        Local.initiate()


def test_a_name_that_means_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = work, bgtaskd.background(work.function)
    with pytest.raises(InvalidTarget, match="something else"):
        other.initiate(n=1)
    monkeypatch.delattr(sys.modules[__name__], "work")
    with pytest.raises(InvalidTarget, match="nothing"):
        mine.initiate(n=1)


def test_a_module_that_cannot_be_imported_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = types.ModuleType("made_up_here")
    exec("def job(status): pass", made.__dict__)
    monkeypatch.setitem(sys.modules, "made_up_here", made)
    with pytest.raises(InvalidTarget, match="made_up_here cannot be imported"):
        target.target_of(made.job, "job", "made_up_here")


def test_settings_that_the_function_does_not_take_are_refused() -> None:
    for settings in ({}, {"n": 1, "m": 2}):
        with pytest.raises(TypeError, match=r"argument:? '[nm]'"):
            work.initiate(**settings)


def test_a_task_that_is_started_while_a_tasks_module_is_loaded_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bomb.py").write_text(
        "import bgtaskd\n@bgtaskd.background\ndef job(status): pass\njob.initiate()\n"
    )
    with pytest.raises(StartedWhileLoading, match="__main__"):
        target.load(f"{tmp_path}/bomb.py:job")
    sys.modules.pop(target.MAIN, None)
    assert target.target_of(Work, "Work", __name__)  # and afterwards all is well again


def test_what_a_target_does_not_name_is_told() -> None:
    with pytest.raises(InvalidTarget, match="there is no such name in json"):
        target.load("json:nothing")
    with pytest.raises(InvalidTarget, match=r"\.py"):
        target.load("/etc/hostname:nothing")


@pytest.mark.parametrize("way", ["path", "-m", "-c", "stdin"])
def test_a_script_is_named_by_its_path(tmp_path: Path, way: str) -> None:
    text = (
        "from bgtaskd.task import target\nclass T: pass\n"
        "try: print(target.target_of(T, 'T', '__main__'))\nexcept Exception as e: print(e)\n"
    )
    (tmp_path / "script.py").write_text(text)
    argv = {"path": ["script.py"], "-m": ["-m", "script"], "-c": ["-c", text], "stdin": ["-"]}[way]
    done = subprocess.run(
        [sys.executable, *argv],
        cwd=tmp_path,
        env={"PYTHONPATH": ROOT},
        input=text,
        capture_output=True,
        text=True,
    )
    expected = {"path": f"{tmp_path}/script.py:T", "-m": "script:T"}.get(way)
    if expected is None:
        assert "typed in" in done.stdout
    else:
        assert done.stdout.strip() == expected


def test_an_application_servers_own_program_is_no_interpreter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert target.interpreter() == sys.executable
    monkeypatch.setattr(sys, "executable", "/usr/bin/uwsgi")
    assert target.interpreter().startswith(f"{sys.prefix}/bin/python3")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(InvalidTarget, match="python="):
        target.interpreter()


def test_the_program_hides_no_module_and_lends_its_own_library(tmp_path: Path) -> None:
    """Ours has a module named `report`, the app has one too; and the interpreter has no bgtaskd."""
    (tmp_path / "report.py").write_text("where = 'app'\n")
    code = (
        "import sys, json, runpy\n"
        "import bgtaskd.task.runner as r\n"
        "r.main = lambda: print(json.dumps(sys.path))\n"
    )
    program = f"{ROOT}/bgtaskd/task/__main__.py"
    done = subprocess.run(
        [sys.executable, "-I", program], env={}, capture_output=True, text=True, cwd=tmp_path
    )
    assert "inside of tasks only" in done.stderr, code
    assert done.returncode == 1
    probe = f"import runpy, sys, json; sys.argv[0] = {program!r}\n"
    probe += "import atexit; atexit.register(lambda: print(json.dumps(sys.path)))\n"
    probe += f"runpy.run_path({program!r}, run_name='__main__')\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", probe], env={}, capture_output=True, text=True, cwd=tmp_path
    )
    path = json.loads(done.stdout)
    assert path[-1] == ROOT
    assert f"{ROOT}/bgtaskd/task" not in path
