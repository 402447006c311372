# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where supervisors write and call."""

from __future__ import annotations


class Places:
    """``exits``, ``tasks``: descriptors of directories, opened once, by the launcher."""

    __slots__ = ("exits", "has_scopes", "home", "notify", "tasks")

    def __init__(self, exits: int, tasks: int, notify: str, home: str, has_scopes: bool) -> None:
        self.exits = exits
        self.tasks = tasks
        self.notify = notify
        self.home = home
        self.has_scopes = has_scopes
