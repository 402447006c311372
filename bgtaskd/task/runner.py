# SPDX-License-Identifier: LGPL-2.1-or-later
"""Inside of a Python task: load the target, run it, hand its value or its exception over."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final

from bgtaskd.errors import BgtaskdError, InvalidResult, InvalidSpec, NotInTask, RemoteError
from bgtaskd.task import base, own, prints, target
from bgtaskd.task.own import OwnStatus

OK, FAILED = 0, 1
TRACEBACK_MAX: Final = 48 * 1024
MESSAGE_MAX: Final = 2048
TYPE_MAX: Final = 200


def main() -> int:
    """The task; its exit status."""
    faulthandler.enable()
    try:
        handover = read_handover()
    except (NotInTask, OSError, ValueError) as error:
        print(f"bgtaskd: this runs inside of tasks only: {error}", file=sys.stderr)
        return FAILED
    if "worker" in handover:
        from bgtaskd.task import serving

        return serving.serve(handover)
    return run(handover) if "target" in handover else _serve(handover)


def read_handover() -> dict[str, Any]:
    """What the daemon hands to the task: target, import_path, settings, secrets.

    Raises NotInTask, OSError, ValueError.
    """
    number = os.environ.pop("BGTASK_HANDOVER_FD", None)
    if number is None:
        raise NotInTask()
    with open(int(number), encoding="utf-8") as file:
        handover: dict[str, Any] = json.load(file)
    return handover


def run(handover: Mapping[str, Any]) -> int:
    """Do what was handed over; the exit status. The process may have been forked, ready, from another."""
    status = OwnStatus(
        int(os.environ["BGTASK_ID"]),
        notify=os.environ.get("NOTIFY_SOCKET"),
        settings=handover.get("settings"),
        secrets=handover.get("secrets"),
        prints=prints.keep(),
    )
    own.set_process(status)
    use_path(handover.get("import_path"))
    try:
        value = _value(base.run(target.load(handover["target"]), status))
        if value is not None:
            _hand_over(status, value)
        status.flush()
        return OK
    except own.Failed:
        return FAILED
    except SystemExit as error:
        if error.code in (None, 0):
            status.flush()
            return OK
        _failed(status, error)
        return error.code if isinstance(error.code, int) and 0 < error.code < 256 else FAILED
    except BaseException as error:  # noqa: BLE001 - whatever it is, the caller is told
        _failed(status, error)
        return FAILED


def use_path(path: Sequence[str] | None) -> None:
    """Have sys.path begin with this."""
    if path:
        sys.path[:] = [*path, *(one for one in sys.path if one not in path)]


def _serve(handover: Mapping[str, Any]) -> int:
    """Be what tasks are forked from."""
    from bgtaskd.task import template

    try:
        return template.serve(handover)
    except template.CannotPreload as error:
        print(f"bgtaskd: {error}", file=sys.stderr)
        return FAILED


def _value(value: Any) -> Any:
    """What execute() returned, as JSON has it. Raises InvalidResult."""
    import inspect

    if inspect.iscoroutine(value):
        import asyncio

        value = asyncio.run(value)
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        kind = type(value).__qualname__
        raise InvalidResult(f"execute() returned a {kind} that is not JSON: {error}") from None
    return value


def _hand_over(status: OwnStatus, value: Any) -> None:
    try:
        status.report_end(value=value)
    except InvalidSpec as error:
        raise InvalidResult(f"what execute() returned cannot be stored: {error}") from None


def _failed(status: OwnStatus, error: BaseException) -> None:
    """Tell of an exception: on standard error (so in the output and the journal), and to the daemon."""
    text = traceback_of(error)
    sys.stdout.flush()
    print(text, end="", file=sys.stderr)
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ not in ("builtins", "__main__", target.MAIN):
        name = f"{kind.__module__}.{name}"
    if isinstance(error, BgtaskdError):
        name = kind.__name__
    failure = {
        "type": fit(name, TYPE_MAX),
        "message": fit(_words(error), MESSAGE_MAX),
        "traceback": fit(text, TRACEBACK_MAX),
    }
    try:
        status.report_end(failure=failure)
    except (BgtaskdError, RemoteError) as problem:
        print(f"bgtaskd: this could not be reported: {problem}", file=sys.stderr)


def traceback_of(error: BaseException) -> str:
    """An exception as Python prints it, from where the task's own code begins."""
    return "".join(traceback.format_exception(type(error), error, _beyond_us(error.__traceback__)))


def _beyond_us(tb: TracebackType | None) -> TracebackType | None:
    """The traceback from where the task's own code begins; None where that was not reached."""
    here = os.path.dirname(os.path.abspath(__file__))
    while tb is not None:
        name = tb.tb_frame.f_code.co_filename
        if not (name.startswith((here, "<frozen importlib")) or "/importlib/" in name):
            return tb
        tb = tb.tb_next
    return None


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ must not hide the failure
        return "(its text cannot be had)"


def fit(text: str, size: int) -> str:
    """So many bytes of UTF-8 at most: the middle of what is longer is left out."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= size:
        return data.decode()
    half = size // 2 - 16
    return (
        data[:half].decode("utf-8", "ignore") + "\n  […]\n" + data[-half:].decode("utf-8", "ignore")
    )
