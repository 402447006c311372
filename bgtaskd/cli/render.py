# SPDX-License-Identifier: LGPL-2.1-or-later
"""How things look on a terminal. Pure. Text from tasks is escaped: it may hold anything."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from datetime import datetime

DOT = {
    "running": "32",
    "paused": "33",
    "queued": "0",
    "delayed": "0",
    "finished": "32",
    "failed": "31",
    "stopped": "33",
}
CONTROL = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def escaped(text: str) -> str:
    """Text with control characters, and those that reorder or hide text, shown as escapes."""
    return "".join(one if _is_shown(one) else _escape(one) for one in text)


def _is_shown(one: str) -> bool:
    return one == " " or unicodedata.category(one) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _escape(one: str) -> str:
    if one in CONTROL:
        return CONTROL[one]
    number = ord(one)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def width(text: str) -> int:
    """Terminal columns of a text without control characters."""
    return sum(_columns(one) for one in text)


def _columns(one: str) -> int:
    if unicodedata.combining(one):
        return 0
    return 2 if unicodedata.east_asian_width(one) in "WF" else 1


def fitted(text: str, columns: int) -> str:
    """Exactly so many columns: cut with an ellipsis, or filled with blanks."""
    if width(text) > columns:
        kept = ""
        for one in text:
            if width(kept) + _columns(one) > columns - 1:
                break
            kept += one
        text = kept + "…" if columns > 0 else ""
    return text + " " * (columns - width(text))


def coloured(text: str, code: str, colours: bool) -> str:
    """In an ANSI colour, where colours are wanted."""
    return f"\x1b[{code}m{text}\x1b[0m" if colours and code != "0" else text


def progress_bar(percent: float | None, columns: int) -> str:
    """A bar, so wide; empty where nothing is known."""
    full = 0 if percent is None else round(columns * percent / 100)
    return "█" * full + "░" * (columns - full)


def size(number: int | None) -> str:
    """Bytes as systemd shows them: 12.3M."""
    if number is None:
        return "-"
    value, units = float(number), ["B", "K", "M", "G", "T", "P"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f}{units[0]}" if units[0] == "B" else f"{value:.1f}{units[0]}"


def span(usec: int | None) -> str:
    """A duration in its two largest units: 3min 20s."""
    if usec is None:
        return "-"
    if usec < 1_000_000:
        return f"{usec / 1000:.0f}ms"
    seconds, parts = usec // 1_000_000, []
    for name, length in (("y", 31_557_600), ("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= length:
            parts.append(f"{seconds // length}{name}")
            seconds %= length
    return " ".join(parts[:2])


def moment(usec: int) -> str:
    """A time of day as systemctl shows it, in local time."""
    return datetime.fromtimestamp(usec / 1e6).astimezone().strftime("%a %Y-%m-%d %H:%M:%S %Z")


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    stretch: int,
    columns: int,
    right: Sequence[int] = (),
) -> list[str]:
    """Rows in columns; the column ``stretch`` takes or gives the room that is left of ``columns``."""
    cells = [list(head), *[list(row) for row in rows]]
    widths = [max(width(row[number]) for row in cells) for number in range(len(head))]
    spare = columns - sum(widths) - (len(head) - 1)
    if spare < 0:
        widths[stretch] = max(8, widths[stretch] + spare)
    out = []
    for row in cells:
        fields = []
        for number, text in enumerate(row):
            field = fitted(text, widths[number])
            if number in right:
                field = field.rstrip().rjust(widths[number])
            fields.append(field)
        out.append(" ".join(fields).rstrip())
    return out
