# SPDX-License-Identifier: LGPL-2.1-or-later
"""What others have to say to a running task: messages, and a configuration that changes."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any, Final, TypeVar

from bgtaskd.client.blocking import Client
from bgtaskd.client.task import Message, Seconds, usec
from bgtaskd.errors import BgtaskdError, NotReachable, TimedOut, TooManyRequests
from bgtaskd.task.patience import patiently
from bgtaskd.task.status import TaskStatus

AGAIN_SECONDS: Final = 0.5
REMEMBERED: Final = 10_000
OnMessage = TypeVar("OnMessage", bound=Callable[[Message], object])
OnConfig = TypeVar("OnConfig", bound=Callable[[Any], object])


class Mailbox(TaskStatus):
    """The part of a task's own status that listens. Nothing here polls."""

    def __init__(self, task_id: int, *, client: Client | None = None) -> None:
        super().__init__(task_id, client=client)
        self._handlers: dict[str, Callable[[Message], object]] = {}
        self._handled: set[int] = set()
        self._handling = threading.RLock()
        self._on_config: list[Callable[[Any], object]] = []
        self._known_config: Any = None

    # --- messages -------------------------------------------------------------------------------

    def signals(self, clear: bool = False) -> list[Message]:
        """The messages in its mailbox that no handler is for, oldest first; ``clear``: and take them out."""
        found = [one for one in self._waiting() if self._is_for_anybody(one)]
        if clear and found:
            self.clear_signals([one.seq for one in found])
        return found

    def _waiting(self) -> list[Message]:
        return patiently(lambda: self.client.signals(self.id))

    def clear_signals(self, ids: Sequence[int] | None = None) -> int:
        """Take out those messages (by ``seq``), or all; how many there were."""
        return patiently(lambda: self.client.clear_signals(self.id, ids))

    def next_signal(self, timeout: Seconds | None = None) -> Message | None:
        """Wait for a message that no handler is for, and take it out. None after so many seconds."""
        end = None if timeout is None else time.monotonic() + usec(timeout) / 1e6

        def wait() -> Message | None:
            left = None if end is None else max(0.0, end - time.monotonic())
            with closing(self.client.watch_signals(self.id, timeout=left)) as messages:
                return next((one for one in messages if self._is_for_anybody(one)), None)

        while True:
            try:
                message = patiently(wait, end=end)
            except TimedOut:
                return None
            except TooManyRequests:
                if end is not None and time.monotonic() >= end:
                    raise
                time.sleep(AGAIN_SECONDS)
                continue
            if message is None:
                return None
            with self._handling:
                mine = message.seq not in self._handled
                self._mark(message)
            if not mine:
                continue  # another thread was faster
            try:
                self.clear_signals([message.seq])
            except BgtaskdError:
                self._handled.discard(message.seq)
                raise
            return message

    def _is_for_anybody(self, message: Message) -> bool:
        return message.name not in self._handlers and message.seq not in self._handled

    def _mark(self, message: Message) -> None:
        """It is being handled; with the lock held. What is long cleared need not be remembered."""
        self._handled.add(message.seq)
        if len(self._handled) > 2 * REMEMBERED:
            self._handled = set(sorted(self._handled)[-REMEMBERED:])

    def on_signal(self, name: str, handler: OnMessage | None = None) -> Any:
        """Have ``handler(message)`` called for each message of this name; also as a decorator.

        In a thread of its own, one message after the other, those first that wait already. When the handler
        is done the message is taken out, also where it failed (its traceback is printed). If the process dies
        meanwhile, the next attempt gets the message again.
        """
        if handler is None:
            return lambda function: self.on_signal(name, function)
        begin = not self._handlers
        self._handlers[name] = handler
        if begin:
            self._listen("signals", self._hear_messages)
        else:  # the listener may have passed over messages of this name already
            self._listen("signals", lambda: self._handle_all(self._waiting()))
        return handler

    def _hear_messages(self) -> None:
        with closing(self.client.watch_signals(self.id)) as messages:
            self._handle_all(messages)

    def _handle_all(self, messages: Iterable[Message]) -> None:
        for message in messages:
            with self._handling:
                handler = self._handlers.get(message.name)
                if handler is not None and message.seq not in self._handled:
                    self._mark(message)
                    _guarded(handler, message)
                    self.clear_signals([message.seq])

    # --- configuration --------------------------------------------------------------------------

    @property
    def config(self) -> Any:
        """The configuration as it is now (Client.set_config); None where none was set."""
        return patiently(lambda: self.client.get_config(self.id))

    def on_config(self, handler: OnConfig) -> OnConfig:
        """Have ``handler(config)`` called when the configuration has changed, in a thread of its own."""
        begin = not self._on_config
        self._on_config.append(handler)
        if begin:
            self._known_config = self.config
            self._listen("config", self._hear_config)
        return handler

    def _hear_config(self) -> None:
        for config in self.client.watch_config(self.id):
            if config != self._known_config:
                self._known_config = config
                for handler in self._on_config:
                    _guarded(handler, config)

    # --- both -----------------------------------------------------------------------------------

    def _listen(self, name: str, hear: Callable[[], None]) -> None:
        def listen() -> None:
            while True:
                try:
                    hear()
                    return  # the task has ended
                except (NotReachable, TooManyRequests):
                    time.sleep(
                        AGAIN_SECONDS
                    )  # the daemon is being restarted, or is busy with others
                except BgtaskdError as error:
                    print(f"bgtaskd: the task hears no {name} any more: {error}", file=sys.stderr)
                    return

        threading.Thread(target=listen, name=f"bgtaskd-{name}", daemon=True).start()


def _guarded(handler: Callable[[Any], object], argument: Any) -> None:
    try:
        handler(argument)
    except Exception:  # noqa: BLE001 - a handler's mistake is no reason to hear no more
        traceback.print_exc()
