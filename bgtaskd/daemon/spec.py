# SPDX-License-Identifier: LGPL-2.1-or-later
"""From a caller's Spec to a TaskSpec: every field checked and bounded, the first wrong one named."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from bgtaskd.config import Config
from bgtaskd.errors import InvalidSpec, NoSuchQueue
from bgtaskd.model import NEVER_RETRIED, Result, TaskSpec, canonical_json
from bgtaskd.properties import PropertyError, check_properties

NAME_MAX: Final = 200
BYTES_MAX: Final = 256 * 1024
USEC_MAX: Final = 366 * 86_400_000_000 * 100
RETRIES_MAX: Final = 1_000_000


def read_spec(data: Mapping[str, Any], config: Config, user: str) -> TaskSpec:
    """Check what the type check of the interface cannot. Raises InvalidSpec, NoSuchQueue."""
    given = {key: value for key, value in data.items() if value is not None}
    kind = given.get("kind", "command")
    if kind != "command":
        raise InvalidSpec(field="kind", reason="must be command")
    argv = tuple(given["argv"])
    if not argv or not argv[0]:
        raise InvalidSpec(field="argv", reason="must name a program")
    env = given.get("env", {})
    cwd = given.get("cwd")
    for field, texts in (("argv", argv), ("env", [*env, *env.values()]), ("cwd", [cwd or ""])):
        _plain(field, texts)
    if any(not name or "=" in name for name in env):
        raise InvalidSpec(field="env", reason="a name must not be empty or have a =")
    if cwd is not None and not cwd.startswith("/"):
        raise InvalidSpec(field="cwd", reason="must be an absolute path")
    name = given.get("name") or os.path.basename(argv[0])[:NAME_MAX]
    if not given.get("name"):
        name = name.encode("utf-8", "replace").decode()  # a program's name may be any bytes
    if not 1 <= len(name) <= NAME_MAX or "\0" in name or not _is_text(name):
        raise InvalidSpec(field="name", reason=f"must have 1 to {NAME_MAX} characters, no NUL")
    queue = given.get("queue", "default")
    if queue not in config.queues:
        raise NoSuchQueue(queue=queue[:NAME_MAX])
    merge_key = given.get("merge_key")
    if merge_key is not None and not (1 <= len(merge_key) <= 1000 and _is_text(merge_key)):
        raise InvalidSpec(field="merge_key", reason="must have 1 to 1000 characters")
    if len(canonical_json(given.get("settings"))) > BYTES_MAX:
        raise InvalidSpec(field="settings", reason=f"must be at most {BYTES_MAX} bytes of JSON")
    return TaskSpec(
        kind=kind,
        name=name,
        argv=argv,
        user=user,
        cwd=cwd,
        env=dict(env),
        queue=queue,
        priority=_within(given, "priority", -1000, 1000, 0),
        delay_usec=_within(given, "delay_usec", 0, USEC_MAX, 0),
        merge_key=merge_key,
        timeout_usec=_maybe(given, "timeout_usec"),
        stall_timeout_usec=_maybe(given, "stall_timeout_usec"),
        stop_timeout_usec=_maybe(given, "stop_timeout_usec"),
        retries=_within(given, "retries", 0, RETRIES_MAX, 0),
        retry_delay_usec=_within(given, "retry_delay_usec", 0, USEC_MAX, 1_000_000),
        retry_on=_retry_on(given),
        properties=_properties(given),
        settings=given.get("settings"),
    )


def _properties(given: Mapping[str, Any]) -> dict[str, str]:
    properties = given.get("properties", {})
    try:
        check_properties(properties)
    except PropertyError as error:
        raise InvalidSpec(field=f"properties.{error.name[:64]}", reason=error.reason) from None
    return dict(properties)


def _retry_on(given: Mapping[str, Any]) -> tuple[Result, ...] | None:
    if "retry_on" not in given:
        return None
    known = {one.value: one for one in Result if one not in NEVER_RETRIED}
    for one in given["retry_on"]:
        if one not in known:
            raise InvalidSpec(
                field="retry_on", reason=f"{one[:64]!r} is none of {', '.join(known)}"
            )
    return tuple(known[one] for one in given["retry_on"])


def _within(given: Mapping[str, Any], field: str, low: int, high: int, default: int) -> int:
    value = given.get(field, default)
    if not low <= value <= high:
        raise InvalidSpec(field=field, reason=f"must be from {low} to {high}")
    return int(value)


def _maybe(given: Mapping[str, Any], field: str) -> int | None:
    return _within(given, field, 1, USEC_MAX, 1) if field in given else None


def _plain(field: str, texts: Any) -> None:
    size = 0
    for text in texts:
        if "\0" in text or not _encodable(text):
            raise InvalidSpec(field=field, reason="must have no NUL character")
        size += len(text.encode("utf-8", "surrogateescape")) + 1
    if size > BYTES_MAX:
        raise InvalidSpec(field=field, reason=f"must be at most {BYTES_MAX} bytes in all")


def _is_text(text: str) -> bool:
    """Whether it can be written down as UTF-8: a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True
