# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where supervisors write and call."""

from __future__ import annotations


class Places:
    """``exits``, ``tasks``: descriptors of directories, opened once, by the launcher."""

    __slots__ = ("exits", "has_scopes", "run", "tasks")

    def __init__(self, exits: int, tasks: int, run: str, has_scopes: bool) -> None:
        self.exits = exits
        self.tasks = tasks
        self.run = run
        self.has_scopes = has_scopes

    @property
    def home(self) -> str:
        """The socket where the daemon is called."""
        return f"{self.run}/supervisors.sock"

    def notify(self, task_id: int, attempt: int) -> str:
        """Where an attempt tells of its progress."""
        return f"{self.run}/notify/{task_id}.{attempt}.sock"

    def template(self, task_id: int) -> str:
        """Where a template is asked for a fork."""
        return f"{self.run}/templates/{task_id}.sock"

    def credentials(self, task_id: int, attempt: int) -> str:
        """The directory of an attempt's credentials."""
        return f"{self.run}/credentials/{task_id}.{attempt}"
