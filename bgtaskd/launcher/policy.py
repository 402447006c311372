# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whom the launcher runs tasks as, whatever the daemon says: by files that only root can write."""

from __future__ import annotations

import grp
import os
import sys

from bgtaskd.config import CONF_D, PATH, Config, ConfigErrors, load_config
from bgtaskd.launcher.messages import Launch
from bgtaskd.launcher.users import User
from bgtaskd.model import TEMPLATE
from bgtaskd.units import ANONYMOUS_USER, HTTP, HTTP_ARGV, HTTP_USER

FIRST_ORDINARY_UID = 1000


class NotAllowed(Exception):
    """The policy does not allow tasks to run as this user."""


class UidPolicy:
    """In system mode the policy files decide; otherwise the launcher's own uid is the only one."""

    def __init__(self, system: bool) -> None:
        self._system = system
        self._stamp: tuple[float, ...] = ()
        self._config: Config | None = None

    def check(self, user: User, launch: Launch) -> None:
        """Raises NotAllowed, with what to do about it."""
        if not self._system:
            if user.uid != os.getuid():
                raise NotAllowed(f"this launcher runs tasks only as uid {os.getuid()}")
            return
        if user.name == HTTP_USER or launch.kind == HTTP:
            _check_request(user, launch)
            return
        config = self._load()
        named = {name for rule in config.policy.run_as for name in rule.run_as}
        if user.name in named or user.name == ANONYMOUS_USER:
            return
        if user.uid == 0:
            if not config.policy.allow_root:
                raise NotAllowed("running tasks as root needs policy: allow_root: true")
        elif user.uid < FIRST_ORDINARY_UID and not _is_member(user, config.policy.group):
            raise NotAllowed(
                f"{user.name} is a system user, not in group {config.policy.group} and in no run_as rule"
            )

    def _load(self) -> Config:
        stamp = tuple(_mtime(path) for path in (PATH, CONF_D))
        if self._config is None or stamp != self._stamp:
            try:
                self._config = load_config(root_owned=True)
            except ConfigErrors as errors:
                if self._config is None:
                    raise NotAllowed(f"the policy cannot be read: {errors.errors[0]}") from None
                # As the daemon's reload has it: a mistake in a file fails no task.
                sys.stderr.write(f"<3>Kept the old policy: {errors.errors[0]}\n")
            self._stamp = stamp
        return self._config


def _check_request(user: User, launch: Launch) -> None:
    """Tasks that hold an app's key run as a user of their own, and nothing else runs as that user.

    So nobody can look into them; and nothing of theirs but the handover comes from a caller.
    """
    if launch.kind not in (HTTP, TEMPLATE) or user.name != HTTP_USER:
        raise NotAllowed(f"{HTTP_USER} is for tasks of kind {HTTP}, and they are for it")
    if launch.argv != HTTP_ARGV:
        raise NotAllowed(f"a task of kind {HTTP} runs {' '.join(HTTP_ARGV)}")
    if launch.env or launch.cwd is not None or launch.secrets or launch.stdin:
        raise NotAllowed(f"a task of kind {HTTP} has no env, cwd, stdin or credentials")


def _mtime(path: str) -> float:
    try:
        newest = os.stat(path).st_mtime
        if os.path.isdir(path):
            newest = max([newest, *(one.stat().st_mtime for one in os.scandir(path))])
    except OSError:
        return 0.0
    return newest


def _is_member(user: User, group: str) -> bool:
    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        return False
    return gid in user.groups
