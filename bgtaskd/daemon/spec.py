# SPDX-License-Identifier: LGPL-2.1-or-later
"""From a caller's Spec to a TaskSpec: every field checked and bounded, the first wrong one named."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Final

from bgtaskd.config import Config
from bgtaskd.daemon.requestspec import check_request
from bgtaskd.daemon.secrets import check_secrets
from bgtaskd.errors import InvalidSpec, NoSuchQueue
from bgtaskd.model import NAME_MAX, NEVER_RETRIED, RECORD, Result, TaskSpec, canonical_json
from bgtaskd.properties import PropertyError, check_properties
from bgtaskd.units import ANONYMOUS_USER, HTTP

AFTER_MAX: Final = 1000
BYTES_MAX: Final = 256 * 1024
USEC_MAX: Final = 366 * 86_400_000_000 * 100
RETRIES_MAX: Final = 1_000_000
KINDS: Final = ("command", "python", RECORD, HTTP)
RECORD_FIELDS: Final = frozenset("kind name argv queue merge_key settings".split())
TARGET: Final = re.compile(r"(?:/[^\0\n]*|[^\W\d]\w*(?:\.[^\W\d]\w*)*):[^\W\d]\w*(?:\.[^\W\d]\w*)*")
TARGET_MAX: Final = 4096
MODULE: Final = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
PRELOAD_MAX: Final = 100
FAILURE_MAX: Final = 64 * 1024


def read_spec(data: Mapping[str, Any], config: Config, user: str) -> TaskSpec:
    """Check what the type check of the interface cannot. Raises InvalidSpec, NoSuchQueue."""
    given = {key: value for key, value in data.items() if value is not None}
    kind = given.get("kind", "command")
    if kind not in KINDS:
        raise InvalidSpec(field="kind", reason=f"must be one of {', '.join(KINDS)}")
    for field in ("name", "merge_key", "queue", "user", "group"):
        plain_text(field, given.get(field))
    argv = tuple(given.get("argv", ()))
    request = _request(kind, given)
    if kind == RECORD:
        _check_record(given)
    elif request is None and (not argv or not argv[0]):
        raise InvalidSpec(field="argv", reason="must name a program")
    env = given.get("env", {})
    cwd = given.get("cwd")
    target, import_path = _target(kind, given)
    for field, texts in (
        ("argv", argv),
        ("env", [*env, *env.values()]),
        ("cwd", [cwd or ""]),
        ("import_path", import_path),
    ):
        _plain(field, texts)
    if any(not name or "=" in name for name in env):
        raise InvalidSpec(field="env", reason="a name must not be empty or have a =")
    if cwd is not None and not cwd.startswith("/"):
        raise InvalidSpec(field="cwd", reason="must be an absolute path")
    own_name = (
        os.path.basename(argv[0] if argv else "") if target is None else target.rpartition(":")[2]
    )
    if request is not None:
        own_name = f"{request['method']} {request['path']}"
    name = given.get("name") or _shown(own_name)[:NAME_MAX]
    if not 1 <= len(name) <= NAME_MAX or "\0" in name:
        raise InvalidSpec(field="name", reason=f"must have 1 to {NAME_MAX} characters, no NUL")
    queue = given.get("queue", "default")
    if queue not in config.queues:
        raise NoSuchQueue(queue=queue[:NAME_MAX])
    merge_key = given.get("merge_key")
    if merge_key is not None and not 1 <= len(merge_key) <= 1000:
        raise InvalidSpec(field="merge_key", reason="must have 1 to 1000 characters")
    plain_json("settings", given.get("settings"))
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
        secrets=_secrets(given, user),
        target=target,
        import_path=import_path,
        preload=_preload(kind, given),
        after=_after(given),
        after_result=_one_of(given, "after_result", ("success", "any-result")),
        group=_group(given),
        weight=_weight(given, config.queues[queue].slots),
        needs=_needs(given, config.resources),
        on_end=_on_end(given),
        stdin=given.get("stdin", False),
        http=request,
    )


def check_failure(failure: Mapping[str, str]) -> None:
    """Refuse a reported failure that is too large or no text. Raises InvalidSpec."""
    for field, text in failure.items():
        plain_text(f"failure.{field}", text)
    if sum(len(text.encode()) for text in failure.values()) > FAILURE_MAX:
        raise InvalidSpec(field="failure", reason=f"must be at most {FAILURE_MAX} bytes in all")


def _secrets(given: Mapping[str, Any], user: str) -> tuple[str, ...]:
    secrets = given.get("secrets") or {}
    if secrets and user == ANONYMOUS_USER:
        raise InvalidSpec(
            field="secrets", reason="anonymous tasks share a user, and could read each other's"
        )
    return check_secrets(secrets)


def _one_of(given: Mapping[str, Any], field: str, words: tuple[str, ...]) -> str:
    word: str = given.get(field, words[0])
    if word not in words:
        raise InvalidSpec(field=field, reason=f"must be one of {', '.join(words)}")
    return word


def _after(given: Mapping[str, Any]) -> tuple[int, ...]:
    after = tuple(dict.fromkeys(given.get("after", ())))
    if len(after) > AFTER_MAX:
        raise InvalidSpec(field="after", reason=f"must be {AFTER_MAX} tasks at most")
    return after


def _group(given: Mapping[str, Any]) -> str | None:
    group: str | None = given.get("group")
    if group is not None and not 1 <= len(group) <= NAME_MAX:
        raise InvalidSpec(field="group", reason=f"must have 1 to {NAME_MAX} characters")
    return group


def _weight(given: Mapping[str, Any], slots: int) -> int:
    weight = _within(given, "weight", 1, 1 << 31, 1)
    if weight > slots:
        raise InvalidSpec(field="weight", reason=f"the queue has {slots} slots in all")
    return weight


def _needs(given: Mapping[str, Any], resources: Mapping[str, int]) -> dict[str, int]:
    needs: dict[str, int] = given.get("needs", {})
    for name, number in needs.items():
        if name not in resources:
            known = ", ".join(resources) or "none"
            raise InvalidSpec(
                field=f"needs.{name[:64]}", reason=f"no such resource; there are: {known}"
            )
        if not 1 <= number <= resources[name]:
            raise InvalidSpec(field=f"needs.{name}", reason=f"must be from 1 to {resources[name]}")
    return dict(needs)


def _on_end(given: Mapping[str, Any]) -> dict[str, Any] | None:
    hook = given.get("on_end")
    if hook is None:
        return None
    if not hook["argv"] or not hook["argv"][0]:
        raise InvalidSpec(field="on_end.argv", reason="must name a program")
    _plain("on_end.argv", hook["argv"])
    known = {key: value for key, value in hook.items() if value is not None}
    _one_of(known, "on", ("any", "success", "failure"))
    return known


def plain_text(field: str, text: Any) -> None:
    """Refuse half a surrogate pair: JSON can say it, but no file, bus or database can hold it.

    What is no string passes. Raises InvalidSpec.
    """
    if isinstance(text, str) and not _encodable(text, "strict"):
        raise InvalidSpec(field=field, reason="has half a surrogate pair: this is no text")


def plain_json(field: str, value: Any) -> None:
    """Refuse a JSON value that is too large, or that could not be stored and shown again.

    1e999 is JSON, but reads as infinity, which is not. Raises InvalidSpec.
    """
    try:
        size = len(canonical_json(value, allow_nan=False).encode())
    except UnicodeEncodeError:
        raise InvalidSpec(
            field=field, reason="has half a surrogate pair: this is no text"
        ) from None
    except (ValueError, RecursionError):
        raise InvalidSpec(
            field=field, reason="has a number too large, or is nested too deeply"
        ) from None
    if size > BYTES_MAX:
        raise InvalidSpec(field=field, reason=f"must be at most {BYTES_MAX} bytes of JSON")


def _shown(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _check_record(given: Mapping[str, Any]) -> None:
    if given["argv"]:
        raise InvalidSpec(field="argv", reason="must be empty: a record runs nothing")
    for field in given.keys() - RECORD_FIELDS:
        raise InvalidSpec(field=field, reason="has no meaning for a record: it runs nothing")
    if not given.get("name"):
        raise InvalidSpec(field="name", reason="must say what the record is of")


def _request(kind: str, given: Mapping[str, Any]) -> dict[str, Any] | None:
    if kind != HTTP:
        if "http" in given:
            raise InvalidSpec(field="http", reason=f"is for tasks of kind {HTTP}")
        return None
    for field in ("argv", "cwd", "env", "stdin"):
        if given.get(field):
            raise InvalidSpec(field=field, reason="has no meaning for a request: bgtaskd makes it")
    request = check_request(given.get("http"))
    plain_json("http", request)
    return request


def _target(kind: str, given: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    target, import_path = given.get("target"), tuple(given.get("import_path", ()))
    if kind != "python":
        if target is not None or import_path:
            field = "import_path" if target is None else "target"
            raise InvalidSpec(field=field, reason="is for tasks of kind python")
        return None, ()
    plain_text("target", target)
    if target is None or len(target) > TARGET_MAX or TARGET.fullmatch(target) is None:
        raise InvalidSpec(field="target", reason="must be module:name, or /path/script.py:name")
    if any(not one.startswith("/") for one in import_path):
        raise InvalidSpec(field="import_path", reason="must be absolute paths")
    return target, import_path


def _preload(kind: str, given: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules, in the order in which they are loaded. Raises InvalidSpec."""
    preload = tuple(dict.fromkeys(given.get("preload", ())))
    if preload and kind != "python":
        raise InvalidSpec(field="preload", reason="is for kind python")
    if len(preload) > PRELOAD_MAX:
        raise InvalidSpec(field="preload", reason=f"must be {PRELOAD_MAX} modules at most")
    for one in preload:
        plain_text("preload", one)
        if len(one) > NAME_MAX or MODULE.fullmatch(one) is None:
            raise InvalidSpec(field="preload", reason="must be names of modules, as in import")
    return preload


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


def _encodable(text: str, errors: str = "surrogateescape") -> bool:
    try:
        text.encode("utf-8", errors)
    except UnicodeEncodeError:
        return False
    return True
