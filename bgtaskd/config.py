# SPDX-License-Identifier: LGPL-2.1-or-later
"""/etc/bgtaskd.yaml and /etc/bgtaskd/conf.d/*.yaml: read, merged, checked. See bgtaskd.yaml(5).

Every mistake is collected with its file, line, key and reason; a configuration with a mistake is not used.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from bgtaskd.logs.registry import registered_names as registered_logs
from bgtaskd.properties import PropertyError, check_properties, parse_size, parse_timespan
from bgtaskd.storage.registry import OURS, registered_names

PATH: Final = "/etc/bgtaskd.yaml"
CONF_D: Final = "/etc/bgtaskd/conf.d"
SIZE_MAX: Final = 1 << 20
QUEUE_NAME: Final = re.compile(r"[A-Za-z0-9_]{1,64}")
LOG_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
LOGS_MAX: Final = 8
RATE: Final = re.compile(r"([1-9][0-9]{0,6}) */ *([0-9]*) *([a-z]+)")


@dataclass(frozen=True)
class ConfigError(Exception):
    """One mistake."""

    path: str
    line: int
    key: str
    reason: str

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else self.path
        return f"{place}: {self.key}: {self.reason}" if self.key else f"{place}: {self.reason}"


class ConfigErrors(Exception):
    """All the mistakes of a configuration; ``errors`` is never empty."""

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(str(one) for one in errors))


@dataclass(frozen=True, slots=True)
class Rate:
    """``count`` starts at the most in any ``per_usec``."""

    count: int
    per_usec: int


@dataclass(frozen=True)
class QueueConfig:
    """A queue. ``slots``: how many tasks run at once; ``max_waiting``: how many more may wait."""

    name: str
    slots: int
    max_waiting: int = 100_000
    paused: bool = False
    rate: Rate | None = None
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunAsRule:
    """Members of ``groups`` and ``users`` may run tasks as the users in ``run_as``."""

    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    run_as: tuple[str, ...] = ()


@dataclass(frozen=True)
class PolicyConfig:
    """Who may do what, beyond everyone's own tasks."""

    group: str = "bgtask"
    admin_group: str = "bgtask-admin"
    allow_root: bool = False
    run_as: tuple[RunAsRule, ...] = ()


@dataclass(frozen=True)
class Config:
    """The whole configuration. Durations in microseconds, sizes in bytes."""

    queues: Mapping[str, QueueConfig]
    policy: PolicyConfig = PolicyConfig()
    output_to: str = "both"
    output_also: tuple[str, ...] = ()
    output_cap: int = 10 << 20
    journal_burst: int = 10_000
    stop_timeout_usec: int = 10_000_000
    backlog_days: int = 30
    all_backlog_days: int = 60
    connections_per_user: int = 256
    requests_per_user: int = 256
    waiting_per_user: int = 50_000
    templates_per_user: int = 8
    template_idle_usec: int = 900_000_000
    resources: Mapping[str, int] = field(default_factory=dict)
    storage: str = "sqlite"


def load_config(path: str = PATH, conf_d: str = CONF_D, *, root_owned: bool = False) -> Config:
    """Read and check the files; none need exist. ``root_owned``: refuse files that others than root may write.

    Raises ConfigErrors.
    """
    files = [path, *sorted(str(one) for one in Path(conf_d).glob("*.yaml"))]
    errors: list[ConfigError] = []
    merged: dict[str, Any] = {}
    lines = Lines()
    for file in files:
        try:
            _merge(merged, read_file(file, lines, root_owned), (), lines)
        except FileNotFoundError:
            continue
        except ConfigError as error:
            errors.append(error)
    reader = _Reader(lines, errors)
    config = reader.config(merged)
    if errors:
        raise ConfigErrors(errors)
    return config


class Lines:
    """Where each key path was last set."""

    def __init__(self) -> None:
        self.places: dict[tuple[str, ...], tuple[str, int]] = {}

    def of(self, keys: tuple[str, ...]) -> tuple[str, int]:
        """File and line of a key path, or of what it is in."""
        while keys and keys not in self.places:
            keys = keys[:-1]
        return self.places.get(keys, (PATH, 0))


def read_file(path: str, lines: Lines, root_owned: bool) -> dict[str, Any]:
    """One file's mapping; where its keys are goes to ``lines``. Raises ConfigError, FileNotFoundError."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if root_owned and (
                status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            ):
                raise ConfigError(path, 0, "", "must be owned by root and writable by nobody else")
            data = file.read(SIZE_MAX + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(path, 0, "", f"cannot read: {error.strerror}") from None
    if len(data) > SIZE_MAX:
        raise ConfigError(path, 0, "", "larger than 1 MiB")
    loader: Any = None
    try:
        for token in yaml.scan(data, Loader=yaml.SafeLoader):
            if isinstance(token, (yaml.AliasToken, yaml.AnchorToken)):
                raise ConfigError(
                    path, token.start_mark.line + 1, "", "anchors and aliases are not used here"
                )
        loader = yaml.SafeLoader(data)
        node = loader.get_single_node()
        return {} if node is None else _mapping(loader, node, path, (), lines)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ConfigError(path, line, "", f"not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            path, 0, "", f"not YAML: {str(error).splitlines()[0] if str(error) else 'too deep'}"
        ) from None
    finally:
        if loader is not None:
            loader.dispose()


def _mapping(
    loader: Any, node: Any, path: str, keys: tuple[str, ...], lines: Lines
) -> dict[str, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(
            path, node.start_mark.line + 1, ".".join(keys), "must be a mapping of names to values"
        )
    out: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(path, line, ".".join(keys), "keys must be plain names")
        key = key_node.value
        if key in out:
            raise ConfigError(path, line, ".".join((*keys, key)), "given twice")
        lines.places[(*keys, key)] = (path, line)
        if isinstance(value_node, yaml.MappingNode):
            out[key] = _mapping(loader, value_node, path, (*keys, key), lines)
        else:
            out[key] = loader.construct_object(value_node, deep=True)
    return out


def _merge(
    into: dict[str, Any], other: dict[str, Any], keys: tuple[str, ...], lines: Lines
) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value, (*keys, key), lines)
        else:
            into[key] = value


class _Reader:
    """From plain values to the dataclasses, collecting mistakes on the way."""

    def __init__(self, lines: Lines, errors: list[ConfigError]) -> None:
        self._lines = lines
        self._errors = errors

    def wrong(self, keys: tuple[str, ...], reason: str) -> None:
        path, line = self._lines.of(keys)
        self._errors.append(ConfigError(path, line, ".".join(keys), reason))

    def config(self, data: dict[str, Any]) -> Config:
        base = Config(queues={})
        self._known(
            data,
            tuple("queues resources policy output retention defaults limits storage".split()),
            (),
        )
        output = self._section(data, "output", ("to", "also", "cap", "journal_burst"))
        retention = self._section(data, "retention", ("backlog_days", "all_backlog_days"))
        defaults = self._section(data, "defaults", ("stop_timeout",))
        limits = self._section(
            data,
            "limits",
            (
                *("connections_per_user", "requests_per_user", "waiting_per_user"),
                *("templates_per_user", "template_idle"),
            ),
        )
        storage = self._section(data, "storage", ("backend",))
        return Config(
            queues=self._queues(data.get("queues")),
            policy=self._policy(data),
            output_to=self._choice(output, ("output", "to"), ("both", "journal", "file")),
            output_also=self._also(output),
            output_cap=self._size(output, ("output", "cap"), base.output_cap, 65536),
            journal_burst=self._int(output, ("output", "journal_burst"), base.journal_burst, 0),
            stop_timeout_usec=self._span(
                defaults, ("defaults", "stop_timeout"), base.stop_timeout_usec
            ),
            backlog_days=self._int(retention, ("retention", "backlog_days"), base.backlog_days, 0),
            all_backlog_days=self._int(
                retention, ("retention", "all_backlog_days"), base.all_backlog_days, 0
            ),
            connections_per_user=self._int(
                limits, ("limits", "connections_per_user"), base.connections_per_user, 1
            ),
            requests_per_user=self._int(
                limits, ("limits", "requests_per_user"), base.requests_per_user, 1
            ),
            waiting_per_user=self._int(
                limits, ("limits", "waiting_per_user"), base.waiting_per_user, 1
            ),
            templates_per_user=self._int(
                limits, ("limits", "templates_per_user"), base.templates_per_user, 0
            ),
            template_idle_usec=self._span(
                limits, ("limits", "template_idle"), base.template_idle_usec
            ),
            resources=self._resources(data.get("resources")),
            storage=self._choice(storage, ("storage", "backend"), OURS, registered_names),
        )

    def _also(self, output: dict[str, Any]) -> tuple[str, ...]:
        keys, names = ("output", "also"), output.get("also", [])
        if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
            self.wrong(keys, "must be a list of names: [mine]")
            return ()
        if not names:
            return ()
        known = registered_logs()
        for name in names:
            if name not in known or not LOG_NAME.fullmatch(name):
                has = f"there are: {', '.join(known)}" if known else "no package has registered one"
                self.wrong(keys, f"there is no log {name}; {has}")
        if len(set(names)) < len(names) or len(names) > LOGS_MAX:
            self.wrong(keys, f"each name once, and at most {LOGS_MAX}")
        if output.get("to") == "journal":
            self.wrong(keys, "logs are fed from the output files: output: to: must be file or both")
        return tuple(names)

    def _queues(self, data: Any) -> dict[str, QueueConfig]:
        default = QueueConfig("default", max(4, 2 * (os.cpu_count() or 1)))
        queues = {"default": default}
        if data is None:
            return queues
        if not isinstance(data, dict):
            self.wrong(("queues",), "must be a mapping of queue names")
            return queues
        for name, one in data.items():
            keys = ("queues", name)
            if not QUEUE_NAME.fullmatch(name):
                self.wrong(keys, "a queue's name has letters, digits and _ only, 64 at most")
                continue
            section = one if one is not None else {}
            if not isinstance(section, dict):
                self.wrong(keys, "must be a mapping")
                continue
            self._known(section, ("slots", "max_waiting", "paused", "rate", "properties"), keys)
            queues[name] = QueueConfig(
                name,
                self._int(section, (*keys, "slots"), default.slots, 1),
                self._int(section, (*keys, "max_waiting"), default.max_waiting, 1),
                self._bool(section, (*keys, "paused"), False),
                self._rate(section.get("rate"), (*keys, "rate")),
                self._properties(section.get("properties"), (*keys, "properties")),
            )
        return queues

    def _rate(self, data: Any, keys: tuple[str, ...]) -> Rate | None:
        if data is None:
            return None
        found = RATE.fullmatch(str(data))
        try:
            if found is not None:
                return Rate(int(found[1]), parse_timespan(f"{found[2] or 1}{found[3]}") or 1)
        except ValueError:
            pass
        self.wrong(keys, "must be so many starts in a time span: 10/min, 100/5min")
        return None

    def _resources(self, data: Any) -> dict[str, int]:
        if data is None:
            return {}
        if not isinstance(data, dict):
            self.wrong(("resources",), "must be a mapping of names to numbers")
            return {}
        out = {}
        for name in data:
            if QUEUE_NAME.fullmatch(str(name)):
                out[str(name)] = self._int(data, ("resources", str(name)), 1, 0)
            else:
                self.wrong(("resources", str(name)), "a name has letters, digits and _ only")
        return out

    def _properties(self, data: Any, keys: tuple[str, ...]) -> dict[str, str]:
        if data is None:
            return {}
        if not isinstance(data, dict):
            self.wrong(keys, "must be a mapping of property names")
            return {}
        out = {str(name): str(value) for name, value in data.items()}
        for name, value in out.items():
            try:
                check_properties({name: value}, for_slice=True)
            except PropertyError as error:
                self.wrong((*keys, name), error.reason)
        return out

    def _policy(self, data: dict[str, Any]) -> PolicyConfig:
        section = self._section(data, "policy", ("group", "admin_group", "allow_root", "run_as"))
        base = PolicyConfig()
        rules = section.get("run_as", [])
        if not isinstance(rules, list):
            self.wrong(("policy", "run_as"), "must be a list of rules")
            rules = []
        return PolicyConfig(
            self._string(section, ("policy", "group"), base.group),
            self._string(section, ("policy", "admin_group"), base.admin_group),
            self._bool(section, ("policy", "allow_root"), base.allow_root),
            tuple(rule for one in rules if (rule := self._rule(one)) is not None),
        )

    def _rule(self, data: Any) -> RunAsRule | None:
        keys = ("policy", "run_as")
        if not isinstance(data, dict):
            self.wrong(keys, "each rule is a mapping with users: or groups:, and as:")
            return None
        self._known(data, ("users", "groups", "as"), keys)
        lists: list[tuple[str, ...]] = []
        for key in ("users", "groups", "as"):
            value = data.get(key, [])
            if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
                self.wrong(keys, f"{key}: must be a list of names")
                value = []
            lists.append(tuple(value))
        return RunAsRule(*lists)

    def _section(self, data: dict[str, Any], name: str, known: tuple[str, ...]) -> dict[str, Any]:
        section = data.get(name)
        if section is None:
            return {}
        if not isinstance(section, dict):
            self.wrong((name,), "must be a mapping")
            return {}
        self._known(section, known, (name,))
        return section

    def _known(
        self, section: dict[str, Any], known: tuple[str, ...], keys: tuple[str, ...]
    ) -> None:
        for name in section:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, 1)
                hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
                self.wrong((*keys, str(name)), "no such key" + hint)

    def _int(self, section: dict[str, Any], keys: tuple[str, ...], default: int, low: int) -> int:
        value = section.get(keys[-1], default)
        if type(value) is not int or not low <= value <= 1 << 40:
            self.wrong(keys, f"must be a whole number of at least {low}")
            return default
        return value

    def _bool(self, section: dict[str, Any], keys: tuple[str, ...], default: bool) -> bool:
        value = section.get(keys[-1], default)
        if not isinstance(value, bool):
            self.wrong(keys, "must be true or false")
            return default
        return value

    def _string(self, section: dict[str, Any], keys: tuple[str, ...], default: str) -> str:
        value = section.get(keys[-1], default)
        if not isinstance(value, str) or not value:
            self.wrong(keys, "must be a name")
            return default
        return value

    def _choice(
        self,
        section: dict[str, Any],
        keys: tuple[str, ...],
        known: tuple[str, ...],
        others: Callable[[], tuple[str, ...]] = tuple,
    ) -> str:
        """``others``: more that is known, asked for only where it is needed."""
        value = section.get(keys[-1], known[0])
        if value in known:
            return str(value)
        more = others()
        if value not in more:
            self.wrong(keys, f"must be one of {', '.join((*known, *more))}")
            return known[0]
        return str(value)

    def _size(self, section: dict[str, Any], keys: tuple[str, ...], default: int, low: int) -> int:
        return self._parsed(section, keys, default, low, parse_size, "a size such as 10M")

    def _span(self, section: dict[str, Any], keys: tuple[str, ...], default: int) -> int:
        return self._parsed(section, keys, default, 0, parse_timespan, "a time span such as 10s")

    def _parsed(
        self,
        section: dict[str, Any],
        keys: tuple[str, ...],
        default: int,
        low: int,
        parse: Callable[[str], int],
        what: str,
    ) -> int:
        if keys[-1] not in section:
            return default
        try:
            value = parse(str(section[keys[-1]]))
        except ValueError:
            value = -1
        if not low <= value <= 1 << 50:
            self.wrong(keys, f"must be {what}" + (f", at least {low}" if low else ""))
            return default
        return value
