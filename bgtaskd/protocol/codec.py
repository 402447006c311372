# SPDX-License-Identifier: LGPL-2.1-or-later
"""Varlink's framing: JSON objects, each ended by a NUL. Pure; see https://varlink.org."""

from __future__ import annotations

import json
from typing import Any, Final

MESSAGE_MAX: Final = 1 << 20
DEPTH_MAX: Final = 64


class MalformedMessage(Exception):
    """What came in is no message. The stream cannot be trusted after it."""


class Decoder:
    """Bytes in, messages out; holds at most one message that is not yet whole."""

    def __init__(self, limit: int = MESSAGE_MAX) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def __len__(self) -> int:
        """Bytes of a message that is not yet whole."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that are whole now. Raises MalformedMessage."""
        *whole, rest = (
            (self._buffer + data).split(b"\0") if b"\0" in data else (self._buffer + data,)
        )
        if len(rest) >= self._limit or any(len(one) >= self._limit for one in whole):
            self._buffer.clear()
            raise MalformedMessage(f"a message is longer than {self._limit} bytes")
        self._buffer = bytearray(rest)
        return [_decode(bytes(one)) for one in whole]


def encode(message: dict[str, Any]) -> bytes:
    """One message, its NUL included. Raises ValueError for what JSON cannot say."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\0"


def _decode(data: bytes) -> dict[str, Any]:
    try:
        message = json.loads(data, parse_constant=_no_constant, parse_int=_int)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"not JSON: {str(error)[:200]}") from None
    if not isinstance(message, dict):
        raise MalformedMessage("a message must be a JSON object")
    return message


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _int(text: str) -> int:
    value = int(text) if len(text) <= 20 else 1 << 64
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError("a whole number beyond 64 bits")
    return value
