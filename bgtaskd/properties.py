# SPDX-License-Identifier: LGPL-2.1-or-later
"""Resource properties by systemd's own names and syntax, checked before anything is started.

Syntax: systemd.resource-control(5), systemd.exec(5), systemd.time(7), systemd.syntax(7).
Pure: the standard library only, no I/O.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

INFINITY: Final = 0xFFFFFFFFFFFFFFFF
SIZES: Final = {
    "": 1,
    "B": 1,
    "K": 1 << 10,
    "M": 1 << 20,
    "G": 1 << 30,
    "T": 1 << 40,
    "P": 1 << 50,
    "E": 1 << 60,
}
USEC_PER: Final = {
    "us": 1, "usec": 1, "µs": 1, "μs": 1,
    "ms": 1000, "msec": 1000,
    "": 1_000_000, "s": 1_000_000, "sec": 1_000_000, "second": 1_000_000, "seconds": 1_000_000,
    "m": 60_000_000, "min": 60_000_000, "minute": 60_000_000, "minutes": 60_000_000,
    "h": 3_600_000_000, "hr": 3_600_000_000, "hour": 3_600_000_000, "hours": 3_600_000_000,
    "d": 86_400_000_000, "day": 86_400_000_000, "days": 86_400_000_000,
    "w": 604_800_000_000, "week": 604_800_000_000, "weeks": 604_800_000_000,
    "M": 2_629_800_000_000, "month": 2_629_800_000_000, "months": 2_629_800_000_000,
    "y": 31_557_600_000_000, "year": 31_557_600_000_000, "years": 31_557_600_000_000,
}  # fmt: skip
SPAN: Final = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-zµμ]*)\s*")
SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([BKMGTPE]?)")
PERCENT: Final = re.compile(r"(\d+(?:\.\d+)?)%")

SystemdProperty = tuple[str, str, Any]


class PropertyError(ValueError):
    """A property that is not known, or a value that its syntax does not allow."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"{name}: {reason}")


@dataclass(frozen=True, slots=True)
class Parsed:
    """A checked property. ``systemd``: what the scope or slice is told; else ``value``, for the child."""

    name: str
    text: str
    systemd: SystemdProperty | None
    value: Any = None


@dataclass(frozen=True, slots=True)
class _Row:
    """One property: its parser, whether a slice (a queue) may have it, and how its value looks."""

    parse: Callable[[str], tuple[SystemdProperty | None, Any]]
    slice: bool
    example: str


def parse_timespan(text: str) -> int:
    """systemd.time(7): "5min 20s", "2h", "1.5" (seconds), "infinity". Microseconds. Raises ValueError."""
    if text.strip() == "infinity":
        return INFINITY
    position, total = 0, 0.0
    while position < len(text):
        found = SPAN.match(text, position)
        if not found or found[2] not in USEC_PER:
            raise ValueError(f"not a time span: {text!r}")
        total += float(found[1]) * USEC_PER[found[2]]
        position = found.end()
    if not text.strip() or total >= INFINITY:
        raise ValueError(f"not a time span: {text!r}")
    return round(total)


def parse_size(text: str) -> int:
    """systemd's sizes, to the base 1024: "512M", "1.5G", "infinity". Bytes. Raises ValueError."""
    if text == "infinity":
        return INFINITY
    found = SIZE.fullmatch(text.strip())
    if not found:
        raise ValueError(f"not a size: {text!r}")
    value = (
        int(float(found[1]) * SIZES[found[2]])
        if "." in found[1]
        else int(found[1]) * SIZES[found[2]]
    )
    if value >= INFINITY:
        raise ValueError(f"too large: {text!r}")
    return value


def parse_percent(text: str) -> float:
    """ "50%": 50.0. Raises ValueError."""
    found = PERCENT.fullmatch(text.strip())
    if not found:
        raise ValueError(f"not a percentage: {text!r}")
    return float(found[1])


def _memory(name: str) -> Callable[[str], tuple[SystemdProperty, Any]]:
    def parse(text: str) -> tuple[SystemdProperty, Any]:
        if text.endswith("%"):
            return (f"{name}Scale", "u", _scale(text)), None
        value = parse_size(text)
        return (name, "t", value), value

    return parse


def _scale(text: str) -> int:
    percent = parse_percent(text)
    if percent > 100:
        raise ValueError("more than 100%")
    return int(percent / 100 * 0xFFFFFFFF)


def _tasks(text: str) -> tuple[SystemdProperty, Any]:
    if text.endswith("%"):
        return ("TasksMaxScale", "u", _scale(text)), None
    if text == "infinity":
        return ("TasksMax", "t", INFINITY), INFINITY
    value = _whole(text, 1, 1 << 31)
    return ("TasksMax", "t", value), value


def _quota(text: str) -> tuple[SystemdProperty, Any]:
    if text == "infinity":
        return ("CPUQuotaPerSecUSec", "t", INFINITY), INFINITY
    percent = parse_percent(text)
    if percent <= 0:
        raise ValueError("more than 0%")
    value = int(percent * 10_000)
    return ("CPUQuotaPerSecUSec", "t", value), value


def _weight(name: str) -> Callable[[str], tuple[SystemdProperty, Any]]:
    def parse(text: str) -> tuple[SystemdProperty, Any]:
        value = 0 if name == "CPUWeight" and text == "idle" else _whole(text, 1, 10_000)
        return (name, "t", value), value

    return parse


def _runtime(text: str) -> tuple[SystemdProperty, Any]:
    value = parse_timespan(text)
    if value == 0:
        raise ValueError("more than 0")
    return ("RuntimeMaxUSec", "t", value), value


def _limit(name: str, parse_one: Callable[[str], int]) -> Callable[[str], tuple[None, Any]]:
    number = getattr(resource, f"RLIMIT_{name}")

    def parse(text: str) -> tuple[None, Any]:
        soft, colon, hard = text.partition(":")
        pair = [_rlimit(one, parse_one) for one in ((soft, hard) if colon else (text, text))]
        if pair[1] != resource.RLIM_INFINITY and (
            pair[0] == resource.RLIM_INFINITY or pair[0] > pair[1]
        ):
            raise ValueError("the soft limit is above the hard one")
        return None, (number, *pair)

    return parse


def _rlimit(text: str, parse_one: Callable[[str], int]) -> int:
    return resource.RLIM_INFINITY if text.strip() == "infinity" else parse_one(text)


def _umask(text: str) -> tuple[None, int]:
    if not re.fullmatch(r"[0-7]{1,4}", text):
        raise ValueError("an octal number")
    return None, int(text, 8) & 0o777


def _number(low: int, high: int) -> Callable[[str], tuple[None, int]]:
    return lambda text: (None, _whole(text, low, high))


def _whole(text: str, low: int, high: int) -> int:
    if not re.fullmatch(r"-?\d{1,20}", text.strip()) or not low <= int(text) <= high:
        raise ValueError(f"a whole number from {low} to {high}")
    return int(text)


def _count(text: str) -> int:
    return _whole(text, 0, (1 << 63) - 1)


def _seconds(text: str) -> int:
    return -(-parse_timespan(text) // 1_000_000)


def _table() -> dict[str, _Row]:
    rows = {
        name: _Row(_memory(name), True, "512M, 10%, infinity")
        for name in ("MemoryMax", "MemoryHigh", "MemoryLow", "MemoryMin", "MemorySwapMax")
    }
    rows["TasksMax"] = _Row(_tasks, True, "100, 10%, infinity")
    rows["CPUQuota"] = _Row(_quota, True, "50%, 200%")
    rows["CPUWeight"] = _Row(_weight("CPUWeight"), True, "1 to 10000, idle")
    rows["IOWeight"] = _Row(_weight("IOWeight"), True, "1 to 10000")
    rows["RuntimeMaxSec"] = _Row(_runtime, False, "90, 5min 20s")
    for name in ("FSIZE", "DATA", "STACK", "CORE", "RSS", "AS", "MEMLOCK", "MSGQUEUE"):
        rows[f"Limit{name}"] = _Row(_limit(name, parse_size), False, "64M, 1G:2G, infinity")
    for name in ("NOFILE", "NPROC", "SIGPENDING", "NICE", "RTPRIO"):
        rows[f"Limit{name}"] = _Row(_limit(name, _count), False, "1024, 1024:4096")
    rows["LimitCPU"] = _Row(_limit("CPU", _seconds), False, "60, 1h")
    rows["UMask"] = _Row(_umask, False, "0027")
    rows["Nice"] = _Row(_number(-20, 19), False, "-20 to 19")
    rows["OOMScoreAdjust"] = _Row(_number(-1000, 1000), False, "-1000 to 1000")
    return rows


PROPERTIES: Final = _table()


def check_properties(
    properties: Mapping[str, str], *, for_slice: bool = False
) -> dict[str, Parsed]:
    """Check every property. Raises PropertyError naming the first that is wrong, and what would be right."""
    out: dict[str, Parsed] = {}
    for name, text in properties.items():
        row = PROPERTIES.get(name)
        if row is None:
            raise PropertyError(name, f"no such property; known are {', '.join(PROPERTIES)}")
        if for_slice and not row.slice:
            raise PropertyError(name, "a task may have it, but not a queue")
        try:
            systemd, value = row.parse(str(text).strip())
        except ValueError as error:
            raise PropertyError(name, f"{error} (for example {row.example})") from None
        out[name] = Parsed(name, str(text), systemd, value)
    return out
