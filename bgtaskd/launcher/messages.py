# SPDX-License-Identifier: LGPL-2.1-or-later
"""What may be asked of the launcher: every field checked here, before root acts on it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bgtaskd.properties import Parsed, PropertyError, check_properties

MESSAGE_MAX: Final = 4 << 20
HANDOVER_MAX: Final = 1 << 20
ID_MAX: Final = 1 << 53
ATTEMPT_MAX: Final = 1 << 31
QUEUE: Final = re.compile(r"[A-Za-z0-9_]{1,64}")
NAME_MAX: Final = 200
SECRETS_MAX: Final = 64
CREDENTIAL: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


class BadMessage(Exception):
    """A request that was refused unread; the text names the field."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")


class SystemdError(Exception):
    """PID 1 said no. ``name``: the D-Bus error's name."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        super().__init__(text or name)


@dataclass(frozen=True, slots=True)
class Launch:
    """One attempt to launch. Times in microseconds, sizes in bytes."""

    id: int
    attempt: int
    name: str
    kind: str
    queue: str
    uid: int
    user: str
    owner_uid: int
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str | None
    properties: Mapping[str, str]
    timeout_usec: int | None
    stall_timeout_usec: int | None
    stop_timeout_usec: int
    output_to: str
    output_cap: int
    journal_burst: int
    handover: str | None
    stdin: bool
    secrets: Mapping[str, str]
    template: int | None
    """The task whose process it is to be forked from."""
    worker: str | None
    """Kind worker: the name of the file that defines it."""


def read_launch(message: Mapping[str, Any]) -> Launch:
    """Check a launch request. Raises BadMessage."""
    queue = text(message, "queue", 64)
    if not QUEUE.fullmatch(queue):
        raise BadMessage("queue", "letters, digits and _ only")
    argv = message.get("argv")
    if not isinstance(argv, list) or not argv or not all(is_plain(one) for one in argv):
        raise BadMessage("argv", "a list of strings without NUL, not empty")
    cwd = message.get("cwd")
    if cwd is not None and not (is_plain(cwd) and cwd.startswith("/")):
        raise BadMessage("cwd", "an absolute path")
    properties = mapping(message, "properties")
    parsed(properties)
    env = mapping(message, "env")
    if any("=" in key or not key for key in env):
        raise BadMessage("env", "names without =")
    stdin = message.get("stdin", False)
    if type(stdin) is not bool:
        raise BadMessage("stdin", "true or false")
    handover = message.get("handover")
    if handover is not None:
        handover = text(message, "handover", HANDOVER_MAX)
    return Launch(
        id=integer(message, "id", 1, ID_MAX),
        attempt=integer(message, "attempt", 1, ATTEMPT_MAX),
        name=text(message, "name", NAME_MAX),
        kind=text(message, "kind", 32),
        queue=queue,
        uid=integer(message, "uid", 0, (1 << 32) - 2),
        user=text(message, "user", 256),
        owner_uid=integer(message, "owner_uid", 0, (1 << 32) - 2),
        argv=tuple(argv),
        env=env,
        cwd=cwd,
        properties=properties,
        timeout_usec=optional(message, "timeout_usec"),
        stall_timeout_usec=optional(message, "stall_timeout_usec"),
        stop_timeout_usec=integer(message, "stop_timeout_usec", 0, ID_MAX),
        output_to=_output_to(message),
        output_cap=integer(message, "output_cap", 4096, 1 << 40),
        journal_burst=integer(message, "journal_burst", 0, 1 << 31),
        handover=handover,
        stdin=stdin,
        secrets=_secrets(message),
        template=optional(message, "template"),
        worker=None if message.get("worker") is None else text(message, "worker", 64),
    )


def _output_to(message: Mapping[str, Any]) -> str:
    where = message.get("output_to", "both")
    if where not in ("both", "journal", "file"):
        raise BadMessage("output_to", "both, journal or file")
    return str(where)


def _secrets(message: Mapping[str, Any]) -> Mapping[str, str]:
    secrets = mapping(message, "secrets") if message.get("secrets") is not None else {}
    if len(secrets) > SECRETS_MAX or not all(CREDENTIAL.fullmatch(name) for name in secrets):
        raise BadMessage("secrets", f"at most {SECRETS_MAX}, with names that files can have")
    return secrets


def parsed(properties: Mapping[str, str]) -> Mapping[str, Parsed]:
    """Properties as systemd and setrlimit want them. Raises BadMessage."""
    try:
        return check_properties(properties)
    except PropertyError as error:
        raise BadMessage("properties", str(error)) from None


def attempt_of(message: Mapping[str, Any]) -> tuple[int, int]:
    """The attempt that a request is about. Raises BadMessage."""
    return integer(message, "id", 1, ID_MAX), integer(message, "attempt", 1, ATTEMPT_MAX)


def integer(message: Mapping[str, Any], name: str, low: int, high: int) -> int:
    """A whole number within bounds. Raises BadMessage."""
    value = message.get(name)
    if type(value) is not int or not low <= value <= high:
        raise BadMessage(name, f"a whole number from {low} to {high}")
    return value


def optional(message: Mapping[str, Any], name: str) -> int | None:
    """A positive number, or none. Raises BadMessage."""
    return None if message.get(name) is None else integer(message, name, 1, ID_MAX)


def text(message: Mapping[str, Any], name: str, longest: int) -> str:
    """A bounded string. Raises BadMessage."""
    value = message.get(name)
    if not isinstance(value, str) or len(value) > longest or not is_plain(value):
        raise BadMessage(name, f"a string without NUL of at most {longest} characters")
    return value


def mapping(message: Mapping[str, Any], name: str) -> Mapping[str, str]:
    """A mapping of strings without NUL. Raises BadMessage."""
    value = message.get(name)
    if not isinstance(value, dict):
        raise BadMessage(name, "an object of strings")
    for key, one in value.items():
        if not is_plain(key) or not is_plain(one):
            raise BadMessage(name, "strings without NUL only")
    return value


def is_plain(value: object) -> bool:
    """Whether it is a string that can be handed to the kernel."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False  # half a surrogate pair: JSON can say it, nothing else can
    return True
