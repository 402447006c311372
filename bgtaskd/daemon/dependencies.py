# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who waits for whom: tasks that start only after others have ended."""

from __future__ import annotations

from collections.abc import Callable

from bgtaskd.model import ENDED, Result, Task


class Dependencies:
    """Successors by what they wait for, so that an end is looked up and nothing is searched."""

    def __init__(self, find: Callable[[int], Task | None]) -> None:
        """``find``: any task by its id, as it is on the disk or will be; None where it was removed."""
        self._find = find
        self._successors: dict[int, set[int]] = {}

    def look(self, task: Task) -> tuple[bool, Task | None]:
        """Whether it must wait, and remembered so; or the predecessor whose end forbids that it ever starts.

        One that has been removed had ended, and well: its failure would have been seen when it ended.
        """
        waits = False
        for number in task.spec.after:
            one = self._find(number)
            if one is None:
                continue
            if one.state not in ENDED:
                self._successors.setdefault(number, set()).add(task.id)
                waits = True
            elif task.spec.after_result == "success" and one.result is not Result.SUCCESS:
                return False, one
        return waits, None

    def released_by(self, task_id: int) -> set[int]:
        """Those who waited for a task that has just ended; each must be looked at again."""
        return self._successors.pop(task_id, set())
