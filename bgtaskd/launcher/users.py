# SPDX-License-Identifier: LGPL-2.1-or-later
"""Users and their groups, looked up by the launcher and remembered for a moment.

Not by the task's side of the fork: initgroups(3) asks every NSS module, and loading them into each new
process cost more than all the rest of a launch.
"""

from __future__ import annotations

import os
import pwd
import time
from dataclasses import dataclass
from typing import Final

REMEMBERED_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class User:
    """What a task's process needs to become a user."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    home: str
    shell: str


class Users:
    """Looks users up. A change in /etc/passwd or /etc/group counts at once, one elsewhere in 5 s."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[float, User]] = {}
        self._stamp = (0, 0)

    def get(self, uid: int) -> User | None:
        """The user with this id; None where there is none."""
        stamp = (_changed("/etc/passwd"), _changed("/etc/group"))
        if stamp != self._stamp:
            self._known.clear()
            self._stamp = stamp
        now = time.monotonic()
        known = self._known.get(uid)
        if known is not None and known[0] > now:
            return known[1]
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            return None
        groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
        home, shell = entry.pw_dir or "/", entry.pw_shell or "/bin/sh"
        user = User(uid, entry.pw_gid, groups, entry.pw_name, home, shell)
        self._known[uid] = (now + REMEMBERED_SECONDS, user)
        return user


def _changed(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
