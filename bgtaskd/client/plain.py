# SPDX-License-Identifier: LGPL-2.1-or-later
"""Output as text: what a terminal would have been left with, without colours and other escape sequences."""

from __future__ import annotations

import codecs
import re
from typing import Final

LINE_MAX: Final = 1 << 16
"""Characters. A line that is longer is passed on before its end is there."""

# ECMA-48: control sequences, strings ended by ST or BEL, and shorter escapes; all of them linear to match.
_ESCAPES: Final = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]?"
    "|(?:\x1b[]P^_X]|[\x90\x98\x9d-\x9f])[^\x07\x1b\n\x9c]*(?:\x07|\x1b\\\\|\x9c)?"
    "|\x1b[ -/]*[0-~]?"
)
_CONTROLS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """Without escape sequences; of a line that overwrote itself, as progress bars do, the last state."""
    return "\n".join(_line(one) for one in text.split("\n"))


def _line(line: str) -> str:
    line = _ESCAPES.sub("", line).rstrip("\r").rpartition("\r")[2]
    if "\x08" in line:
        kept: list[str] = []
        for one in line:
            if one != "\x08":
                kept.append(one)
            elif kept:
                kept.pop()
        line = "".join(kept)
    return _CONTROLS.sub("", line)


class Plain:
    """The same for output that comes in pieces: whole lines go out as soon as they are there."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, data: bytes) -> str:
        """What can be said now."""
        whole, newline, self._rest = (self._rest + self._decoder.decode(data)).rpartition("\n")
        text = plain(whole) + newline
        if len(self._rest) > LINE_MAX:
            text += plain(self._rest)
            self._rest = ""
        return text

    def finish(self) -> str:
        """The line that did not end."""
        rest, self._rest = self._rest + self._decoder.decode(b"", final=True), ""
        return plain(rest)
