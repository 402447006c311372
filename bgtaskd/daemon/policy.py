# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may do what. The caller is who the kernel says; groups are those it had when it connected."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Mapping
from typing import Final

from bgtaskd.apps import App
from bgtaskd.config import PolicyConfig
from bgtaskd.errors import InvalidSpec, PermissionDenied
from bgtaskd.model import Task
from bgtaskd.protocol.peer import Peer
from bgtaskd.units import ANONYMOUS, ANONYMOUS_USER, HTTP_USER

NO_APPS: Final[Mapping[str, App]] = {}


class Policy:
    """The rules of the configuration."""

    def __init__(
        self,
        config: PolicyConfig,
        *,
        own_uid: int | None = None,
        apps: Mapping[str, App] = NO_APPS,
    ) -> None:
        """``own_uid``: without root there is one user only, and everything is theirs."""
        self._config = config
        self._apps = apps
        self._own_uid = own_uid

    def is_admin(self, peer: Peer) -> bool:
        """Root, the members of the admin group, and whoever runs a daemon of their own."""
        if peer.uid in (0, self._own_uid):
            return True
        return _gid(self._config.admin_group) in peer.groups

    def may_start(self, peer: Peer) -> bool:
        """Whether the caller may have anything started: who may connect to the control socket."""
        return self.is_admin(peer) or _gid(self._config.group) in peer.groups

    def may_steer(self, peer: Peer, task: Task) -> bool:
        """Whether the caller may change the task: its owner, the app that it requests, administrators."""
        return (
            peer.uid == task.owner_uid
            or self.is_admin(peer)
            or (task.spec.http is not None and self._is_user_of(peer, str(task.spec.http["app"])))
        )

    def may_see(self, peer: Peer, task: Task) -> bool:
        """Whether the caller may see the task: those, and the user as whom it runs."""
        return peer.uid == task.uid or self.may_steer(peer, task)

    def apps_of(self, peer: Peer) -> tuple[str, ...]:
        """The apps that run as the caller."""
        return tuple(name for name in self._apps if self._is_user_of(peer, name))

    def may_request(self, peer: Peer, app: App) -> bool:
        """Whether the caller's tasks may request the app's routes."""
        if self.is_admin(peer) or self._is_user_of(peer, app.name):
            return True
        return self._is_among(peer, app.users, app.groups)

    def http_user(self) -> pwd.struct_passwd:
        """As whom tasks of kind http run. Raises InvalidSpec."""
        try:
            if self._own_uid is not None:
                return pwd.getpwuid(self._own_uid)
            return pwd.getpwnam(HTTP_USER)
        except KeyError:
            reason = f"the user {HTTP_USER} is missing: systemd-sysusers makes it"
            raise InvalidSpec(field="kind", reason=reason) from None

    def _is_user_of(self, peer: Peer, app: str) -> bool:
        one = self._apps.get(app)
        return one is not None and _uid(one.user) == peer.uid

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
        return self._is_among(peer, getattr(rule, "users", ()), getattr(rule, "groups", ()))

    def _is_among(self, peer: Peer, users: tuple[str, ...], groups: tuple[str, ...]) -> bool:
        try:
            name = pwd.getpwuid(peer.uid).pw_name
        except KeyError:
            return False
        return name in users or any(_gid(group) in peer.groups for group in groups)


def _uid(user: str) -> int:
    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):
        return -1


def _gid(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return -1
