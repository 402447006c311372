# SPDX-License-Identifier: LGPL-2.1-or-later
"""What supervisors say, checked field by field before anything is believed. Pure.

They are ours, and root; but what they pass on comes from tasks, and they may be older than the daemon is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from bgtaskd.daemon.spec import check_failure, plain_json
from bgtaskd.errors import InvalidSpec
from bgtaskd.model import Result

INTEGER_MAX: Final = 1 << 62
TEXT_MAX: Final = 4096
RESULTS: Final = frozenset({"not-started", *(one.value for one in Result)})

Check = Callable[[str, Any], None]


class BadHearsay(Exception):
    """A message that is not believed; the text names the field."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")


def _fail(field: str, what: str) -> None:
    raise BadHearsay(field, f"is not {what}")


def _integer(field: str, value: Any) -> None:
    if type(value) is not int or not 0 <= value <= INTEGER_MAX:
        _fail(field, "a whole number")


def _positive(field: str, value: Any) -> None:
    if type(value) is not int or not 0 < value <= INTEGER_MAX:
        _fail(field, "a positive number")


def _flag(field: str, value: Any) -> None:
    if type(value) is not bool:
        _fail(field, "true or false")


def _text(field: str, value: Any) -> None:
    if not isinstance(value, str) or len(value) > TEXT_MAX:
        _fail(field, f"a text of at most {TEXT_MAX} characters")


def _percent(field: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        _fail(field, "a percentage")


def _result(field: str, value: Any) -> None:
    if not isinstance(value, str) or value not in RESULTS:
        _fail(field, "a result")


def _value(field: str, value: Any) -> None:
    try:
        plain_json(field, value)
    except InvalidSpec as error:
        raise BadHearsay(field, str(error.parameters["reason"])) from None


def _failure(field: str, value: Any) -> None:
    if not isinstance(value, dict):
        _fail(field, "a failure")
    try:
        check_failure(value)
    except InvalidSpec as error:
        raise BadHearsay(field, str(error.parameters["reason"])) from None


def _or_none(check: Check) -> Check:
    return lambda field, value: None if value is None else check(field, value)


def _object(needed: Mapping[str, Check], maybe: Mapping[str, Check]) -> Check:
    """``needed`` must be there; ``maybe`` need not. What else is there is for another version."""

    def check(field: str, value: Any) -> None:
        if not isinstance(value, dict):
            _fail(field, "an object")
        for name, one in needed.items():
            if name not in value:
                raise BadHearsay(f"{field}.{name}", "is missing")
            one(f"{field}.{name}", value[name])
        for name, one in maybe.items():
            if name in value:
                one(f"{field}.{name}", value[name])

    return check


_REPORT: Final = _object(
    {},
    {
        "percent": _or_none(_percent),
        "total": _or_none(_integer),
        "finished": _or_none(_integer),
        "message": _or_none(_text),
        "value": _value,
        "failure": _or_none(_failure),
    },
)
_CARD: Final = _object(
    {
        "name": _text,
        "kind": _text,
        "queue": _text,
        "user": _text,
        "uid": _integer,
        "owner_uid": _integer,
    },
    {},
)
_HELLO: Final = _object(
    {"id": _positive, "attempt": _positive, "boot_id": _text, "pid": _integer, "card": _CARD},
    {
        "started": _or_none(_integer),
        "frozen": _flag,
        "progress": _or_none(_REPORT),
        "stalled": _flag,
        "timed_out": _flag,
        "left_over": _flag,
    },
)
_EXITED: Final = _object(
    {"result": _result},
    {
        "exit_status": _or_none(_integer),
        "signal": _or_none(_text),
        "error": _or_none(_text),
        "started": _or_none(_integer),
        "ended": _or_none(_integer),
        "cpu_usec": _or_none(_integer),
        "memory_peak": _or_none(_integer),
        "io_read_bytes": _or_none(_integer),
        "io_write_bytes": _or_none(_integer),
        "progress": _or_none(_REPORT),
    },
)
_MESSAGES: Final[Mapping[str, Check]] = {
    "hello": _HELLO,
    "started": _or_none(_integer),
    "report": _REPORT,
    "output_bytes": _integer,
    "frozen": _flag,
    "stalled": _flag,
    "timed_out": _flag,
    "left_over": lambda field, value: None,
    "stdin_taken": _flag,
    "exited": _EXITED,
}


def check_message(said: Any) -> Mapping[str, Any]:
    """One message, now to be believed. Raises BadHearsay."""
    if not isinstance(said, dict):
        raise BadHearsay("message", "is not an object")
    for name, value in said.items():
        if name in _MESSAGES:
            _MESSAGES[name](name, value)
    return said


def check_exit(exit_: Any) -> Mapping[str, Any]:
    """The end in an attempt's record. Raises BadHearsay."""
    _EXITED("exit", exit_)
    return exit_  # type: ignore[no-any-return]  # it is a dict now
