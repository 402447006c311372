# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's end of the connections of named tasks' processes. See bgtaskd.task.link.

Anybody can connect; who is heard has said the token that only this process was handed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from bgtaskd.protocol.codec import Decoder, MalformedMessage, encode

log = logging.getLogger(__name__)

MESSAGE_MAX: Final = 4 << 20
HELLO_SECONDS: Final = 5.0
STRANGERS_MAX: Final = 256
BUFFER_MAX: Final = 16 << 20


class BadMessage(Exception):
    """What was said makes no sense; the text says why."""


class Hears(Protocol):
    """Who is told what the processes say."""

    def token(self, task_id: int) -> str | None:
        """What the process of this task was handed; None where there is no such."""

    def connected(self, task_id: int, link: WorkerLink, holds: Sequence[int]) -> None:
        """The process is there."""

    def ended(
        self, task_id: int, ends: Sequence[Sequence[Any]], confirm: Callable[[], None]
    ) -> None:
        """These payloads are done ([id]) or have failed ([id, failure])."""

    def gave_back(self, task_id: int, ids: Sequence[int]) -> None:
        """These it has not begun."""

    def answered(self, task_id: int, call: int, good: bool, value: Any) -> None:
        """A call's answer, or failure."""

    def counted(self, task_id: int, served: int, failed: int, bye: str | None) -> None:
        """How much it has done; why it is going, if it is."""

    def hung_up(self, task_id: int, link: WorkerLink) -> None:
        """It has gone, or will connect again."""


class WorkerLink(asyncio.Protocol):
    """One connection."""

    def __init__(self, hears: Hears, strangers: set[WorkerLink]) -> None:
        self._hears = hears
        self._strangers = strangers
        self._decoder = Decoder(limit=MESSAGE_MAX)
        self._task_id: int | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It has a moment to say who it is."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if len(self._strangers) >= STRANGERS_MAX:
            transport.abort()
            return
        self._strangers.add(self)
        self._timer = asyncio.get_running_loop().call_later(HELLO_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Whole messages are heard one by one."""
        try:
            for message in self._decoder.feed(data):
                self._hear(message)
        except (MalformedMessage, BadMessage) as error:
            if self._task_id is not None:
                log.warning("Worker process %d is not understood: %s", self._task_id, error)
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._is_known()
        if self._task_id is not None:
            self._hears.hung_up(self._task_id, self)

    def send(self, message: dict[str, Any]) -> None:
        """Tell the process."""
        if self._transport.is_closing():
            return
        self._transport.write(encode(message))
        if self._transport.get_write_buffer_size() > BUFFER_MAX:
            self._transport.abort()  # it reads nothing

    def close(self) -> None:
        """Hang up."""
        self._transport.abort()

    def _is_known(self) -> None:
        self._strangers.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def _hear(self, said: Mapping[str, Any]) -> None:
        if self._task_id is None:
            self._hello(said.get("hello"))
        elif "ends" in said:
            ends, seq = said["ends"], _integer(said.get("seq"))
            _check_ends(ends)
            self._hears.ended(self._task_id, ends, lambda: self.send({"confirmed": seq}))
        elif "answer" in said:
            answer = said["answer"]
            if not isinstance(answer, list) or len(answer) != 3 or type(answer[1]) is not bool:
                raise BadMessage("answer")
            if not answer[1]:
                _check_failure(answer[2])
            self._hears.answered(self._task_id, _integer(answer[0]), answer[1], answer[2])
        elif "back" in said:
            self._hears.gave_back(self._task_id, _integers(said["back"]))
        elif "served" in said:
            bye = said.get("bye")
            if bye is not None and not isinstance(bye, str):
                raise BadMessage("bye")
            served, failed = _integer(said["served"]), _integer(said.get("failed"))
            self._hears.counted(self._task_id, served, failed, bye)

    def _hello(self, hello: Any) -> None:
        if not isinstance(hello, dict) or not isinstance(hello.get("token"), str):
            raise BadMessage("hello")
        task_id, holds = _integer(hello.get("id")), _integers(hello.get("holds"))
        from hmac import compare_digest  # it brings OpenSSL: 3 MiB, where there are named tasks

        token = self._hears.token(task_id)
        if token is None or not compare_digest(token.encode(), hello["token"].encode()):
            raise BadMessage("token")
        self._is_known()
        self._task_id = task_id
        self._hears.connected(task_id, self, holds)


def _integer(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise BadMessage("a number is none")
    return value


def _integers(value: Any) -> list[int]:
    if not isinstance(value, list):
        raise BadMessage("a list is none")
    return [_integer(one) for one in value]


def _check_ends(ends: Any) -> None:
    if not isinstance(ends, list):
        raise BadMessage("ends")
    for one in ends:
        if not isinstance(one, list) or not 1 <= len(one) <= 2:
            raise BadMessage("ends")
        _integer(one[0])
        if len(one) == 2:
            _check_failure(one[1])


def _check_failure(failure: Any) -> None:
    if not isinstance(failure, dict) or any(
        not isinstance(failure.get(name), str) for name in ("type", "message", "traceback")
    ):
        raise BadMessage("a failure is none")
