# SPDX-License-Identifier: LGPL-2.1-or-later
"""The blocking client: one connection for calls, one for each stream. Threads may share a Client."""

from __future__ import annotations

import base64
import os
import socket
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from types import TracebackType
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
    RemoteError,
    TaskFailed,
    from_wire,
)
from bgtaskd.protocol.codec import DEPTH_MAX, Decoder, MalformedMessage, encode

# Only these may be sent again when the connection broke: done twice, they change nothing.
HARMLESS = frozenset(
    {
        "Get",
        "List",
        "Signals",
        "GetConfig",
        "Queues",
        "Status",
        "Workers",
        "AsidePayloads",
        "Reload",
        "SetConfig",
        "PauseQueue",
        "ResumeQueue",
    }
)


Listed = list
"""The builtin: the clients have a method of that name."""


class _Connection:
    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._decoder = Decoder(limit=8 << 20, depth=2 * DEPTH_MAX)
        self._messages: list[dict[str, Any]] = []
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise NotReachable.because(path, error) from None

    def is_stale(self) -> bool:
        """Whether the daemon hung up, or said something unasked, since the last reply."""
        try:
            self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return bool(self._messages)
        except OSError:
            pass
        return True

    def send(self, method: str, parameters: Mapping[str, Any], more: bool) -> None:
        message: dict[str, Any] = {"method": f"{INTERFACE}.{method}", "parameters": parameters}
        if more:
            message["more"] = True
        self._socket.sendall(encode(message))

    def receive(self) -> tuple[dict[str, Any], bool]:
        """Parameters, and whether more will follow. Raises the daemon's error, or ConnectionError."""
        while not self._messages:
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionResetError("the daemon hung up")
            try:
                self._messages = self._decoder.feed(data)
            except MalformedMessage as error:
                raise ProtocolError(f"the daemon's answer makes no sense: {error}") from None
        message = self._messages.pop(0)
        parameters = message.get("parameters") or {}
        if message.get("error") is not None:
            raise from_wire(message["error"], parameters)
        if not isinstance(parameters, dict):
            raise ProtocolError("the daemon's answer makes no sense: parameters are no object")
        return parameters, message.get("continues") is True

    def close(self) -> None:
        self._socket.close()


class Client:
    """Talks to the daemon. Every method raises NotReachable, or one of bgtaskd.errors for what was refused."""

    def __init__(self, path: str | None = None) -> None:
        self.path = path or default_socket()
        self._connection: _Connection | None = None
        self._pid = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. The next call connects again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of org.bgtaskd by its own name; its reply's parameters."""
        with self._lock:
            try:
                return self._call(method, parameters)
            except OSError as error:
                if method not in HARMLESS:
                    raise NotReachable(self.path, f"the connection broke: {error}") from None
            try:
                return self._call(method, parameters)
            except OSError as error:
                raise NotReachable(self.path, f"the connection broke: {error}") from None

    def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        if self._connection is not None and (
            self._pid != os.getpid() or self._connection.is_stale()
        ):
            self.close()  # the daemon was restarted, or we are a fork: the parent goes on using its own
        if self._connection is None:
            self._connection, self._pid = _Connection(self.path), os.getpid()
        try:
            try:
                self._connection.send(method, parameters, more=False)
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused before we asked: the reason is there to be read
            return self._connection.receive()[0]
        except RemoteError:
            raise
        except BaseException:
            self.close()  # also after an interrupt: the next call must not get this one's reply
            raise

    def stream(self, method: str, **parameters: Any) -> Generator[dict[str, Any], None, None]:
        """Call a streaming method; its replies, as they come, on a connection of their own."""
        connection = _Connection(self.path)
        try:
            connection.send(method, parameters, more=True)
            while True:
                reply, continues = connection.receive()
                yield reply
                if not continues:
                    return
        except OSError as error:
            raise NotReachable(self.path, f"the connection broke: {error}") from None
        finally:
            connection.close()

    def start(
        self,
        argv: Sequence[str],
        *,
        name: str | None = None,
        user: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        queue: str | None = None,
        priority: int | None = None,
        delay: Seconds | None = None,
        merge_key: str | None = None,
        timeout: Seconds | None = None,
        stall_timeout: Seconds | None = None,
        stop_timeout: Seconds | None = None,
        retries: int | None = None,
        retry_delay: Seconds | None = None,
        retry_on: Sequence[str] | None = None,
        properties: Mapping[str, Any] | None = None,
        settings: Any = None,
        kind: str | None = None,
        target: str | None = None,
        import_path: Sequence[str] | None = None,
        secrets: Mapping[str, str] | None = None,
        after: Sequence[int] | None = None,
        after_result: str | None = None,
        group: str | None = None,
        weight: int | None = None,
        needs: Mapping[str, int] | None = None,
        on_end: Sequence[str] | Mapping[str, Any] | None = None,
        stdin: bool | None = None,
        preload: Sequence[str] | None = None,
        http: Mapping[str, Any] | None = None,
    ) -> StartedId:
        """Have a command run; its task's id, once the task is on the disk. Durations in seconds.

        ``merge_key``: one of yours with this key that has not ended is taken instead; ``id.merged`` says so.
        ``after``: tasks that must have ended first: well, or with ``after_result="any-result"`` however.
        ``weight``: so many of its queue's slots; ``needs``: so much of the configuration's resources.
        ``on_end``: a command to run when it has ended, or ``{"argv": […], "on": "failure"}``.
        ``stdin``: whether send() may send it text.
        ``secrets``: by name; the command finds each in a file of that name in $CREDENTIALS_DIRECTORY.
        ``kind``, ``target``, ``import_path``, ``preload``: for tasks in Python, see bgtaskd.BackgroundTask;
        ``http`` is what http() says.

        Raises InvalidSpec, PermissionDenied, QueueFull, NoSuchQueue, StorageFailed.
        """
        options = {key: value for key, value in locals().items() if key not in ("self", "argv")}
        return StartedId.from_wire(self.call("Start", spec=spec_of(argv, options)))

    def http(
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
        """Have a route of a web app requested; its task's id. The response's body is the task's output.

        ``app``: one of apps.d, by default the only one that you may request. ``query`` and ``data`` (a form):
        values may be lists; or ``json``, or the ``body`` itself. ``headers`` and ``cookies`` are secrets of the
        task; without ``as_user`` cookies and Authorization are left out. The same request, of the same session,
        is merged with one that has not ended, unless ``merge`` is False. ``options``: those of start().

        Raises InvalidSpec, PermissionDenied, and what start() does.
        """
        given = locals()
        request = request_of(**{key: given[key] for key in given if key not in ("self", "options")})
        return self.start([], kind="http", http=request, **options)

    def run(self, argv: Sequence[str], **options: Any) -> TaskInfo:
        """start() and wait(). Raises TaskFailed unless it succeeded."""
        task = self.wait(self.start(argv, **options))
        if task.result != "success":
            raise TaskFailed(task)
        return task

    def get(self, task_id: int) -> TaskInfo:
        """One task. Raises NoSuchTask."""
        return TaskInfo.from_wire(self.call("Get", id=task_id)["task"])

    def list(
        self,
        *,
        states: Sequence[str] | None = None,
        kinds: Sequence[str] | None = None,
        queue: str | None = None,
        name: str | None = None,
        group: str | None = None,
        user: str | None = None,
        before: int | None = None,
        limit: int | None = None,
    ) -> list[TaskInfo]:
        """Tasks, newest first. ``name`` may be a shell pattern."""
        parameters = {
            key: value for key, value in locals().items() if key != "self" and value is not None
        }
        replies = self.stream("List", **parameters)
        return [TaskInfo.from_wire(one) for reply in replies for one in reply["tasks"]]

    def watch(self, ids: Sequence[int] | None = None) -> Iterator[TaskEvent]:
        """Every change: of these tasks until all have ended, or of all tasks for ever."""
        parameters = {} if ids is None else {"ids": list(ids)}
        for reply in self.stream("Watch", **parameters):
            yield TaskEvent(reply["event"], TaskInfo.from_wire(reply["task"]))

    def wait(self, task_id: int, timeout: Seconds | None = None) -> TaskInfo:
        """Wait for a task's end. Raises TimedOut after so many seconds."""
        with closing(self.stream("Wait", ids=[task_id], **_timeout(timeout))) as replies:
            return TaskInfo.from_wire(next(replies)["task"])

    def wait_all(self, ids: Sequence[int], timeout: Seconds | None = None) -> Iterator[TaskInfo]:
        """Tasks in the order in which they end. Raises TimedOut after so many seconds."""
        for reply in self.stream("Wait", ids=list(ids), **_timeout(timeout)):
            yield TaskInfo.from_wire(reply["task"])

    def output(self, task_id: int, *, offset: int = 0, attempt: int | None = None) -> bytes:
        """What it printed so far, from an offset (negative: so many bytes before the end)."""
        return b"".join(
            chunk.data for chunk in self.output_chunks(task_id, offset=offset, attempt=attempt)
        )

    def output_text(self, task_id: int, *, attempt: int | None = None) -> str:
        """What it printed so far as text: without escape sequences, overwritten lines as they ended."""
        from bgtaskd.client.plain import plain

        return plain(self.output(task_id, attempt=attempt).decode("utf-8", "replace"))

    def output_chunks(
        self, task_id: int, *, offset: int = 0, follow: bool = False, attempt: int | None = None
    ) -> Iterator[OutputChunk]:
        """What it printed, piece by piece; with ``follow`` until it has ended."""
        parameters: dict[str, Any] = {
            "id": task_id,
            "offset": offset,
            "follow": follow,
            "encoding": "base64",
        }
        if attempt is not None:
            parameters["attempt"] = attempt
        for reply in self.stream("Output", **parameters):
            data = base64.b64decode(reply["data"])
            yield OutputChunk(
                data, reply["offset"], reply["next_offset"], reply["dropped"], reply["eof"]
            )

    def signal(self, task_id: int, name: str, payload: Any = None) -> int:
        """Leave a message in its mailbox; the message's number."""
        return int(self.call("Signal", id=task_id, name=name, payload=payload)["seq"])

    def signals(self, task_id: int) -> Listed[Message]:
        """Its mailbox."""
        return [Message(**one) for one in self.call("Signals", id=task_id)["signals"]]

    def watch_signals(
        self, task_id: int, *, after: int = 0, timeout: Seconds | None = None
    ) -> Generator[Message, None, None]:
        """The messages in its mailbox numbered above ``after``, and each that comes until it has ended.

        Raises TimedOut after so many seconds.
        """
        with closing(
            self.stream("Signals", id=task_id, after=after, **_timeout(timeout))
        ) as replies:
            for reply in replies:
                for one in reply["signals"]:
                    yield Message(**one)

    def clear_signals(self, task_id: int, seqs: Sequence[int] | None = None) -> int:
        """Clear those messages, or all; how many there were."""
        parameters = {} if seqs is None else {"seqs": list(seqs)}
        return int(self.call("ClearSignals", id=task_id, **parameters)["cleared"])

    def is_live(self, task_id: int) -> bool:
        """Whether it is there and has not ended."""
        try:
            return not (self.get(task_id)).is_ended()
        except NoSuchTask:
            return False

    def find_last(self, state: str | None = None, name: str | None = None) -> TaskInfo | None:
        """The newest task in this state, of this name (a shell pattern); None where there is none."""
        states = None if state is None else [state]
        return next(iter(self.list(states=states, name=name, limit=1)), None)

    def add_record(
        self,
        description: str,
        *,
        settings: Any = None,
        queue: str | None = None,
        merge_key: str | None = None,
    ) -> int:
        """A record of work that is done elsewhere: its id. How it stands, report() and record() say."""
        return self.start(
            [],
            kind="record",
            name=description,
            settings=settings,
            queue=queue,
            merge_key=merge_key,
        )

    def record(
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
        self.call("Record", id=task_id, state=state, **given)

    def report(self, task_id: int, **progress: Any) -> None:
        """Report by hand: percent, finished, total, message, value, rewind; for one ``attempt`` only."""
        self.call(
            "Report", id=task_id, **{key: one for key, one in progress.items() if one is not None}
        )

    def set_config(self, task_id: int, config: Any) -> None:
        """Replace the configuration that it sees."""
        self.call("SetConfig", id=task_id, config=config)

    def get_config(self, task_id: int) -> Any:
        """The configuration that it sees."""
        return self.call("GetConfig", id=task_id)["config"]

    def watch_config(self, task_id: int) -> Iterator[Any]:
        """The configuration that it sees, now and whenever it is set, until it has ended."""
        for reply in self.stream("GetConfig", id=task_id):
            yield reply["config"]

    def pause(self, task_id: int) -> None:
        """Freeze all its processes."""
        self.call("Pause", id=task_id)

    def resume(self, task_id: int) -> None:
        """Thaw it."""
        self.call("Resume", id=task_id)

    def stop(self, task_id: int) -> None:
        """SIGTERM to all its processes, SIGKILL after its stop timeout."""
        self.call("Stop", id=task_id)

    def kill(self, task_id: int, signal: str | int = "SIGKILL", whom: str = "all") -> None:
        """A Unix signal to all its processes, or to the main one."""
        self.call("Kill", id=task_id, signal=str(signal), whom=whom)

    def retry(self, task_id: int, **changes: Any) -> None:
        """Run an ended task again; with ``changes``, those of edit(), not as it was."""
        self.call("Retry", id=task_id, **({"changes": changes_of(changes)} if changes else {}))

    def edit(self, task_id: int, **changes: Any) -> None:
        """Change a task that waits: options as start() has them. Raises NotPossible, InvalidSpec."""
        self.call("Edit", id=task_id, changes=changes_of(changes))

    def send(self, task_id: int, text: str, *, eof: bool = False) -> None:
        """Text for the standard input of a task started with ``stdin=True``; with ``eof`` it ends there.

        Raises NotPossible where it cannot be taken: then none of it was.
        """
        self.call("Send", id=task_id, text=text, eof=eof)

    def wait_group(self, group: str, timeout: Seconds | None = None) -> Listed[TaskInfo]:
        """Wait until every task of the group, as it is now, has ended; all of them. Raises TimedOut."""
        live = [one.id for one in self.list(states=UNENDED, group=group, limit=GROUP_MAX)]
        if live:
            for _ in self.wait_all(live, timeout):
                pass
        return self.list(group=group, limit=GROUP_MAX)

    def stop_group(self, group: str) -> Listed[int]:
        """End every task of the group: those that wait first, so that none takes another's place. Their ids."""
        live = self.list(states=UNENDED, group=group, limit=GROUP_MAX)
        live.sort(key=lambda one: one.state not in ("queued", "delayed"))
        for one in live:
            with suppress(NotPossible, NoSuchTask):  # it has ended meanwhile
                self.stop(one.id)
        return [one.id for one in live]

    def schedules(self) -> Listed[ScheduleInfo]:
        """Your schedules, by name; an administrator's: all."""
        found = self.call("Schedules")["schedules"]
        return [ScheduleInfo.from_wire(one) for one in found]

    def add_schedule(
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
        self.call("AddSchedule", schedule=schedule)

    def remove_schedule(self, name: str) -> None:
        """Forget a schedule. Raises NoSuchSchedule."""
        self.call("RemoveSchedule", name=name)

    def enable_schedule(self, name: str, enabled: bool = True) -> None:
        """Start, or stop, its timer. Raises NoSuchSchedule."""
        self.call("EnableSchedule", name=name, enabled=enabled)

    def fire_schedule(self, name: str, *, timer: bool = False) -> int | None:
        """Start its task now; the id, or None where the last has not ended and ``overlap`` is "skip".

        ``timer``: for the moment at which its timer elapsed last; a second call for it starts nothing.
        """
        found: int | None = self.call("FireSchedule", name=name, timer=timer)["id"]
        return found

    def stats(self, name: str | None = None) -> Listed[NameStats]:
        """What came of the last tasks, by name. ``name`` may be a shell pattern."""
        parameters = {} if name is None else {"name": name}
        return [NameStats(**one) for one in self.call("Stats", **parameters)["names"]]

    def clean(self) -> int:
        """Forget now what the retention says; how many that were. For administrators."""
        return int(self.call("Clean")["removed"])

    def remove(self, task_id: int) -> None:
        """Forget an ended task and its output."""
        self.call("Remove", id=task_id)

    def queues(self) -> Listed[QueueInfo]:
        """All queues."""
        return [QueueInfo(**one) for one in self.call("Queues")["queues"]]

    def pause_queue(self, queue: str) -> None:
        """Start none of its tasks any more."""
        self.call("PauseQueue", queue=queue)

    def resume_queue(self, queue: str) -> None:
        """Start its tasks again."""
        self.call("ResumeQueue", queue=queue)

    def workers(self) -> Listed[WorkerInfo]:
        """The named tasks that you may call, and their processes."""
        return [WorkerInfo.from_wire(one) for one in self.call("Workers")["workers"]]

    def aside_payloads(
        self, name: str | None = None, *, before: int | None = None, limit: int | None = None
    ) -> Listed[AsidePayload]:
        """Payloads that were given up, newest first, 100 unless told (1000 at most). For administrators."""
        given = {"name": name, "before": before, "limit": limit}
        only = {key: one for key, one in given.items() if one is not None}
        found = self.call("AsidePayloads", **only)["payloads"]
        return [AsidePayload.from_wire(one) for one in found]

    def retry_payloads(self, ids: Sequence[int]) -> Listed[int]:
        """Try payloads that were given up again, 1000 at a time; those that there were. For administrators."""
        found: Listed[int] = self.call("RetryPayloads", ids=list(ids))["ids"]
        return found

    def drop_payloads(self, ids: Sequence[int]) -> Listed[int]:
        """Forget payloads that were given up, 1000 at a time; those that there were. For administrators."""
        found: Listed[int] = self.call("DropPayloads", ids=list(ids))["ids"]
        return found

    def reload(self) -> Listed[str]:
        """Have the configuration files taken over; the mistakes in them, a line each. For administrators."""
        found: Listed[str] = self.call("Reload")["mistakes"]
        return found

    def status(self) -> dict[str, Any]:
        """How the daemon is."""
        return self.call("Status")


def _timeout(timeout: Seconds | None) -> dict[str, int]:
    return {} if timeout is None else {"timeout_usec": usec(timeout)}
