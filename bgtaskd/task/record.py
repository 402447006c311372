# SPDX-License-Identifier: LGPL-2.1-or-later
"""Work that is done elsewhere, and told by hand."""

from __future__ import annotations

from typing import Any, Self

from bgtaskd.client.blocking import Client
from bgtaskd.task.status import TaskStatus, shared_client


class Record(TaskStatus):
    """``Record.add("Nightly import")``, then started(), update(), finished(), … ``Record(42)`` is an old one.

    Everybody sees it as a task. If somebody stops it there, the next report raises NotPossible: so hears of it
    whoever does the work.
    """

    @classmethod
    def add(
        cls,
        description: str,
        settings: Any = None,
        *,
        queue: str | None = None,
        merge_key: str | None = None,
        client: Client | None = None,
    ) -> Self:
        """Make one. It waits (``queued``) until something is reported of it."""
        one = client or shared_client()
        options = {"settings": settings, "queue": queue, "merge_key": merge_key}
        return cls(one.add_record(description, **options), client=one)

    def started(self, message: str | None = None) -> None:
        """The work has begun."""
        self.client.record(self.id, "running", message=message)

    def update(
        self, percent: float | None = None, message: str | None = None, *, rewind: bool = False
    ) -> None:
        """How far it is (0 to 100), and in a line what is done."""
        self.client.report(self.id, percent=percent, message=message, rewind=rewind or None)

    def operations(self, total: int | None, finished: int = 0) -> None:
        """So many operations make up the whole, and so many are done."""
        self.client.report(self.id, total=total, finished=finished)

    def increment(self, n: int = 1) -> None:
        """So many more operations are done. One reporter at a time: it is counted here."""
        self.client.report(self.id, finished=(self.refresh().info.finished or 0) + n)

    def finished(self, value: Any = None, message: str | None = None) -> None:
        """The work is done, and came to this."""
        self.client.record(self.id, "finished", value=value, message=message)

    def failed(self, error: str) -> None:
        """The work failed, for this reason."""
        self.client.record(self.id, "failed", error=error)

    def stopped(self, message: str | None = None) -> None:
        """The work was stopped."""
        self.client.record(self.id, "stopped", message=message)
