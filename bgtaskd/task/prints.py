# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a task's own process prints, kept so that the task can read it itself."""

from __future__ import annotations

import io
import sys
from collections import deque
from typing import Final

KEPT: Final = 1 << 20


class Prints:
    """The last million characters or so."""

    def __init__(self) -> None:
        self._pieces: deque[str] = deque()
        self._size = 0

    def add(self, text: str) -> None:
        """Keep it; forget the oldest."""
        self._pieces.append(text)
        self._size += len(text)
        while self._size > KEPT and len(self._pieces) > 1:
            self._size -= len(self._pieces.popleft())

    def text(self) -> str:
        """All that is kept."""
        return "".join(self._pieces)


class _Kept(io.TextIOWrapper):
    """A text stream that keeps what is written to it, and passes it on line by line."""

    prints: Prints

    def write(self, text: str, /) -> int:
        self.prints.add(text)
        return super().write(text)


def keep() -> Prints:
    """From now on keep what goes to sys.stdout and sys.stderr."""
    prints = Prints()
    for name, errors in (("stdout", "backslashreplace"), ("stderr", "backslashreplace")):
        stream = getattr(sys, name)
        stream.flush()
        # Half a surrogate pair, or a locale without é, is no reason for a task to fail while it prints.
        kept = _Kept(stream.detach(), encoding="utf-8", errors=errors, line_buffering=True)
        kept.prints = prints
        setattr(sys, name, kept)
        setattr(sys, f"__{name}__", kept)
    return prints
