# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads the bodies of D-Bus messages that strangers have put together. Pure, and bounded in all it does.

dbus-next decodes what it gets, whatever the size: a mebibyte of small values takes it seconds, in which nobody
else is served. So the containers that a method takes are read here, and no more of them than the method needs:
arrays, dictionaries by strings, and variants; no structures. What comes out are plain values, as JSON has them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

FLAT: Final = frozenset("ybnqiuxtdsog")
"""The types of D-Bus that hold nothing else: decoding them takes no time worth naming."""
BODY_MAX: Final = 1024 * 1024
"""Bytes; as much as fits through the control socket."""
VALUES_MAX: Final = 20_000
DEPTH_MAX: Final = 8

_NUMBERS: Final = {
    "y": ("B", 1),
    "n": ("h", 2),
    "q": ("H", 2),
    "i": ("i", 4),
    "u": ("I", 4),
    "x": ("q", 8),
    "t": ("Q", 8),
    "d": ("d", 8),
}
_ALIGNMENT: Final = {
    **{code: size for code, (_, size) in _NUMBERS.items()},
    **dict.fromkeys("bsoa", 4),
    **dict.fromkeys("gv", 1),
    "{": 8,
}


class Unreadable(Exception):
    """The body is malformed, too large, or has what no method takes. The text says what."""


@dataclass(frozen=True, slots=True)
class RawBody:
    """The body of a message, not decoded yet. ``order``: "<" or ">"."""

    data: bytes
    order: str


def read_body(body: RawBody, signature: str) -> list[Any]:
    """The values of a body with this signature. Raises Unreadable."""
    reader = _Reader(body)
    try:
        values, at = [], 0
        while at < len(signature):
            value, at = reader.value(signature, at, 0)
            values.append(value)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise Unreadable(f"malformed: {error}") from None
    return values


class _Reader:
    def __init__(self, body: RawBody) -> None:
        self._data = body.data
        self._at = 0
        self._left = VALUES_MAX
        self._numbers: dict[str, Callable[..., tuple[Any, ...]]] = {
            code: struct.Struct(body.order + one).unpack_from for code, (one, _) in _NUMBERS.items()
        }

    def value(self, signature: str, at: int, depth: int) -> tuple[Any, int]:
        """The value of the type that begins there in the signature; where the next type begins."""
        self._left -= 1
        if self._left < 0:
            raise Unreadable(f"more than {VALUES_MAX} values")
        if depth > DEPTH_MAX:
            raise Unreadable(f"nested deeper than {DEPTH_MAX} levels")
        code = signature[at]
        if code not in _ALIGNMENT or code == "{":
            raise Unreadable(f'there is no use for values of type "{code}" here')
        self._at += -self._at % _ALIGNMENT[code]
        if code in _NUMBERS:
            return self._number(code), at + 1
        if code == "b":
            return bool(self._number("u")), at + 1
        if code in "so":
            return self._string("u"), at + 1
        if code == "g":
            return self._string("y"), at + 1
        if code == "v":
            inner = self._string("y")
            value, end = self.value(inner, 0, depth + 1)
            if end != len(inner):
                raise Unreadable(f'"{inner}" is not one type')
            return value, at + 1
        return self._array(signature, at + 1, depth)

    def _number(self, code: str) -> Any:
        [value] = self._numbers[code](self._data, self._at)
        self._at += _NUMBERS[code][1]
        if code == "d" and not math.isfinite(value):
            raise Unreadable(f"{value} is no number")
        if code == "t" and value >= 1 << 63:
            raise Unreadable("a number beyond 63 bits")
        return value

    def _string(self, length: str) -> str:
        size: int = self._number(length)
        begin, self._at = self._at, self._at + size + 1
        return self._data[begin : begin + size].decode()

    def _array(self, signature: str, at: int, depth: int) -> tuple[Any, int]:
        size: int = self._number("u")
        element = signature[at]
        if element not in _ALIGNMENT:
            raise Unreadable(f'there is no use for arrays of "{element}" here')
        self._at += -self._at % _ALIGNMENT[element]
        end = self._at + size
        if end > len(self._data):
            raise Unreadable("an array goes on after the end")
        if element != "{":
            values = []
            while self._at < end:
                values.append(self.value(signature, at, depth + 1)[0])
            return values, _end_of_type(signature, at)
        if signature[at + 1] not in "sog":
            raise Unreadable("the keys of a dictionary must be strings")
        items = {}
        while self._at < end:
            self._at += -self._at % 8
            key, _ = self.value(signature, at + 1, depth + 1)
            items[key], _ = self.value(signature, at + 2, depth + 1)
        return items, _end_of_type(signature, at + 2) + 1


def _end_of_type(signature: str, at: int) -> int:
    """Where the type that begins there ends; for types of arrays, dictionaries and what is in them."""
    while signature[at] == "a":
        at += 1
    return _end_of_type(signature, at + 2) + 1 if signature[at] == "{" else at + 1
