# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which process a Python task can be forked from, and when there is to be one.

A template is a task of its own (kind ``template``), in a scope of its own, as the same user: so it is logged
and limited, and outlives restarts of the daemon, like any task. The first tasks that name modules to preload
start without one, while it loads them; from then on, until it is not needed for a while, there is one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from bgtaskd.model import ENDED, TEMPLATE, State, Task, TaskSpec
from bgtaskd.units import ANONYMOUS_USER

log = logging.getLogger(__name__)

READY: Final = 100.0
RETIRED: Final = 0.0
"""The percentages that a template tells: it can be forked; a file has changed, so it takes no more."""
AGAIN_USEC: Final = 60_000_000
"""After one has failed, its tasks start without for so long."""
FAILED_MAX: Final = 1000
Key = tuple[Any, ...]


class Templates:
    """Follows the templates that there are."""

    def __init__(self, begin: Callable[[Task, TaskSpec], int], stop: Callable[[int], None]) -> None:
        """``begin(task, spec)`` makes one for a task like this, and gives its id."""
        self._begin = begin
        self._stop = stop
        self._known: dict[Key, int] = {}
        self._ready: set[int] = set()
        self._used: dict[int, int] = {}
        self._failed: dict[Key, int] = {}

    def heard(self, task: Task) -> None:
        """A template has changed, or was found at start-up."""
        key = _key(task)
        if task.state in ENDED or task.percent == RETIRED:
            self.forget(task)
            if task.state is State.FAILED and task.ended is not None:
                self._failed[key] = task.ended + AGAIN_USEC
                while len(self._failed) > FAILED_MAX:
                    del self._failed[next(iter(self._failed))]
        elif task.state is State.RUNNING and task.percent == READY:
            self._ready.add(task.id)
            self._known[key] = task.id
        else:
            self._ready.discard(task.id)
            self._known.setdefault(key, task.id)

    def for_task(self, task: Task, idle_usec: int, per_user: int, now: int) -> int | None:
        """The template to fork this task from; None where it is to start without. May begin one."""
        if not task.spec.preload or task.spec.kind == TEMPLATE or task.user == ANONYMOUS_USER:
            return None
        key = _key(task)
        template = self._known.get(key)
        if template is not None:
            self._used[template] = now
            return template if template in self._ready else None
        if not per_user or now < self._failed.get(key, 0):
            return None
        self._failed.pop(key, None)
        self._make_room(task.uid, per_user)
        spec = task.spec
        self._known[key] = self._begin(
            task,
            TaskSpec(
                kind=TEMPLATE,
                name=f"preload {' '.join(spec.preload)}"[:200],
                argv=spec.argv,
                user=spec.user,
                cwd=spec.cwd,
                env=spec.env,
                queue=spec.queue,
                import_path=spec.import_path,
                preload=spec.preload,
                settings={"idle_usec": idle_usec},
            ),
        )
        return None

    def _make_room(self, uid: int, per_user: int) -> None:
        """Another one of this user is coming: the one that was not needed for longest goes."""
        theirs = [one for key, one in self._known.items() if key[0] == uid]
        if len(theirs) >= per_user:
            oldest = min(theirs, key=lambda one: self._used.get(one, 0))
            log.info("Template %d goes: its user may have %d of them", oldest, per_user)
            self._stop(oldest)

    def forget(self, task: Task) -> None:
        """It is none, or none any more."""
        key = _key(task)
        if self._known.get(key) == task.id:
            del self._known[key]
        self._ready.discard(task.id)
        self._used.pop(task.id, None)


def _key(task: Task) -> Key:
    """Tasks with one key can be forked from one process."""
    spec = task.spec
    env = tuple(sorted(spec.env.items()))
    return (task.uid, task.owner_uid, spec.argv, spec.cwd, env, spec.import_path, spec.preload)
