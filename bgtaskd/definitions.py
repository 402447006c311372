# SPDX-License-Identifier: LGPL-2.1-or-later
"""Directories in which each file defines one thing, named like the file: schedules.d, apps.d, tasks.d.

A file with a mistake is told of, with file, line, key and reason, and left out; the others count.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from bgtaskd.config import ConfigError, Lines, read_file

T = TypeVar("T")


class DefinitionReader(Generic[T]):
    """From one file's plain values to what they define, collecting mistakes on the way."""

    def __init__(self, path: str, lines: Lines, data: Mapping[str, Any]) -> None:
        self._path = path
        self._name = Path(path).stem
        self._lines = lines
        self._data = data
        self.errors: list[ConfigError] = []

    def read(self) -> T:
        """What the file defines; it counts only where there are no ``errors``."""
        raise NotImplementedError

    def _wrong(self, key: str, reason: str) -> None:
        line = self._lines.of((key,))[1] if key else 0
        self.errors.append(ConfigError(self._path, line, key, reason))


def load_definition(
    path: str, reader: type[DefinitionReader[T]], *, root_owned: bool = False
) -> tuple[T | None, list[ConfigError]]:
    """One file; None where there is none, or it has mistakes."""
    lines = Lines()
    try:
        data = read_file(path, lines, root_owned)
    except FileNotFoundError:
        return None, []
    except ConfigError as error:
        return None, [error]
    one = reader(path, lines, data)
    made = one.read()
    return (None if one.errors else made), one.errors


def load_definitions(
    directory: str, reader: type[DefinitionReader[T]], *, root_owned: bool = False
) -> tuple[list[T], list[ConfigError]]:
    """Every file that has no mistake, and the mistakes of the others."""
    found: list[T] = []
    errors: list[ConfigError] = []
    for path in sorted(Path(directory).glob("*.yaml")):
        loaded = load_definition(str(path), reader, root_owned=root_owned)
        errors += loaded[1]
        if loaded[0] is not None:
            found.append(loaded[0])
    return found, errors
