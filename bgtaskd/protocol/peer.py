# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who is at the other end of a socket, as the kernel says. Taken once, at accept."""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

SO_PEERGROUPS: Final = 59
GROUPS_BYTES: Final = 1024
"""As much as Python lets getsockopt() return: 256 groups. Whoever is in more is in none, for us."""
NOBODY: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Peer:
    """A caller. The defaults are nobody, and can never read as root."""

    uid: int = NOBODY
    gid: int = NOBODY
    pid: int = 0
    groups: Collection[int] = frozenset()


def peer_of(sock: socket.socket) -> Peer:
    """The peer's credentials when it connected; nobody where the kernel does not tell."""
    try:
        pid, uid, gid = struct.unpack(
            "iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        )
    except OSError:
        return Peer()
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GROUPS_BYTES)
        groups = frozenset(number for (number,) in struct.iter_unpack("I", raw))
    except OSError:
        groups = frozenset()
    return Peer(uid, gid, pid, groups | {gid})
