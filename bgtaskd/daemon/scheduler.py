# SPDX-License-Identifier: LGPL-2.1-or-later
"""What may start now? Pure: queues with slots and rates, resources that all share, priority, then age.

Nobody is passed for ever. Who is next in a queue and finds too few free slots is waited for. Who lacks a
resource lets others pass, but none that needs that resource too.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from bgtaskd.config import Rate

Needs = tuple[tuple[str, int], ...]
"""Counted resources by name, sorted."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a queue may do."""

    slots: int
    rate: Rate | None = None


@dataclass(frozen=True, slots=True)
class Wants:
    """What a task takes while it runs: so many of its queue's slots, and resources."""

    weight: int = 1
    needs: Needs = ()


PLAIN: Final = Wants()


@dataclass(slots=True)
class _Queue:
    limits: Limits = Limits(0)
    paused: bool = False
    delayed: int = 0
    held: int = 0
    used: int = 0
    running: dict[int, Wants] = field(default_factory=dict)
    waiting: dict[int, tuple[int, Wants]] = field(default_factory=dict)
    heaps: dict[Needs, list[tuple[int, int]]] = field(default_factory=dict)
    """(-priority, id), by what is needed: all of one heap can start, or none can."""
    started: deque[int] = field(default_factory=deque)


class Scheduler:
    """Ids only; whoever owns the tasks tells it of every change. Times in microseconds since the epoch."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        self._delayed: list[tuple[int, int]] = []
        self._not_before: dict[int, tuple[int, str]] = {}
        self._held: dict[int, str] = {}
        self._resources: dict[str, int] = {}
        self._taken: dict[str, int] = {}

    def configure(
        self, queues: Mapping[str, Limits], resources: Mapping[str, int] | None = None
    ) -> None:
        """The queues and resources there are. A queue that is gone starts nothing more; what it has stays."""
        for name, limits in queues.items():
            self._queue(name).limits = limits
        for name in self._queues.keys() - queues.keys():
            self._queues[name].limits = Limits(0)
        self._resources = dict(resources or {})

    def pause(self, queue: str, paused: bool) -> None:
        """Start none (or again some) of its tasks."""
        self._queue(queue).paused = paused

    def is_paused(self, queue: str) -> bool:
        """Whether the queue is paused."""
        return self._queue(queue).paused

    def add(self, task_id: int, queue: str, priority: int, wants: Wants = PLAIN) -> None:
        """A task waits for its turn."""
        one = self._queue(queue)
        self._no_longer_held(task_id)
        one.waiting[task_id] = (priority, wants)
        heapq.heappush(one.heaps.setdefault(wants.needs, []), (-priority, task_id))

    def hold(self, task_id: int, queue: str) -> None:
        """A task waits for others to end."""
        if task_id not in self._held:
            self._held[task_id] = queue
            self._queue(queue).held += 1

    def delay(self, task_id: int, queue: str, not_before: int) -> None:
        """A task waits for a time."""
        self._no_longer_delayed(task_id)
        self._queue(queue).delayed += 1
        self._not_before[task_id] = (not_before, queue)
        heapq.heappush(self._delayed, (not_before, task_id))

    def occupy(self, task_id: int, queue: str, wants: Wants = PLAIN) -> None:
        """A task runs."""
        one = self._queue(queue)
        if task_id not in one.running:
            one.running[task_id] = wants
            one.used += wants.weight
            for name, number in wants.needs:
                self._taken[name] = self._taken.get(name, 0) + number

    def forget(self, task_id: int, queue: str) -> None:
        """A task neither waits nor runs any more."""
        one = self._queue(queue)
        one.waiting.pop(task_id, None)
        self._no_longer_held(task_id)
        wants = one.running.pop(task_id, None)
        if wants is not None:
            one.used -= wants.weight
            for name, number in wants.needs:
                self._taken[name] -= number
        self._no_longer_delayed(task_id)

    def take_at_once(self, task_id: int, queue: str, now: int, wants: Wants = PLAIN) -> bool:
        """Whether a task that has just come may start before it ever waited; counted as running then."""
        one = self._queue(queue)
        if one.waiting or not self._may_start(one, now) or not self._fits(one, wants):
            return False
        if self._lacks(wants, self._wanted()):
            return False
        self._start(task_id, queue, one, wants, now)
        return True

    def take(self, now: int) -> Iterator[int]:
        """The ids that may start now; each is counted as running from then on."""
        for name, one in self._queues.items():
            while one.waiting and self._may_start(one, now):
                task_id = self._next(one)
                if task_id is None:
                    break
                wants = one.waiting.pop(task_id)[1]
                heapq.heappop(one.heaps[wants.needs])
                self._start(task_id, name, one, wants, now)
                yield task_id

    def _start(self, task_id: int, name: str, one: _Queue, wants: Wants, now: int) -> None:
        self.occupy(task_id, name, wants)
        if one.limits.rate is not None:
            one.started.append(now)

    def _next(self, one: _Queue) -> int | None:
        """Who is to start next, if anybody can."""
        barred: set[str] = set()
        for _, task_id, wants in sorted(self._heads(one), key=lambda head: head[:2]):
            if not self._fits(one, wants):
                return None
            if not self._lacks(wants, barred):
                return task_id
            barred.update(name for name, _ in wants.needs)
        return None

    def _heads(self, one: _Queue) -> Iterator[tuple[int, int, Wants]]:
        for needs in list(one.heaps):
            heap = one.heaps[needs]
            while heap and not self._is_current(one, needs, *heap[0]):
                heapq.heappop(heap)
            if heap:
                yield heap[0][0], heap[0][1], one.waiting[heap[0][1]][1]
            else:
                del one.heaps[needs]

    @staticmethod
    def _is_current(one: _Queue, needs: Needs, priority: int, task_id: int) -> bool:
        """Whether an entry of a heap still stands: its task may have gone, or have been changed."""
        waits = one.waiting.get(task_id)
        return waits is not None and (waits[0], waits[1].needs) == (-priority, needs)

    def _wanted(self) -> set[str]:
        """The resources that somebody waits for: who comes now must not take them first."""
        return {name for one in self._queues.values() for needs in one.heaps for name, _ in needs}

    def _may_start(self, one: _Queue, now: int) -> bool:
        return not one.paused and one.used < one.limits.slots and self._opens(one, now) <= now

    @staticmethod
    def _fits(one: _Queue, wants: Wants) -> bool:
        # What is heavier than the whole queue (its configuration was changed) has it for itself.
        return one.used + min(wants.weight, one.limits.slots) <= one.limits.slots

    def _lacks(self, wants: Wants, barred: set[str]) -> bool:
        for name, number in wants.needs:
            there = self._resources.get(name, 0)
            if name in barred or self._taken.get(name, 0) + min(number, there) > there:
                return True
        return False

    @staticmethod
    def _opens(one: _Queue, now: int) -> int:
        """When the queue's rate lets another one start."""
        rate = one.limits.rate
        if rate is None:
            return now
        while one.started and one.started[0] <= now - rate.per_usec:
            one.started.popleft()
        if len(one.started) < rate.count:
            return now
        return one.started[len(one.started) - rate.count] + rate.per_usec

    def due(self, now: int) -> list[int]:
        """The delayed ids whose time has come."""
        out = []
        while self._delayed and self._delayed[0][0] <= now:
            when, task_id = heapq.heappop(self._delayed)
            if self._not_before.get(task_id, (None,))[0] == when:
                self._no_longer_delayed(task_id)
                out.append(task_id)
        return out

    def next_due(self, now: int) -> int | None:
        """When the next delayed task's time comes, or a queue's rate lets its next one start."""
        times = [
            self._opens(one, now)
            for one in self._queues.values()
            if one.limits.rate is not None and one.waiting and not one.paused
        ]
        times = [when for when in times if when > now]
        while self._delayed:
            when, task_id = self._delayed[0]
            if self._not_before.get(task_id, (None,))[0] == when:
                times.append(when)
                break
            heapq.heappop(self._delayed)
        return min(times, default=None)

    def counts(self, queue: str) -> tuple[int, int, int]:
        """Running, waiting (for a turn, or for others to end), delayed."""
        one = self._queue(queue)
        return len(one.running), len(one.waiting) + one.held, one.delayed

    def waiting(self, queue: str) -> int:
        """How many wait, for whatever it is."""
        _, waiting, delayed = self.counts(queue)
        return waiting + delayed

    def _no_longer_held(self, task_id: int) -> None:
        queue = self._held.pop(task_id, None)
        if queue is not None:
            self._queue(queue).held -= 1

    def _no_longer_delayed(self, task_id: int) -> None:
        before = self._not_before.pop(task_id, None)
        if before is not None:
            self._queue(before[1]).delayed -= 1

    def _queue(self, name: str) -> _Queue:
        return self._queues.setdefault(name, _Queue())
