# SPDX-License-Identifier: LGPL-2.1-or-later
"""/etc/bgtaskd/schedules.d/*.yaml: what the administrator has run again and again. See bgtaskd.yaml(5).

A file with a mistake is told of, with file, line, key and reason, and left out; the others count.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bgtaskd.config import ConfigError
from bgtaskd.definitions import DefinitionReader, load_definitions
from bgtaskd.properties import parse_timespan

DIRECTORY: Final = "/etc/bgtaskd/schedules.d"
NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
OVERLAPS: Final = ("skip", "queue", "replace")
SPANS: Final = ("timeout", "stall_timeout", "stop_timeout", "retry_delay")
PLAIN: Final = {
    "cwd": str,
    "env": dict,
    "queue": str,
    "priority": int,
    "retries": int,
    "properties": dict,
    "settings": object,
    "group": str,
    "weight": int,
    "needs": dict,
}
KEYS: Final = (
    *("calendar", "user", "command", "persistent", "randomized_delay", "overlap", "enabled"),
    *SPANS,
    *PLAIN,
)


@dataclass(frozen=True)
class ScheduleFile:
    """One file's schedule; its name is the file's. Durations in microseconds."""

    name: str
    path: str
    user: str
    calendar: tuple[str, ...]
    spec: Mapping[str, Any]
    persistent: bool = False
    randomized_delay_usec: int = 0
    overlap: str = "skip"
    enabled: bool = True


def load_schedules(
    directory: str = DIRECTORY, *, root_owned: bool = False
) -> tuple[list[ScheduleFile], list[ConfigError]]:
    """Every file that has no mistake, and the mistakes of the others."""
    return load_definitions(directory, _Reader, root_owned=root_owned)


class _Reader(DefinitionReader[ScheduleFile]):
    def read(self) -> ScheduleFile:
        name, data = self._name, self._data
        if not NAME.fullmatch(name):
            self._wrong("", "the file's name: letters, digits, _ and - only, 64 at most")
        for key in data:
            if key not in KEYS:
                self._wrong(str(key), f"no such key; there are: {', '.join(KEYS)}")
        spec: dict[str, Any] = {"argv": self._command(data)}
        for key, kind in PLAIN.items():
            if key in data:
                spec[key] = self._typed(data, key, kind)
        for key in SPANS:
            if key in data:
                spec[f"{key}_usec"] = self._span(data, key)
        for key in ("env", "properties"):
            if isinstance(spec.get(key), dict):
                spec[key] = {str(one): str(value) for one, value in spec[key].items()}
        overlap = data.get("overlap", "skip")
        if overlap not in OVERLAPS:
            self._wrong("overlap", f"must be one of {', '.join(OVERLAPS)}")
        return ScheduleFile(
            name,
            self._path,
            self._typed(data, "user", str, needed=True),
            self._calendar(data),
            spec,
            self._typed(data, "persistent", bool, False),
            self._span(data, "randomized_delay"),
            overlap,
            self._typed(data, "enabled", bool, True),
        )

    def _typed(
        self,
        data: Mapping[str, Any],
        key: str,
        kind: type,
        default: Any = None,
        needed: bool = False,
    ) -> Any:
        value = data.get(key, default)
        if (needed and value is None) or (
            value is not None
            and (not isinstance(value, kind) or (kind is int and value in (True, False)))
        ):
            words = {str: "a text", int: "a whole number", bool: "true or false", dict: "a mapping"}
            self._wrong(key, f"must be {words[kind]}")
        return value

    def _calendar(self, data: Mapping[str, Any]) -> tuple[str, ...]:
        value = data.get("calendar")
        some = [value] if isinstance(value, str) else value
        if not isinstance(some, list) or not some or not all(isinstance(one, str) for one in some):
            self._wrong("calendar", "must be an expression of systemd.time(7), or a list of them")
            return ()
        return tuple(some)

    def _command(self, data: Mapping[str, Any]) -> list[str]:
        value = data.get("command")
        try:
            words = shlex.split(value) if isinstance(value, str) else value
        except ValueError as error:
            self._wrong("command", f"cannot be split into words: {error}")
            return []
        if (
            not isinstance(words, list)
            or not words
            or not all(isinstance(one, str) for one in words)
        ):
            self._wrong(
                "command", "must be a program and its arguments: a line, or a list of texts"
            )
            return []
        return words

    def _span(self, data: Mapping[str, Any], key: str) -> int:
        try:
            return parse_timespan(str(data.get(key, "0")))
        except ValueError:
            self._wrong(key, "must be a time span, such as 5min")
            return 0
