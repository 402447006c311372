# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a task's request is signed, and so known to be ours. Pure, for both sides; standard library only.

A signature is ``v1=`` and the hex HMAC-SHA256, under the app's key, of these lines, joined by newlines:
``v1``, the timestamp (seconds), the nonce, the task's id, the attempt, the method in capitals, the path
below the app's base URL (percent-decoded), the query string as it is sent, and the hex SHA-256 of the body.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

VERSION: Final = "v1"
KEY_MIN: Final = 32
NONCE_BYTES: Final = 16
HEADERS: Final = {
    "id": "X-Bgtask-Id",
    "attempt": "X-Bgtask-Attempt",
    "timestamp": "X-Bgtask-Timestamp",
    "nonce": "X-Bgtask-Nonce",
    "signature": "X-Bgtask-Signature",
}


@dataclass(frozen=True, slots=True)
class Signed:
    """What a signature vouches for. ``timestamp``: seconds since the epoch; ``path``: percent-decoded."""

    timestamp: int
    nonce: str
    id: int
    attempt: int
    method: str
    path: bytes
    query: bytes
    body: bytes

    def message(self) -> bytes:
        """The text that is signed. Raises ValueError where a part has a line break: it could be two parts."""
        parts = [
            VERSION.encode(),
            b"%d" % self.timestamp,
            self.nonce.encode(),
            b"%d" % self.id,
            b"%d" % self.attempt,
            self.method.upper().encode(),
            self.path,
            self.query,
            hashlib.sha256(self.body).hexdigest().encode(),
        ]
        if any(b"\n" in part for part in parts):
            raise ValueError("a part of a signed request must not have a line break")
        return b"\n".join(parts)


def sign(key: bytes, signed: Signed) -> str:
    """The signature. Raises ValueError where a part has a line break."""
    return f"{VERSION}={hmac.new(key, signed.message(), hashlib.sha256).hexdigest()}"


def is_signed(key: bytes, signed: Signed, signature: str) -> bool:
    """Whether this is the signature of just that; takes the same time wherever they differ."""
    try:
        right = sign(key, signed)
    except ValueError:
        return False
    return hmac.compare_digest(right.encode(), signature.encode("utf-8", "replace"))
