# SPDX-License-Identifier: LGPL-2.1-or-later
"""Our output file, and the log that the documentation shows, pass the suite; what breaks a rule does not.

The journal's turn is in tests/system/test_logs.py, where there is one.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from bgtaskd.logs import registry
from bgtaskd.logs.conformance import LogConformance
from bgtaskd.logs.interface import Entry, Log, LogError
from bgtaskd.logs.outputfile import OutputFile, file_name
from tests import samples


class Files:
    """The supervisors' output files."""

    def __init__(self, directory: Path) -> None:
        self.directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self.files: dict[Entry, OutputFile] = {}

    def begin(self, entry: Entry, offset: int) -> None:
        self.files[entry] = OutputFile(self.directory, entry.task_id, entry.attempt, 1 << 30)

    def write(self, entry: Entry, data: bytes, offset: int) -> None:
        file = self.files[entry]
        file.write(data)
        assert file.error is None

    def end(self, entry: Entry) -> None:
        self.files.pop(entry).close()

    def close(self) -> None:
        os.close(self.directory)


class TestFiles(LogConformance):
    one_life = True

    def open_log(self, directory: Path) -> Log:
        return Files(directory)

    def arrived(self, directory: Path, entry: Entry) -> bytes:
        path = directory / str(entry.task_id) / file_name(entry.attempt)
        return path.read_bytes() if path.exists() else b""


def copies_class(directory: Path) -> Any:
    path = directory / "copies.py"
    path.write_text(samples.log_module())
    spec = importlib.util.spec_from_file_location("copies_of_the_documentation", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.Copies


class TestCopies(LogConformance):
    @pytest.fixture(autouse=True)
    def module(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.copies = copies_class(tmp_path_factory.mktemp("copies"))

    def open_log(self, directory: Path) -> Log:
        made: Log = self.copies(directory)
        return made

    def arrived(self, directory: Path, entry: Entry) -> bytes:
        path = directory / f"{entry.task_id}.{entry.attempt}"
        return path.read_bytes() if path.exists() else b""


class Broken(Files):
    """Does one thing wrong."""

    def __init__(self, directory: Path, wrong: str) -> None:
        super().__init__(directory)
        self.wrong = wrong

    def begin(self, entry: Entry, offset: int) -> None:
        if self.wrong == "mixes":
            entry = Entry(entry.task_id, 1, "", "", "", 0, "")
            self.files[entry] = self.files.get(entry) or OutputFile(
                self.directory, entry.task_id, 1, 1 << 30
            )
        else:
            super().begin(entry, offset)

    def write(self, entry: Entry, data: bytes, offset: int) -> None:
        if self.wrong == "mixes":
            entry = Entry(entry.task_id, 1, "", "", "", 0, "")
        if self.wrong == "drops":
            data = data[: 1 << 20]
        if self.wrong == "cuts":
            data = data.rstrip(b"\r\n") + b"\n"
        self.files[entry].write(data)

    def end(self, entry: Entry) -> None:
        if self.wrong != "mixes":
            super().end(entry)


@pytest.mark.parametrize(
    ("wrong", "test"),
    [
        ("mixes", "test_tasks_and_attempts_do_not_mix"),
        ("drops", "test_a_large_piece_arrives"),
        ("cuts", "test_pieces_need_not_be_lines"),
    ],
)
def test_what_breaks_a_rule_does_not_pass(tmp_path: Path, wrong: str, test: str) -> None:
    class TestBroken(TestFiles):
        def open_log(self, directory: Path) -> Log:
            return Broken(directory, wrong)

    run: Callable[[Path], None] = getattr(TestBroken(), test)
    with pytest.raises(AssertionError):
        run(tmp_path)


def points(monkeypatch: pytest.MonkeyPatch, *found: EntryPoint) -> None:
    monkeypatch.setattr(registry, "_points", lambda: list(found))


def test_a_log_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = __name__ + ":Files"
    points(monkeypatch, EntryPoint("mine", here, registry.GROUP))
    assert registry.registered_names() == ("mine",)
    assert isinstance(registry.open_log("mine", tmp_path / "logs/mine"), Files)
    with pytest.raises(LogError, match="there is no log other; there are: mine"):
        registry.open_log("other", tmp_path)
    points(monkeypatch, EntryPoint("broken", "bgtaskd.nowhere:nothing", registry.GROUP))
    with pytest.raises(LogError, match=r"bgtaskd\.nowhere:nothing"):
        registry.open_log("broken", tmp_path)
