# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a page gets instead of a task's id: signed, expiring, and worth nothing to anybody else. Pure.

A reference is base64url, without padding, of::

    HMAC-SHA256 (32 bytes) | version (1 byte) | body (JSON)

The body names the task, when the reference expires and what may be done. The user whom it is for is
signed along but not in it: references turn up in access logs, and a user's name has no business there.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

RIGHTS: Final = ("output", "stop", "pause", "resume")
"""What a reference may allow beside seeing how the task stands. In this order they are bits of the body."""
LENGTH_MAX: Final = 1024
KEY_MIN: Final = 16
_MAC: Final = 32
_VERSION: Final = b"\x01"
_PURPOSE: Final = b"bgtaskd page reference\0"


class InvalidReference(Exception):
    """Altered, expired, another user's, or none at all. Which of these is nobody's business: answer 404."""

    def __init__(self) -> None:
        super().__init__("no such task")


@dataclass(frozen=True, slots=True)
class Reference:
    """What a valid reference says. ``task_id``, or ``name``: the last task of that name.

    ``expires``: seconds since the epoch.
    """

    task_id: int | None
    name: str | None
    expires: int
    may: frozenset[str]


def reference(
    task_id: int | None = None,
    *,
    key: str | bytes,
    user: str | None,
    name: str | None = None,
    expires: float = 3600,
    may: Iterable[str] = (),
) -> str:
    """A reference to a task, safe in an address.

    ``task_id``, or ``name`` for the last task of that name. ``key``: the app's secret, 16 bytes at least.
    ``user``: who may use it, in the app's own words; None: whoever has it. ``expires``: in so many seconds.
    ``may``: what its holder may do: "output" (read it), "stop", "pause", "resume".

    Raises ValueError, TypeError for what cannot be signed.
    """
    if (task_id is None) == (name is None):
        raise ValueError("a reference is to a task_id or to a name")
    if task_id is not None and (isinstance(task_id, bool) or not isinstance(task_id, int)):
        raise TypeError("task_id must be an integer")
    rights = {may} if isinstance(may, str) else set(may)
    unknown = rights - set(RIGHTS)
    if unknown:
        raise ValueError(f"may: {sorted(unknown)[0]!r} is none of {', '.join(RIGHTS)}")
    if name is not None and rights:  # a click must not hit another task than the one that was shown
        raise ValueError("may: the last task of a name can be looked at only")
    bits = sum(1 << place for place, right in enumerate(RIGHTS) if right in rights)
    whom = 0 if user is None else 1
    what = int(task_id) if task_id is not None else name
    fields = [what, int(time.time() + expires), bits, whom]
    body = _VERSION + json.dumps(fields, separators=(",", ":")).encode()
    token = _encoded(_mac(key, user, body) + body)
    if len(token) > LENGTH_MAX:
        raise ValueError("name: too long")
    return token


def read_reference(token: str, key: str | bytes, user: str | None) -> Reference:
    """What the reference says, for this user. Raises InvalidReference."""
    if len(token) > LENGTH_MAX or not token.isascii():
        raise InvalidReference
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidReference from None
    mac, body = raw[:_MAC], raw[_MAC:]
    # The last character of base64 has bits that mean nothing: only one spelling of a reference is good.
    if _encoded(raw) != token or body[:1] != _VERSION:
        raise InvalidReference
    good = [one for one in (user, None) if hmac.compare_digest(mac, _mac(key, one, body))]
    if not good:
        raise InvalidReference
    fields: Any = json.loads(body[1:])  # signed, so our own
    what, expires, bits, _ = fields
    if time.time() >= expires:
        raise InvalidReference
    return Reference(
        task_id=what if isinstance(what, int) else None,
        name=what if isinstance(what, str) else None,
        expires=expires,
        may=frozenset(right for place, right in enumerate(RIGHTS) if bits >> place & 1),
    )


def key_bytes(key: str | bytes) -> bytes:
    """The key as it signs. Raises ValueError for one that could be guessed."""
    raw = key.encode() if isinstance(key, str) else bytes(key)
    if len(raw) < KEY_MIN:
        raise ValueError(
            f"key: must have {KEY_MIN} bytes or more, and come from a good source of chance"
        )
    return raw


def _mac(key: str | bytes, user: str | None, body: bytes) -> bytes:
    # The user's length goes before the user, so that no user and body read like another user and body.
    raw = b"" if user is None else user.encode("utf-8", "surrogatepass")
    whom = b"-" if user is None else b"%d:%s" % (len(raw), raw)
    return hmac.digest(key_bytes(key), _PURPOSE + whom + b"\0" + body, "sha256")


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
