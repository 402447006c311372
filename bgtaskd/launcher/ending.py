# SPDX-License-Identifier: LGPL-2.1-or-later
"""How an attempt's end is told. Pure."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal.py would bring enum
import os

from bgtaskd.launcher.accounting import Usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    import resource
    from typing import Any

    from bgtaskd.launcher.warm import Used


def exit_object(
    result: str, status: int | None, usage: Usage, rusage: resource.struct_rusage | Used | None
) -> dict[str, Any]:
    """The "exit" of a record. ``status``: as wait(2) gives it; None where the program never ran.

    What the cgroup did not tell (there may be none) rusage does, for the processes that were waited for.
    """
    code = number = None
    if status is not None:
        if os.WIFEXITED(status):
            code = os.WEXITSTATUS(status)
        else:
            number = os.WTERMSIG(status)
    if rusage is not None:
        if usage.cpu_usec is None:
            usage.cpu_usec = int((rusage.ru_utime + rusage.ru_stime) * 1e6)
        if usage.memory_peak is None:
            usage.memory_peak = rusage.ru_maxrss * 1024
        if usage.io_read_bytes is None:
            usage.io_read_bytes = rusage.ru_inblock * 512
        if usage.io_write_bytes is None:
            usage.io_write_bytes = rusage.ru_oublock * 512
    return {
        "result": result,
        "exit_status": code,
        "signal": None if number is None else signal_name(number),
        "cpu_usec": usage.cpu_usec,
        "memory_peak": usage.memory_peak,
        "io_read_bytes": usage.io_read_bytes,
        "io_write_bytes": usage.io_write_bytes,
    }


def signal_name(number: int) -> str:
    """As kill -l has it; real-time signals, which have no names of their own, as SIGRTMIN+n."""
    for name in dir(_signal):  # sorted, so SIGCHLD comes before SIGCLD
        if name.startswith("SIG") and name[3] != "_" and getattr(_signal, name) == number:
            return name
    return f"SIGRTMIN+{number - _signal.SIGRTMIN}"
