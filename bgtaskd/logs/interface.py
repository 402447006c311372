# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the daemon asks of a log: a place of others' making that tasks' output is passed on to.

The daemon reads the output files of the tasks and tells each log of them, from one thread of the log's own. A
log may block for as long as it likes: nothing waits for it but its own further output. It may raise any
exception (an OSError, as a rule): then the same piece is told again, later. When :meth:`Log.write` returns, the
bytes are the log's, and are told again only where the daemon was killed before it could note that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class LogError(Exception):
    """A log could not be opened. The text says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An attempt of a task, whose output is passed on. Equal ones are the same attempt."""

    task_id: int
    attempt: int
    name: str
    queue: str
    user: str
    uid: int
    unit: str
    """Its scope, as systemd and the journal name it."""


class Log(Protocol):
    """A log. Of one attempt it is told: begin, any number of writes, end; those of others come in between."""

    def begin(self, entry: Entry, offset: int) -> None:
        """What this attempt prints follows, from byte ``offset`` on.

        0, where the attempt is new; more, where a daemon before this one has passed on so much. It may be told
        again with less than was written: the daemon was killed before it could note how far it had come.
        """

    def write(self, entry: Entry, data: bytes, offset: int) -> None:
        """Some bytes, in the order in which they were printed: stdout and stderr as they came, not whole lines,
        not whole characters.

        ``offset`` counts what the task printed. Where it leaps, ``output: cap`` had dropped what was between.
        """

    def end(self, entry: Entry) -> None:
        """The attempt has ended, and this was all. Told also where nothing was printed."""

    def close(self) -> None:
        """The daemon stops, or the log is not wanted any more. Of what is under way, the next daemon tells."""
