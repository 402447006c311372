# SPDX-License-Identifier: LGPL-2.1-or-later
"""/etc/bgtaskd/tasks.d/*.yaml: named tasks that live long. See bgtaskd-tasks(5).

The daemon reads these files to know what is to run; the launcher reads them too, and runs nothing else under
their names. A file with a mistake is told of, with file, line, key and reason, and left out; the others count.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from bgtaskd.config import ConfigError
from bgtaskd.definitions import DefinitionReader, load_definition, load_definitions
from bgtaskd.properties import PropertyError, check_properties, parse_size, parse_timespan

DIRECTORY: Final = "/etc/bgtaskd/tasks.d"
NAME: Final = re.compile(r"[A-Za-z0-9_]{1,64}")
CLASS: Final = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")
TYPES: Final = ("async", "sync")
STARTS: Final = ("boot", "call")
PROGRAM: Final = str(Path(__file__).parent / "task/__main__.py")
"""What every worker runs; its class is handed over."""
INSTANCES_MAX: Final = 64
BACKLOG_MAX: Final = 10_000_000


@dataclass(frozen=True)
class WorkerFile:
    """One file's worker; its name is the file's. Durations in microseconds, sizes in bytes."""

    name: str
    path: str
    target: str
    type: str
    user: str
    python: str = "/usr/bin/python3"
    import_path: tuple[str, ...] = ()
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    instances: int = 1
    queue: str = "default"
    properties: Mapping[str, str] = field(default_factory=dict)
    group: str = "bgtask"
    mode: int = 0o660
    max_jobs: int | None = None
    max_memory: int | None = None
    start: str = "boot"
    idle_stop_usec: int | None = None
    watchdog_usec: int | None = None
    stop_timeout_usec: int = 30_000_000
    backlog: int = 100_000
    tries: int = 3

    @property
    def argv(self) -> tuple[str, ...]:
        """What its processes run."""
        return (self.python, PROGRAM)

    def digest(self) -> str:
        """What tells a worker of another definition: not how many there are, nor who may call."""
        import hashlib  # it brings OpenSSL, 3 MiB that the launcher never needs

        told = asdict(self)
        for name in ("path", "instances", "group", "mode", "start", "backlog", "tries"):
            del told[name]
        text = json.dumps(told, sort_keys=True, default=str)
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def load_workers(
    directory: str = DIRECTORY, *, root_owned: bool = False
) -> tuple[dict[str, WorkerFile], list[ConfigError]]:
    """Every file that has no mistake, by name, and the mistakes of the others."""
    found, errors = load_definitions(directory, _Reader, root_owned=root_owned)
    return {one.name: one for one in found}, errors


def load_worker(
    path: str, *, root_owned: bool = False
) -> tuple[WorkerFile | None, list[ConfigError]]:
    """One file; None where there is none, or it has mistakes."""
    return load_definition(path, _Reader, root_owned=root_owned)


class _Reader(DefinitionReader[WorkerFile]):
    def read(self) -> WorkerFile:
        name, data = self._name, self._data
        if not NAME.fullmatch(name):
            self._wrong("", "the file's name: letters, digits and _ only, 64 at most")
        for key in data:
            if key not in KEYS:
                self._wrong(str(key), f"no such key; there are: {', '.join(KEYS)}")
        target = self._text("class", needed=True)
        if target and not CLASS.fullmatch(target):
            self._wrong("class", "must be module:Class")
        python = self._text("python", "/usr/bin/python3")
        cwd = self._text("cwd", None)
        for key, path in (("python", python), ("cwd", cwd)):
            if path is not None and not path.startswith("/"):
                self._wrong(key, "must be an absolute path")
        import_path = data.get("import_path", [])
        if not isinstance(import_path, list) or not all(
            isinstance(one, str) and one.startswith("/") for one in import_path
        ):
            self._wrong("import_path", "must be a list of absolute paths")
            import_path = []
        queue = self._text("queue", "default") or ""
        if not NAME.fullmatch(queue):
            self._wrong("queue", "a queue's name has letters, digits and _ only")
        return WorkerFile(
            name=name,
            path=self._path,
            target=target or "",
            type=self._choice("type", TYPES),
            user=self._text("user", needed=True) or "",
            python=python or "",
            import_path=tuple(import_path),
            cwd=cwd,
            env=self._texts("env"),
            instances=self._int("instances", 1, 1, INSTANCES_MAX) or 1,
            queue=queue,
            properties=self._properties(),
            group=self._text("group", "bgtask") or "",
            mode=self._mode(),
            max_jobs=self._int("max_jobs", None, 1, 1 << 53),
            max_memory=self._size("max_memory"),
            start=self._choice("start", STARTS, "boot"),
            idle_stop_usec=self._span("idle_stop"),
            watchdog_usec=self._span("watchdog"),
            stop_timeout_usec=self._span("stop_timeout") or 30_000_000,
            backlog=self._int("backlog", 100_000, 1, BACKLOG_MAX) or 1,
            tries=self._int("tries", 3, 1, 1000) or 1,
        )

    def _text(self, key: str, default: str | None = None, *, needed: bool = False) -> str | None:
        value = self._data.get(key, default)
        if value is None and not needed:
            return None
        if not isinstance(value, str) or not value or "\0" in value:
            self._wrong(key, "must be a text")
            return default
        return value

    def _choice(self, key: str, words: tuple[str, ...], default: str | None = None) -> str:
        value = self._data.get(key, default)
        if value not in words:
            self._wrong(key, f"must be one of {', '.join(words)}")
            return words[0]
        return str(value)

    def _int(self, key: str, default: int | None, low: int, high: int) -> int | None:
        value = self._data.get(key, default)
        if value is None:
            return None
        if type(value) is not int or not low <= value <= high:
            self._wrong(key, f"must be a whole number from {low} to {high}")
            return default
        return value

    def _span(self, key: str) -> int | None:
        value = self._data.get(key)
        if value is None:
            return None
        try:
            span = parse_timespan(str(value))
        except ValueError:
            span = 0
        if span <= 0:
            self._wrong(key, "must be a time span, such as 5min")
        return span

    def _size(self, key: str) -> int | None:
        value = self._data.get(key)
        if value is None:
            return None
        try:
            return parse_size(str(value))
        except ValueError:
            self._wrong(key, "must be a size, such as 300M")
            return None

    def _texts(self, key: str) -> dict[str, str]:
        value = self._data.get(key, {})
        if not isinstance(value, dict):
            self._wrong(key, "must be a mapping")
            return {}
        out = {str(name): str(one) for name, one in value.items()}
        if any("\0" in one for pair in out.items() for one in pair):
            self._wrong(key, "must have no NUL character")
        return out

    def _properties(self) -> dict[str, str]:
        properties = self._texts("properties")
        try:
            check_properties(properties)
        except PropertyError as error:
            self._wrong("properties", str(error))
        return properties

    def _mode(self) -> int:
        value = self._data.get("mode", "0660")
        try:
            mode = int(value, 8) if isinstance(value, str) else -1
        except ValueError:
            mode = -1
        if not 0 <= mode <= 0o777:
            self._wrong("mode", 'must be an octal number in quotes, such as "0660"')
            return 0o600
        return mode


KEYS: Final = (
    "class type user python import_path cwd env instances queue properties group mode max_jobs max_memory "
    "start idle_stop watchdog stop_timeout backlog tries"
).split()


def path_of(name: str, directory: str = DIRECTORY) -> str:
    """The file of a worker with this name."""
    return os.path.join(directory, f"{name}.yaml")
