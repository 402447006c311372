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
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def width(text: str) -> int:
    """Terminal columns of a text without control characters."""
    return sum(_columns(one) for one in text)


def _columns(one: str) -> int:
    if unicodedata.category(one) in ("Mn", "Me") or "\u1160" <= one <= "\u11ff":
        return 0  # accents, and the Hangul vowels and finals that join the syllable before them
    return 2 if unicodedata.east_asian_width(one) in "WF" else 1


def fitted(text: str, columns: int) -> str:
    """Exactly so many columns: cut with an ellipsis, or filled with blanks."""
    text = cut(text, columns)
    return text + " " * (columns - width(text))


def cut(text: str, columns: int) -> str:
    """At most so many columns; an ellipsis stands for what did not fit."""
    if width(text) <= columns:
        return text
    room, kept = columns - 1, []
    for one in text:
        room -= _columns(one)
        if room < 0:
            break
        kept.append(one)
    return "".join(kept) + "…" if columns > 0 else ""


def coloured(text: str, code: str, colours: bool) -> str:
    """In an ANSI colour, where colours are wanted."""
    return f"\x1b[{code}m{text}\x1b[0m" if colours and code != "0" else text


def progress_bar(percent: float | None, columns: int) -> str:
    """A bar, so wide; empty where nothing is known."""
    # Rounded down: a full bar means that it is done.
    full = 0 if percent is None else max(0, min(columns, int(columns * percent / 100)))
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
    """A time as systemctl shows it, in local time."""
    try:
        at = datetime.fromtimestamp(usec / 1e6).astimezone()
    except (ValueError, OverflowError, OSError):
        return "in a distant year"
    return at.strftime("%a %Y-%m-%d %H:%M:%S %Z")


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    stretch: int,
    columns: int | None,
    right: Sequence[int] = (),
    colour: tuple[int, Sequence[str]] | None = None,
) -> list[str]:
    """Rows in columns; the column ``stretch`` gives way where they need more than ``columns`` (None: never).

    No line is wider than that. ``right``: columns of numbers. ``colour``: a column, and each row's code.
    """
    cells = [list(head), *[list(row) for row in rows]]
    widths = [max(width(row[number]) for row in cells) for number in range(len(head))]
    if columns is not None:
        spare = columns - sum(widths) - (len(head) - 1)
        if spare < 0:
            widths[stretch] = max(min(8, widths[stretch]), widths[stretch] + spare)
    out = []
    for line_number, row in enumerate(cells):
        fields, room = [], columns
        for number, text in enumerate(row):
            if room is not None and room <= 0:
                break
            wide = widths[number] if room is None else min(widths[number], room)
            text = cut(text, wide)
            blanks = " " * (wide - width(text))
            if colour is not None and number == colour[0] and line_number:
                text = coloured(text, colour[1][line_number - 1], True)
            fields.append(blanks + text if number in right else text + blanks)
            room = None if room is None else room - wide - 1
        out.append(" ".join(fields).rstrip())
    return out
