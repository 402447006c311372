# SPDX-License-Identifier: LGPL-2.1-or-later
"""What came of the last tasks, summed by name. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bgtaskd.model import Result
from bgtaskd.storage.interface import Ended


def stats_by_name(ended: Iterable[Ended]) -> list[dict[str, Any]]:
    """NameStats of the Varlink interface, the most frequent name first."""
    names: dict[str, list[Ended]] = {}
    for one in ended:
        names.setdefault(one.name, []).append(one)
    rows = [_row(name, ones) for name, ones in names.items()]
    return sorted(rows, key=lambda row: (-row["runs"], row["name"]))


def _row(name: str, ones: Sequence[Ended]) -> dict[str, Any]:
    durations = sorted(one.duration for one in ones if one.duration is not None)
    fine = (Result.SUCCESS.value, Result.STOPPED.value)
    return {
        "name": name,
        "runs": len(ones),
        "failures": sum(one.result not in fine for one in ones),
        "p50_usec": percentile(durations, 50),
        "p95_usec": percentile(durations, 95),
        "memory_peak": max((one.memory_peak for one in ones if one.memory_peak), default=None),
        "cpu_usec": sum(one.cpu_usec or 0 for one in ones),
    }


def percentile(values: Sequence[int], percent: int) -> int | None:
    """The smallest of the sorted values that so many percent of them do not exceed; None of none."""
    if not values:
        return None
    return values[max(0, -(-len(values) * percent // 100) - 1)]
