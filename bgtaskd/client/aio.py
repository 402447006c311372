# SPDX-License-Identifier: LGPL-2.1-or-later
"""The asyncio client: the same names as the blocking one. Each call has a connection of its own."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, Self

from bgtaskd.client.path import default_socket
from bgtaskd.client.task import (
    GROUP_MAX,
    UNENDED,
    Message,
    NameStats,
    OutputChunk,
    QueueInfo,
    ScheduleInfo,
    Seconds,
    StartedId,
    TaskEvent,
    TaskInfo,
    changes_of,
    request_of,
    schedule_of,
    spec_of,
    usec,
)
from bgtaskd.client.workers import AsidePayload, WorkerInfo
from bgtaskd.errors import (
    INTERFACE,
    NoSuchTask,
    NotPossible,
    NotReachable,
    ProtocolError,
    TaskFailed,
    from_wire,
)
from bgtaskd.protocol.codec import DEPTH_MAX, Decoder, MalformedMessage, encode

READ_SIZE = 1 << 16
REPLY_MAX = 8 << 20


Listed = list
"""The builtin: the clients have a method of that name."""


class AsyncClient:
    """Talks to the daemon. Raises what the blocking Client raises."""

    def __init__(self, path: str | None = None) -> None:
        self.path = path or default_socket()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of org.bgtaskd by its own name; its reply's parameters."""
        async with aclosing(self._replies(method, parameters, more=False)) as replies:
            async for reply in replies:
                return reply
        raise ProtocolError("no reply")

    async def stream(self, method: str, **parameters: Any) -> AsyncGenerator[dict[str, Any], None]:
        """Call a streaming method; its replies, as they come."""
        async with aclosing(self._replies(method, parameters, more=True)) as replies:
            async for reply in replies:
                yield reply

    async def _replies(
        self, method: str, parameters: Mapping[str, Any], more: bool
    ) -> AsyncGenerator[dict[str, Any], None]:
        try:
            reader, writer = await asyncio.open_unix_connection(self.path)
        except OSError as error:
            raise NotReachable.because(self.path, error) from None
        decoder = Decoder(limit=REPLY_MAX, depth=2 * DEPTH_MAX)
        try:
            message = {"method": f"{INTERFACE}.{method}", "parameters": parameters}
            writer.write(encode({**message, "more": True} if more else message))
            while True:
                data = await reader.read(READ_SIZE)
                if not data:
                    raise NotReachable(self.path, "the connection broke")
                for reply in decoder.feed(data):
                    parameters = reply.get("parameters") or {}
                    if reply.get("error") is not None:
                        raise from_wire(reply["error"], parameters)
                    if not isinstance(parameters, dict):
                        raise ProtocolError("the daemon's answer makes no sense: no parameters")
                    yield parameters
                    if reply.get("continues") is not True:
                        return
        except MalformedMessage as error:
            raise ProtocolError(f"the daemon's answer makes no sense: {error}") from None
        except OSError as error:
            raise NotReachable(self.path, f"the connection broke: {error}") from None
        finally:
            writer.close()

    async def start(self, argv: Sequence[str], **options: Any) -> StartedId:
        """Have a command run; its task's id, once it is on the disk. Options: those of Client.start."""
        return StartedId.from_wire(await self.call("Start", spec=spec_of(argv, options)))

    async def http(
        self,
        method: str,
        path: str,
        *,
        app: str | None = None,
        query: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        json: Any = None,
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        cookies: Mapping[str, str] | None = None,
        as_user: bool = True,
        merge: bool = True,
        **options: Any,
    ) -> StartedId:
        """Have a route of a web app requested; its task's id: see Client.http."""
        given = locals()
        request = request_of(**{key: given[key] for key in given if key not in ("self", "options")})
        return await self.start([], kind="http", http=request, **options)

    async def run(self, argv: Sequence[str], **options: Any) -> TaskInfo:
        """start() and wait(). Raises TaskFailed unless it succeeded."""
        task = await self.wait(await self.start(argv, **options))
        if task.result != "success":
            raise TaskFailed(task)
        return task

    async def get(self, task_id: int) -> TaskInfo:
        """One task."""
        return TaskInfo.from_wire((await self.call("Get", id=task_id))["task"])

    async def list(self, **only: Any) -> list[TaskInfo]:
        """Tasks, newest first. ``only``: those of Client.list()."""
        given = {key: one for key, one in only.items() if one is not None}
        tasks: list[TaskInfo] = []
        async with aclosing(self.stream("List", **given)) as replies:
            async for reply in replies:
                tasks += [TaskInfo.from_wire(one) for one in reply["tasks"]]
        return tasks

    async def watch(self, ids: Sequence[int] | None = None) -> AsyncIterator[TaskEvent]:
        """Every change: of these tasks until all have ended, or of all tasks for ever."""
        parameters = {} if ids is None else {"ids": list(ids)}
        async with aclosing(self.stream("Watch", **parameters)) as replies:
            async for reply in replies:
                yield TaskEvent(reply["event"], TaskInfo.from_wire(reply["task"]))

    async def wait(self, task_id: int, timeout: Seconds | None = None) -> TaskInfo:  # noqa: ASYNC109 - it is part of the call
        """Wait for a task's end. Raises TimedOut after so many seconds."""
        parameters = {} if timeout is None else {"timeout_usec": usec(timeout)}
        return TaskInfo.from_wire((await self.call("Wait", ids=[task_id], **parameters))["task"])

    async def wait_all(
        self,
        ids: Sequence[int],
        timeout: Seconds | None = None,  # noqa: ASYNC109 - it is part of the call
    ) -> AsyncIterator[TaskInfo]:
        """Tasks in the order in which they end. Raises TimedOut after so many seconds."""
        parameters = {} if timeout is None else {"timeout_usec": usec(timeout)}
        async with aclosing(self.stream("Wait", ids=list(ids), **parameters)) as replies:
            async for reply in replies:
                yield TaskInfo.from_wire(reply["task"])

    async def output(self, task_id: int, *, offset: int = 0) -> bytes:
        """What it printed so far, from an offset (negative: so many bytes before the end)."""
        return b"".join([one.data async for one in self.output_chunks(task_id, offset=offset)])

    async def output_text(self, task_id: int) -> str:
        """What it printed so far as text: without escape sequences, overwritten lines as they ended."""
        from bgtaskd.client.plain import plain

        return plain((await self.output(task_id)).decode("utf-8", "replace"))

    async def output_chunks(
        self, task_id: int, *, offset: int = 0, follow: bool = False
    ) -> AsyncIterator[OutputChunk]:
        """What it printed, piece by piece; with ``follow`` until it has ended."""
        parameters = {"offset": offset, "follow": follow, "encoding": "base64"}
        async with aclosing(self.stream("Output", id=task_id, **parameters)) as replies:
            async for one in replies:
                data = base64.b64decode(one["data"])
                yield OutputChunk(
                    data, one["offset"], one["next_offset"], one["dropped"], one["eof"]
                )

    async def signal(self, task_id: int, name: str, payload: Any = None) -> int:
        """Leave a message in its mailbox; the message's number."""
        return int((await self.call("Signal", id=task_id, name=name, payload=payload))["seq"])

    async def signals(self, task_id: int) -> Listed[Message]:
        """Its mailbox."""
        return [Message(**one) for one in (await self.call("Signals", id=task_id))["signals"]]

    async def watch_signals(
        self,
        task_id: int,
        *,
        after: int = 0,
        timeout: Seconds | None = None,  # noqa: ASYNC109 - it is part of the call
    ) -> AsyncIterator[Message]:
        """The messages in its mailbox numbered above ``after``, and each that comes until it has ended.

        Raises TimedOut after so many seconds.
        """
        parameters = {} if timeout is None else {"timeout_usec": usec(timeout)}
        async with aclosing(
            self.stream("Signals", id=task_id, after=after, **parameters)
        ) as replies:
            async for reply in replies:
                for one in reply["signals"]:
                    yield Message(**one)

    async def clear_signals(self, task_id: int, seqs: Sequence[int] | None = None) -> int:
        """Clear those messages, or all; how many there were."""
        parameters = {} if seqs is None else {"seqs": list(seqs)}
        return int((await self.call("ClearSignals", id=task_id, **parameters))["cleared"])

    async def is_live(self, task_id: int) -> bool:
        """Whether it is there and has not ended."""
        try:
            return not (await self.get(task_id)).is_ended()
        except NoSuchTask:
            return False

    async def find_last(self, state: str | None = None, name: str | None = None) -> TaskInfo | None:
        """The newest task in this state, of this name (a shell pattern); None where there is none."""
        states = None if state is None else [state]
        return next(iter(await self.list(states=states, name=name, limit=1)), None)

    async def add_record(
        self,
        description: str,
        *,
        settings: Any = None,
        queue: str | None = None,
        merge_key: str | None = None,
    ) -> int:
        """A record of work that is done elsewhere: its id. How it stands, report() and record() say."""
        options = {"settings": settings, "queue": queue, "merge_key": merge_key}
        return await self.start([], kind="record", name=description, **options)

    async def record(
        self,
        task_id: int,
        state: str,
        *,
        message: str | None = None,
        value: Any = None,
        error: str | None = None,
    ) -> None:
        """Say how a record stands: running, finished, failed or stopped. Raises NotPossible if it has ended."""
        told = {"message": message, "value": value, "error": error}
        given = {key: one for key, one in told.items() if one is not None}
        await self.call("Record", id=task_id, state=state, **given)

    async def report(self, task_id: int, **progress: Any) -> None:
        """Report by hand: percent, finished, total, message, value, rewind; for one ``attempt`` only."""
        given = {key: one for key, one in progress.items() if one is not None}
        await self.call("Report", id=task_id, **given)

    async def set_config(self, task_id: int, config: Any) -> None:
        """Replace the configuration that it sees."""
        await self.call("SetConfig", id=task_id, config=config)

    async def get_config(self, task_id: int) -> Any:
        """The configuration that it sees."""
        return (await self.call("GetConfig", id=task_id))["config"]

    async def watch_config(self, task_id: int) -> AsyncIterator[Any]:
        """The configuration that it sees, now and whenever it is set, until it has ended."""
        async with aclosing(self.stream("GetConfig", id=task_id)) as replies:
            async for reply in replies:
                yield reply["config"]

    async def pause(self, task_id: int) -> None:
        """Freeze all its processes."""
        await self.call("Pause", id=task_id)

    async def resume(self, task_id: int) -> None:
        """Thaw it."""
        await self.call("Resume", id=task_id)

    async def stop(self, task_id: int) -> None:
        """SIGTERM to all its processes, SIGKILL after its stop timeout."""
        await self.call("Stop", id=task_id)

    async def kill(self, task_id: int, signal: str | int = "SIGKILL", whom: str = "all") -> None:
        """A Unix signal to all its processes, or to the main one."""
        await self.call("Kill", id=task_id, signal=str(signal), whom=whom)

    async def retry(self, task_id: int, **changes: Any) -> None:
        """Run an ended task again; with ``changes``, those of edit(), not as it was."""
        more = {"changes": changes_of(changes)} if changes else {}
        await self.call("Retry", id=task_id, **more)

    async def edit(self, task_id: int, **changes: Any) -> None:
        """Change a task that waits: options as start() has them. Raises NotPossible, InvalidSpec."""
        await self.call("Edit", id=task_id, changes=changes_of(changes))

    async def send(self, task_id: int, text: str, *, eof: bool = False) -> None:
        """Text for the standard input of a task started with ``stdin=True``; with ``eof`` it ends there.

        Raises NotPossible where it cannot be taken: then none of it was.
        """
        await self.call("Send", id=task_id, text=text, eof=eof)

    async def wait_group(self, group: str, timeout: Seconds | None = None) -> Listed[TaskInfo]:  # noqa: ASYNC109 - it is part of the call
        """Wait until every task of the group, as it is now, has ended; all of them. Raises TimedOut."""
        live = [one.id for one in await self.list(states=UNENDED, group=group, limit=GROUP_MAX)]
        if live:
            async for _ in self.wait_all(live, timeout):
                pass
        return await self.list(group=group, limit=GROUP_MAX)

    async def stop_group(self, group: str) -> Listed[int]:
        """End every task of the group: those that wait first, so that none takes another's place. Their ids."""
        live = await self.list(states=UNENDED, group=group, limit=GROUP_MAX)
        live.sort(key=lambda one: one.state not in ("queued", "delayed"))
        for one in live:
            with suppress(NotPossible, NoSuchTask):  # it has ended meanwhile
                await self.stop(one.id)
        return [one.id for one in live]

    async def schedules(self) -> Listed[ScheduleInfo]:
        """Your schedules, by name; an administrator's: all."""
        found = (await self.call("Schedules"))["schedules"]
        return [ScheduleInfo.from_wire(one) for one in found]

    async def add_schedule(
        self,
        name: str,
        calendar: str | Sequence[str],
        argv: Sequence[str],
        *,
        persistent: bool = False,
        randomized_delay: Seconds = 0,
        overlap: str = "skip",
        **options: Any,
    ) -> None:
        """Have a task started again and again; ``calendar``: see systemd.time(7). Another of the name goes.

        ``persistent``: make up for what was due while the machine was off. ``overlap``: what if the last task
        has not ended: "skip", "queue" or "replace". ``options``: of start(). Raises InvalidSpec.
        """
        schedule = schedule_of(name, calendar, argv, persistent, randomized_delay, overlap, options)
        await self.call("AddSchedule", schedule=schedule)

    async def remove_schedule(self, name: str) -> None:
        """Forget a schedule. Raises NoSuchSchedule."""
        await self.call("RemoveSchedule", name=name)

    async def enable_schedule(self, name: str, enabled: bool = True) -> None:
        """Start, or stop, its timer. Raises NoSuchSchedule."""
        await self.call("EnableSchedule", name=name, enabled=enabled)

    async def fire_schedule(self, name: str, *, timer: bool = False) -> int | None:
        """Start its task now; the id, or None where the last has not ended and ``overlap`` is "skip".

        ``timer``: for the moment at which its timer elapsed last; a second call for it starts nothing.
        """
        found: int | None = (await self.call("FireSchedule", name=name, timer=timer))["id"]
        return found

    async def stats(self, name: str | None = None) -> Listed[NameStats]:
        """What came of the last tasks, by name. ``name`` may be a shell pattern."""
        parameters = {} if name is None else {"name": name}
        return [NameStats(**one) for one in (await self.call("Stats", **parameters))["names"]]

    async def clean(self) -> int:
        """Forget now what the retention says; how many that were. For administrators."""
        return int((await self.call("Clean"))["removed"])

    async def remove(self, task_id: int) -> None:
        """Forget an ended task and its output."""
        await self.call("Remove", id=task_id)

    async def queues(self) -> Listed[QueueInfo]:
        """All queues."""
        return [QueueInfo(**one) for one in (await self.call("Queues"))["queues"]]

    async def pause_queue(self, queue: str) -> None:
        """Start none of its tasks any more."""
        await self.call("PauseQueue", queue=queue)

    async def resume_queue(self, queue: str) -> None:
        """Start its tasks again."""
        await self.call("ResumeQueue", queue=queue)

    async def workers(self) -> Listed[WorkerInfo]:
        """The named tasks that you may call, and their processes."""
        return [WorkerInfo.from_wire(one) for one in (await self.call("Workers"))["workers"]]

    async def aside_payloads(
        self, name: str | None = None, *, before: int | None = None, limit: int | None = None
    ) -> Listed[AsidePayload]:
        """Payloads that were given up, newest first, 100 unless told (1000 at most). For administrators."""
        given = {"name": name, "before": before, "limit": limit}
        only = {key: one for key, one in given.items() if one is not None}
        found = (await self.call("AsidePayloads", **only))["payloads"]
        return [AsidePayload.from_wire(one) for one in found]

    async def retry_payloads(self, ids: Sequence[int]) -> Listed[int]:
        """Try payloads that were given up again, 1000 at a time; those that there were. For administrators."""
        found: Listed[int] = (await self.call("RetryPayloads", ids=list(ids)))["ids"]
        return found

    async def drop_payloads(self, ids: Sequence[int]) -> Listed[int]:
        """Forget payloads that were given up, 1000 at a time; those that there were. For administrators."""
        found: Listed[int] = (await self.call("DropPayloads", ids=list(ids)))["ids"]
        return found

    async def reload(self) -> Listed[str]:
        """Have the configuration files taken over; the mistakes in them, a line each. For administrators."""
        found: Listed[str] = (await self.call("Reload"))["mistakes"]
        return found

    async def status(self) -> dict[str, Any]:
        """How the daemon is."""
        return await self.call("Status")
