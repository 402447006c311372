# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may do what. The caller is who the kernel says; groups are those it had when it connected."""

from __future__ import annotations

import grp
import pwd

from bgtaskd.config import PolicyConfig
from bgtaskd.errors import InvalidSpec, PermissionDenied
from bgtaskd.model import Task
from bgtaskd.protocol.peer import Peer
from bgtaskd.units import ANONYMOUS, ANONYMOUS_USER


class Policy:
    """The rules of the configuration."""

    def __init__(self, config: PolicyConfig, *, own_uid: int | None = None) -> None:
        """``own_uid``: without root there is one user only, and everything is theirs."""
        self._config = config
        self._own_uid = own_uid

    def is_admin(self, peer: Peer) -> bool:
        """Root, the members of the admin group, and whoever runs a daemon of their own."""
        if peer.uid in (0, self._own_uid):
            return True
        return _gid(self._config.admin_group) in peer.groups

    def may_steer(self, peer: Peer, task: Task) -> bool:
        """Whether the caller may change the task: its owner, and administrators."""
        return peer.uid == task.owner_uid or self.is_admin(peer)

    def may_see(self, peer: Peer, task: Task) -> bool:
        """Whether the caller may see the task: those, and the user as whom it runs."""
        return peer.uid == task.uid or self.may_steer(peer, task)

    def run_as(self, peer: Peer, user: str | None) -> pwd.struct_passwd:
        """The user as whom the caller's task is to run. Raises PermissionDenied, InvalidSpec."""
        if user == ANONYMOUS and self._own_uid is None:
            return pwd.getpwnam(ANONYMOUS_USER)
        try:
            entry = pwd.getpwuid(peer.uid) if user is None else pwd.getpwnam(user)
        except (KeyError, ValueError):  # ValueError: a NUL, or half a surrogate pair
            what = f"uid {peer.uid}" if user is None else repr(user)
            raise InvalidSpec(field="user", reason=f"there is no user {what}") from None
        named = any(
            entry.pw_name in rule.run_as and self._applies(rule, peer)
            for rule in self._config.run_as
        )
        if named:
            return entry
        if self._own_uid is not None and entry.pw_uid != self._own_uid:
            raise PermissionDenied(reason="this daemon runs tasks only as its own user")
        if entry.pw_uid != peer.uid and peer.uid != 0:
            raise PermissionDenied(
                reason=f"running as {entry.pw_name} needs a rule under policy: run_as: in bgtaskd.yaml"
            )
        if entry.pw_uid == 0 and self._own_uid != 0 and not self._config.allow_root:
            raise PermissionDenied(
                reason="running as root needs policy: allow_root: true in bgtaskd.yaml; or name a user"
            )
        return entry

    def _applies(self, rule: object, peer: Peer) -> bool:
        users: tuple[str, ...] = getattr(rule, "users", ())
        groups: tuple[str, ...] = getattr(rule, "groups", ())
        try:
            name = pwd.getpwuid(peer.uid).pw_name
        except KeyError:
            return False
        return name in users or any(_gid(group) in peer.groups for group in groups)


def _gid(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return -1
