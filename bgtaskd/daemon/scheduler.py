# SPDX-License-Identifier: LGPL-2.1-or-later
"""What may start now? Pure: queues with slots, priority, then age; and what is delayed until when."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Queue:
    slots: int
    paused: bool = False
    delayed: int = 0
    running: set[int] = field(default_factory=set)
    heap: list[tuple[int, int]] = field(default_factory=list)
    waiting: dict[int, int] = field(default_factory=dict)


class Scheduler:
    """Ids only; whoever owns the tasks tells it of every change."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        self._delayed: list[tuple[int, int]] = []
        self._not_before: dict[int, tuple[int, str]] = {}

    def configure(self, slots: dict[str, int]) -> None:
        """The queues there are. One that is gone takes nothing more, but what it has stays."""
        for name, number in slots.items():
            self._queue(name).slots = number
        for name in self._queues.keys() - slots.keys():
            self._queues[name].slots = 0

    def pause(self, queue: str, paused: bool) -> None:
        """Start none (or again some) of its tasks."""
        self._queue(queue).paused = paused

    def is_paused(self, queue: str) -> bool:
        """Whether the queue is paused."""
        return self._queue(queue).paused

    def add(self, task_id: int, queue: str, priority: int) -> None:
        """A task waits."""
        one = self._queue(queue)
        one.waiting[task_id] = priority
        heapq.heappush(one.heap, (-priority, task_id))

    def delay(self, task_id: int, queue: str, not_before: int) -> None:
        """A task waits for a time (microseconds since the epoch)."""
        self._no_longer_delayed(task_id)
        self._queue(queue).delayed += 1
        self._not_before[task_id] = (not_before, queue)
        heapq.heappush(self._delayed, (not_before, task_id))

    def occupy(self, task_id: int, queue: str) -> None:
        """A task runs."""
        self._queue(queue).running.add(task_id)

    def forget(self, task_id: int, queue: str) -> None:
        """A task neither waits nor runs any more."""
        one = self._queue(queue)
        one.waiting.pop(task_id, None)
        one.running.discard(task_id)
        self._no_longer_delayed(task_id)

    def take_at_once(self, task_id: int, queue: str) -> bool:
        """Whether a task that has just come may start before it ever waited; counted as running then."""
        one = self._queue(queue)
        if one.paused or one.waiting or len(one.running) >= one.slots:
            return False
        one.running.add(task_id)
        return True

    def take(self) -> Iterator[int]:
        """The ids that may start now; each is counted as running from then on."""
        for queue in self._queues.values():
            while not queue.paused and len(queue.running) < queue.slots and queue.waiting:
                priority, task_id = heapq.heappop(queue.heap)
                if queue.waiting.get(task_id) == -priority:
                    del queue.waiting[task_id]
                    queue.running.add(task_id)
                    yield task_id

    def due(self, now: int) -> list[int]:
        """The delayed ids whose time has come."""
        out = []
        while self._delayed and self._delayed[0][0] <= now:
            when, task_id = heapq.heappop(self._delayed)
            if self._not_before.get(task_id, (None,))[0] == when:
                self._no_longer_delayed(task_id)
                out.append(task_id)
        return out

    def next_due(self) -> int | None:
        """When the next delayed task's time comes."""
        while self._delayed:
            when, task_id = self._delayed[0]
            if self._not_before.get(task_id, (None,))[0] == when:
                return when
            heapq.heappop(self._delayed)
        return None

    def counts(self, queue: str) -> tuple[int, int, int]:
        """Running, waiting, delayed."""
        one = self._queue(queue)
        return len(one.running), len(one.waiting), one.delayed

    def waiting(self, queue: str) -> int:
        """How many wait, for a slot or for a time."""
        one = self._queue(queue)
        return len(one.waiting) + one.delayed

    def _no_longer_delayed(self, task_id: int) -> None:
        before = self._not_before.pop(task_id, None)
        if before is not None:
            self._queue(before[1]).delayed -= 1

    def _queue(self, name: str) -> _Queue:
        return self._queues.setdefault(name, _Queue(0))
