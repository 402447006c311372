# SPDX-License-Identifier: LGPL-2.1-or-later
"""How tasks stand, for all open pages of a process at once: one thread, one watch on the daemon.

A page takes a :class:`Seat` and looks at the newest whenever it has the time: nothing is queued for it, so a
slow page costs no memory and misses nothing but what is past. Forks are noticed: each process has a watch.
"""

from __future__ import annotations

import glob
import os
import threading
import time
from collections.abc import Callable
from typing import Final

from bgtaskd.client.blocking import Client
from bgtaskd.client.task import UNENDED, TaskEvent, TaskInfo
from bgtaskd.errors import BgtaskdError, NoSuchTask
from bgtaskd.web.views import Sight, is_end

Target = int | str
"""A task's id, or a name: then the last task of that name is meant."""

AGAIN_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
SETTLE_SECONDS: Final = 1.0
"""A change between our question and the watch's beginning is seen by asking again after so long."""
FRESH_SECONDS: Final = 15.0
IDLE_SECONDS: Final = 60.0
"""With no page open for so long the next change ends the watch, until a page is opened."""


class _Topic:
    def __init__(self) -> None:
        self.seen: TaskInfo | Sight = Sight.UNREACHABLE
        self.serial = 0
        self.asked = 0.0
        self.wakers: list[Callable[[], None]] = []


class Seat:
    """A page's place at the feed: ``look()`` when it was woken, ``close()`` when the page has gone."""

    def __init__(self, feed: Feed, target: Target, topic: _Topic, wake: Callable[[], None]) -> None:
        self._feed = feed
        self._target = target
        self._topic = topic
        self._wake = wake

    def look(self) -> tuple[int, TaskInfo | Sight]:
        """How it stands, and a number that is higher whenever that is another."""
        return self._topic.serial, self._topic.seen

    def freshen(self) -> None:
        """Ask, where nobody has for long. Blocks. What no event told is found out here."""
        if time.monotonic() - self._topic.asked >= FRESH_SECONDS:
            self._feed.ask(self._target)

    def close(self) -> None:
        """Leave. Twice does no harm."""
        self._feed.leave(self._target, self._topic, self._wake)


class Feed:
    """The one watch on the daemon. Threads may share it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._lock = threading.Lock()
        self._topics: dict[Target, _Topic] = {}
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._left = time.monotonic()

    def open(self, target: Target, wake: Callable[[], None]) -> Seat:
        """A seat; ``wake`` is called, in any thread, whenever there is something new. Blocks for a question."""
        if self._pid != os.getpid():
            self._lock, self._topics, self._thread = threading.Lock(), {}, None
            self._pid = os.getpid()
        with self._lock:
            topic = self._topics.setdefault(target, _Topic())
            topic.wakers.append(wake)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="bgtaskd-feed", daemon=True)
                self._thread.start()
        if topic.asked == 0.0 or is_end(topic.seen):
            self.ask(target)  # an ended one may be gone by now, or retried
        return Seat(self, target, topic, wake)

    def leave(self, target: Target, topic: _Topic, wake: Callable[[], None]) -> None:
        """See Seat.close()."""
        with self._lock:
            if wake in topic.wakers:
                topic.wakers.remove(wake)
            if not topic.wakers and self._topics.get(target) is topic:
                del self._topics[target]
            self._left = time.monotonic()

    def ask(self, target: Target) -> None:
        """Ask the daemon how it stands, and tell the pages."""
        with self._lock:
            topic = self._topics.get(target)
            since = 0 if topic is None else topic.serial
        self._told(target, self.find(target), since)

    def find(self, target: Target) -> TaskInfo | Sight:
        """How it stands, from the daemon itself. Blocks."""
        try:
            if isinstance(target, int):
                return self.client.get(target)
            pattern = glob.escape(target)
            found = self.client.list(name=pattern, states=UNENDED, limit=1)
            found = found or self.client.list(name=pattern, limit=1)
            return found[0] if found else Sight.NONE
        except NoSuchTask:
            return Sight.GONE
        except BgtaskdError:
            return Sight.UNREACHABLE

    def _ask_all(self) -> None:
        for target in self._targets():
            self.ask(target)

    def _targets(self) -> list[Target]:
        with self._lock:
            return list(self._topics)

    def _told(self, target: Target, seen: TaskInfo | Sight, since: int | None = None) -> None:
        """An event, or the answer to a question that was asked when the topic's serial was ``since``."""
        with self._lock:
            topic = self._topics.get(target)
            if topic is None:
                return
            if since is not None:
                topic.asked = time.monotonic()
                if topic.serial != since:  # overtaken by an event, after which come all later ones
                    return
            if topic.serial and topic.seen == seen:
                return
            topic.seen = seen
            topic.serial += 1
            wakers = list(topic.wakers)
        for wake in wakers:
            wake()

    def _run(self) -> None:
        try:
            self._watch()
        finally:
            self._thread = None  # whatever it was: the next page has another go

    def _watch(self) -> None:
        tries = 0
        while True:
            began = time.monotonic()
            again = threading.Timer(SETTLE_SECONDS, self._ask_all)
            again.daemon = True
            again.start()
            try:
                if tries:
                    self._ask_all()
                for event in self.client.watch():
                    self._happened(event)
                    if self._is_over():
                        return
            except BgtaskdError:
                pass  # away, too busy, or it makes no sense: later perhaps
            again.cancel()
            for target in self._targets():
                self._told(target, Sight.UNREACHABLE)
            tries = 1 if time.monotonic() - began > AGAIN_SECONDS[-1] else tries + 1
            time.sleep(AGAIN_SECONDS[min(tries, len(AGAIN_SECONDS)) - 1])

    def _happened(self, event: TaskEvent) -> None:
        task = event.task
        self._told(task.id, Sight.GONE if event.event == "removed" else task)
        topic = self._topics.get(task.name)
        if topic is None:
            return
        shown = topic.seen
        if event.event != "removed" and not task.is_ended():
            if isinstance(shown, Sight) or is_end(shown) or task.id >= shown.id:
                self._told(task.name, task)
        elif isinstance(shown, Sight) or task.id == shown.id:
            self.ask(task.name)  # it ended: perhaps another of that name goes on

    def _is_over(self) -> bool:
        with self._lock:
            over = not self._topics and time.monotonic() - self._left > IDLE_SECONDS
            if over:
                self._thread = None
            return over
