# SPDX-License-Identifier: LGPL-2.1-or-later
"""Varlink's framing: JSON objects, each ended by a NUL. Pure; see https://varlink.org.

What comes out can go in again: whatever :func:`decode` lets pass, :func:`encode`, a database and a log can
take. So no infinite number (1e999), no text that is not Unicode (a lone surrogate), no endless nesting.
"""

from __future__ import annotations

import json
from typing import Any, Final

MESSAGE_MAX: Final = 1 << 20
DEPTH_MAX: Final = 64


class MalformedMessage(Exception):
    """What came in is no message. The stream cannot be trusted after it.

    ``before``: the frames that were whole and well before it, not decoded yet.
    """

    def __init__(self, reason: str, before: list[bytes] | None = None) -> None:
        self.before = before or []
        super().__init__(reason)


class Decoder:
    """Bytes in, messages out; holds at most one message that is not yet whole.

    ``limit``: bytes a message, its NUL included. ``depth``: how deep objects and arrays may nest; a reader of
    replies takes more than is taken in, as a task's settings lie deeper in them than in the call.
    """

    def __init__(self, limit: int = MESSAGE_MAX, depth: int = DEPTH_MAX) -> None:
        self._limit = limit
        self._depth = depth
        self._buffer = bytearray()

    def __len__(self) -> int:
        """Bytes of a message that is not yet whole."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that are whole now. Raises MalformedMessage."""
        return [decode(one, self._depth) for one in self.frames(data)]

    def frames(self, data: bytes) -> list[bytes]:
        """The messages that are whole now, not decoded, without their NULs.

        Raises MalformedMessage for one that is too long.
        """
        if not self._buffer and 0 < len(data) < self._limit and data.find(0) == len(data) - 1:
            return [data[:-1]]  # one message, whole: nearly always
        first, *others = data.split(b"\0")
        self._buffer += (
            first  # in place: a message that comes byte by byte must not cost its square
        )
        whole = []
        if others:
            whole = [bytes(self._buffer), *others[:-1]]
            self._buffer = bytearray(others[-1])
        for number, one in enumerate((*whole, self._buffer)):
            if len(one) >= self._limit:
                self._buffer = bytearray()
                raise MalformedMessage(
                    f"a message is longer than {self._limit} bytes", whole[:number]
                )
        return whole


def encode(message: dict[str, Any]) -> bytes:
    """One message, its NUL included. Raises ValueError for what JSON cannot say."""
    return _ENCODER.encode(message).encode() + b"\0"


def decode(data: bytes, depth: int = DEPTH_MAX) -> dict[str, Any]:
    """One message, without its NUL. Raises MalformedMessage."""
    message = decode_value(data, depth)
    if not isinstance(message, dict):
        raise MalformedMessage("a message must be a JSON object")
    return message


def decode_value(data: bytes, depth: int) -> Any:
    """Any value, as it may stand in a message. Raises MalformedMessage."""
    try:
        text = data.decode("utf-8")
        value = _DECODER.decode(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise MalformedMessage("not JSON: half of a surrogate pair is no text") from None
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"not JSON: {str(error)[:200]}") from None
    if len(text) > depth and text.count("[") + text.count("{") > depth and _is_deeper(value, depth):
        raise MalformedMessage(f"nested deeper than {depth} levels")
    return value


def _is_deeper(value: Any, depth: int) -> bool:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(depth):
        level = [
            one
            for outer in level
            for one in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(one, (dict, list))
        ]
        if not level:
            return False
    return True


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _int(text: str) -> int:
    value = int(text) if len(text) <= 20 else 1 << 64
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError("a whole number beyond 64 bits")
    return value


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("a number beyond 64 bits")
    return value


# Made once: json.loads() and dumps() make new ones at each call that has options.
_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant, parse_int=_int, parse_float=_float)
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
