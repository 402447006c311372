# SPDX-License-Identifier: LGPL-2.1-or-later
"""One supervisor a task attempt: forks the task, waits for it, takes its output and its reports.

Runs in a fork of the fork server: `python3 -I -S`, standard library only, and as little of it as will do,
since whatever a supervisor touches is memory of its own, once for every running task.

Order of events: fork the task, which waits at its gate; write the record; tell the launcher the pid;
wait for its "go" (the scope is up) and open the gate; then the loop, until the task has ended, nothing of
it is left and its output is drained; then the exit record, then the word to the daemon, then gone.
If the launcher's end of the socket closes before "go", nothing has run: the record says "not-started".
"""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import dataclass
from typing import Any, Final

from bgtaskd.launcher import child, records
from bgtaskd.launcher.accounting import Cgroup, Usage, cgroup_of
from bgtaskd.launcher.home import Home
from bgtaskd.launcher.messages import Launch
from bgtaskd.launcher.notify import NotifySocket, parse
from bgtaskd.launcher.processes import members
from bgtaskd.logs.capture import Capture
from bgtaskd.logs.journal import Journal
from bgtaskd.logs.outputfile import OutputFile
from bgtaskd.model import scope_name

READ_SIZE: Final = 1 << 17
TELL_INTERVAL: Final = 0.1
SHUTDOWN_GRACE: Final = 1.0
PIPE_MAX: Final = 1 << 20
RECORD_RETRIES: Final = 3600


@dataclass(frozen=True, slots=True)
class Places:
    """Where a supervisor writes and calls. Directories are descriptors: opened once, by the launcher."""

    exits: int
    tasks: int
    notify: str
    home: str
    has_scopes: bool


class Supervisor:
    """The attempt's whole life, one poll() loop."""

    def __init__(
        self,
        launch: Launch,
        program: dict[str, Any],
        runtime_max: int | None,
        places: Places,
        task: child.Child,
    ) -> None:
        self.launch = launch
        self.program = program
        self.runtime_max = runtime_max
        self.places = places
        self.unit = scope_name(launch.id, launch.attempt)
        self.card = {
            key: getattr(launch, key)
            for key in ("name", "kind", "queue", "uid", "user", "owner_uid")
        }
        self.boot_id = records.boot_id()
        self.task = task
        self.pid = task.pid
        self.times: tuple[int | None, int | None] = (None, None)
        self.pidfd = os.pidfd_open(task.pid)
        self.started: int | None = None
        self.forked_monotonic = time.monotonic()
        self.exec_error: str | None = None
        self.progress: dict[str, Any] = {}
        self.frozen_since: float | None = None
        self.stalled = self.timed_out = self.shutting_down = self.left_over_told = False
        self.stop_asked = False
        self.oom_kills = 0
        self.status = 0
        self.rusage: Any = None
        self.usage = Usage()
        self.ended: int | None = None
        self.cgroup: Cgroup | None = None
        self.pipes = {task.stdout: 1, task.stderr: 2}
        for fd in self.pipes:
            os.set_blocking(fd, False)
        self.exit: dict[str, Any] | None = None
        self.poll = select.poll()
        self.left_pidfd = -1
        self.stall_deadline: float | None = None
        self.deadline: float | None = None
        self.unsent: dict[str, Any] = {}
        self.unsent_output = False
        self.next_tell = 0.0
        self.home = Home(places.home, self.hello)
        self.output = OutputFile(places.tasks, launch.id, launch.attempt, launch.output_cap)
        self.capture = Capture(self.output, Journal(), self._journal_fields(), launch.journal_burst)

    def _journal_fields(self) -> list[tuple[bytes, bytes]]:
        launch = self.launch
        name = launch.name.encode("utf-8", "surrogateescape")
        fields = [
            (b"BGTASK_ID", b"%d" % launch.id),
            (b"BGTASK_NAME", name),
            (b"BGTASK_ATTEMPT", b"%d" % launch.attempt),
            (b"BGTASK_QUEUE", launch.queue.encode()),
            (b"SYSLOG_IDENTIFIER", name),
        ]
        if self.places.has_scopes:
            fields.append((b"OBJECT_SYSTEMD_UNIT", self.unit.encode()))
        return fields

    # --- the start ------------------------------------------------------------------------------

    def register(self) -> None:
        """Write the attempt's record, which says that nobody else may start it. Raises AlreadyLaunched."""
        self.times = (records.start_time(os.getpid()), records.start_time(self.pid))
        records.create(self.places.exits, self.record())
        path = f"{self.places.notify}/{self.launch.id}.{self.launch.attempt}.sock"
        self.notify = NotifySocket(path, self.launch.uid)

    def record(self) -> dict[str, Any]:
        """The attempt as its record has it."""
        record: dict[str, Any] = {
            "id": self.launch.id,
            "attempt": self.launch.attempt,
            "unit": self.unit,
            "boot_id": self.boot_id,
            "supervisor": {"pid": os.getpid(), "start_time": self.times[0]},
            "task": {"pid": self.pid, "start_time": self.times[1]},
            "card": self.card,
            "started": self.started,
        }
        if self.exit is not None:
            record["exit"] = self.exit
        return record

    def not_started(self, reason: str) -> None:
        """Nothing has run, and nothing will: kill the waiting child, and say so in the record."""
        if self.pid > 0:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.exit = self._exit_object("not-started", error=reason)
        records.replace(self.places.exits, self.record())
        self.notify.close()

    def open_gate(self) -> None:
        """The scope is up: let the task exec, and learn whether it could."""
        if self.places.has_scopes:
            path = cgroup_of(self.pid)
            self.cgroup = None if path is None else Cgroup(path)
        self.home.connect()
        self.exec_error = child.open_gate(self.task, self.program) or None
        self.started = time.time_ns() // 1000
        now = time.monotonic()
        if self.launch.timeout_usec is not None:
            self.deadline = now + self.launch.timeout_usec / 1e6
        self._feed()
        self.home.send({"started": self.started})

    # --- the loop -------------------------------------------------------------------------------

    def run(self) -> None:
        """Until the attempt is over and its exit record is written."""
        poll = self.poll
        poll.register(self.pidfd, select.POLLIN)
        poll.register(self.notify.fileno(), select.POLLIN)
        for fd in self.pipes:
            poll.register(fd, select.POLLIN)
        watched = {}
        if self.cgroup is not None:
            for name in ("cgroup.events", "memory.events"):
                events = self.cgroup.fd(name)
                if events is not None:
                    poll.register(events, select.POLLPRI)
                    watched[events] = name
        home = -1
        waiting = True
        while waiting or not self._is_empty():
            if home != self.home.fileno():
                home = self.home.fileno()
            if home >= 0:
                poll.register(
                    home, select.POLLIN | (select.POLLOUT if self.home.wants_to_write else 0)
                )
            for fd, _ in poll.poll(self._timeout()):
                if fd == self.pidfd:
                    waiting = False
                    self._reap()
                    poll.unregister(fd)
                elif fd in self.pipes:
                    if not self._take(fd):
                        poll.unregister(fd)
                elif fd == self.notify.fileno():
                    self._take_notify()
                elif fd == home:
                    self._hear_home()
                elif fd == self.left_pidfd:
                    poll.unregister(fd)
                    os.close(fd)
                    self.left_pidfd = -1
                elif watched.get(fd) == "cgroup.events":
                    self._look_at_cgroup()
                elif watched.get(fd) == "memory.events":
                    self._count_oom_kills()
            if home >= 0 and home != self.home.fileno():
                try:
                    poll.unregister(home)
                except (KeyError, OSError):
                    pass
            self._check_clocks()
        self._finish()

    def _timeout(self) -> int | None:
        clocks = [self.stall_deadline, self.deadline, self.home.deadline]
        if self.unsent or self.unsent_output:
            clocks.append(self.next_tell)
        due = [clock for clock in clocks if clock is not None]
        return max(0, int((min(due) - time.monotonic()) * 1000) + 1) if due else None

    def _check_clocks(self) -> None:
        now = time.monotonic()
        if self.home.deadline is not None and now >= self.home.deadline:
            self.home.connect()
        if (
            self.stall_deadline is not None
            and now >= self.stall_deadline
            and self.frozen_since is None
        ):
            self.stall_deadline, self.stalled = None, True
            self.home.send({"stalled": True})
        if self.deadline is not None and now >= self.deadline and self.frozen_since is None:
            self.deadline, self.timed_out = None, True
            self.home.send({"timed_out": True})
        if (self.unsent or self.unsent_output) and now >= self.next_tell:
            self._tell_progress(now)

    def _tell_progress(self, now: float) -> None:
        if self.unsent:
            self.home.send({"report": self.unsent})
            self.unsent = {}
        if self.unsent_output:
            self.home.send({"output_bytes": self.output.total})
            self.unsent_output = False
        self.next_tell = now + TELL_INTERVAL

    def _feed(self) -> None:
        if self.launch.stall_timeout_usec is not None and self.exit is None:
            self.stall_deadline = time.monotonic() + self.launch.stall_timeout_usec / 1e6
            self.stalled = False

    def _take(self, fd: int) -> bool:
        """Read one pipe once; whether there may be more."""
        try:
            data = os.read(fd, READ_SIZE)
        except BlockingIOError:
            return True
        if not data:
            os.close(fd)
            del self.pipes[fd]
            return False
        self.capture.take(self.pipes[fd], data)
        self.unsent_output = True
        return True

    def _take_notify(self) -> None:
        for _ in range(64):  # a flood must not keep the loop from everything else
            received = self.notify.receive()
            if received is None:
                return
            data, pid, uid = received
            if not self._is_ours(pid, uid):
                continue
            message = parse(data)
            if message.extend_usec is not None and self.deadline is not None:
                self.deadline = max(self.deadline, time.monotonic() + message.extend_usec / 1e6)
            if message.report or message.alive or message.extend_usec is not None:
                self._feed()
            self.progress.update(message.report)
            self.unsent.update(message.report)

    def _is_ours(self, pid: int, uid: int) -> bool:
        if uid not in (self.launch.uid, 0):
            return False
        where = cgroup_of(pid)
        if self.cgroup is None or where is None:
            return uid == self.launch.uid
        return where == self.cgroup.path or where.startswith(self.cgroup.path + "/")

    def _hear_home(self) -> None:
        self.home.flush()
        for message in self.home.receive():
            if message.get("fed"):
                self._feed()
            if message.get("stopping"):
                self.stop_asked = True
            if isinstance(message.get("progress"), dict):
                self.progress.update(message["progress"])

    def _look_at_cgroup(self) -> None:
        assert self.cgroup is not None
        frozen = self.cgroup.values("cgroup.events").get("frozen") == 1
        now = time.monotonic()
        if frozen and self.frozen_since is None:
            self.frozen_since = now
            self.home.send({"frozen": True})
        elif not frozen and self.frozen_since is not None:
            away = now - self.frozen_since
            self.frozen_since = None
            if self.deadline is not None:
                self.deadline += away
            if self.stall_deadline is not None:
                self.stall_deadline += away
            self.home.send({"frozen": False})

    def _count_oom_kills(self) -> None:
        assert self.cgroup is not None
        kills = self.cgroup.values("memory.events").get("oom_kill", 0)
        self.oom_kills = max(self.oom_kills, kills)

    # --- the end --------------------------------------------------------------------------------

    def _reap(self) -> None:
        """The task's own process has ended."""
        _, self.status, self.rusage = os.wait4(self.pid, 0)
        self.ended = time.time_ns() // 1000
        os.close(self.pidfd)
        self.pidfd = -1  # its number is free for another
        self.stall_deadline = self.deadline = None
        if self.cgroup is not None:
            self._count_oom_kills()
            self.usage = self.cgroup.usage()

    def _is_empty(self) -> bool:
        """Whether none of the task's processes is left. If some are, the daemon is asked to stop them."""
        if not self._has_left_over():
            return True
        if not self.left_over_told:
            self.left_over_told = True
            self.capture.note("The task's process has ended; stopping what it left behind")
            self.home.send({"left_over": 1})
        return False

    def _has_left_over(self) -> bool:
        if self.cgroup is not None:
            return self.cgroup.values("cgroup.events").get("populated", 0) != 0
        if self.places.has_scopes:
            return False
        while self.left_pidfd < 0:
            left = members(self.pid)
            if not left:
                return False
            try:
                self.left_pidfd = os.pidfd_open(left[0])
            except ProcessLookupError:
                continue
            self.poll.register(self.left_pidfd, select.POLLIN)
        return True

    def _finish(self) -> None:
        for fd in list(self.pipes):
            # No more than a pipe holds: what has escaped from the task may go on writing for ever.
            end = self.output.total + PIPE_MAX
            while fd in self.pipes and self.output.total < end:
                before = self.output.total
                if not self._take(fd) or self.output.total == before:
                    break
        self.capture.finish()
        result = self._result()
        self.exit = self._exit_object(result, error=self.exec_error or self.output.error)
        self._write_record()
        self.notify.close()
        self._tell_progress(time.monotonic())
        self.home.send({"exited": self.exit})

    def _write_record(self) -> None:
        """Replace the record. On a full disk: tell the daemon at once, and wait for room, or for its word."""
        for tries in range(RECORD_RETRIES):
            try:
                records.replace(self.places.exits, self.record())
                return
            except OSError as error:
                if tries == 0:
                    self.capture.note(f"Cannot write the exit record yet: {error.strerror}", 3)
                    self.home.send({"exited": self.exit})
            time.sleep(1)  # nothing tells of free space
            if records.read(self.places.exits, self.launch.id, self.launch.attempt) is None:
                return  # the daemon has committed the end, and forgotten the record

    def _result(self) -> str:
        if self.exec_error is not None:
            return "resources"
        if os.WIFEXITED(self.status) and os.WEXITSTATUS(self.status) == 0:
            return "success"
        if self.shutting_down and not self.stop_asked:
            return "interrupted"
        if os.WIFEXITED(self.status):
            return "exit-code"
        if self.oom_kills:
            return "oom-kill"
        number = os.WTERMSIG(self.status)
        if number in (signal.SIGTERM, signal.SIGKILL) and not self.stop_asked:
            if self.runtime_max is not None and self._ran_usec() >= self.runtime_max:
                return "timeout"
            if number == signal.SIGTERM and self._is_shutting_down():
                return "interrupted"
        return "core-dump" if os.WCOREDUMP(self.status) else "signal"

    def _ran_usec(self) -> int:
        """At least as long as the scope: PID 1's clock for RuntimeMaxSec= began after the fork."""
        return int((time.monotonic() - self.forked_monotonic) * 1e6)

    def _is_shutting_down(self) -> bool:
        """PID 1 stops all scopes at once when the machine goes down: ours a moment before or after."""
        deadline = time.monotonic() + SHUTDOWN_GRACE
        while not self.shutting_down and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.02))
        return self.shutting_down

    def on_shutdown(self, *_: object) -> None:
        """SIGTERM: only PID 1 sends it to this scope, and only at shutdown."""
        self.shutting_down = True

    def _exit_object(self, result: str, error: str | None = None) -> dict[str, Any]:
        exited = self.rusage is not None and self.exec_error is None
        code = os.WEXITSTATUS(self.status) if exited and os.WIFEXITED(self.status) else None
        number = os.WTERMSIG(self.status) if exited and os.WIFSIGNALED(self.status) else None
        usage = self.usage
        use = self.rusage
        if use is not None:
            usage = Usage(
                usage.cpu_usec
                if usage.cpu_usec is not None
                else int((use.ru_utime + use.ru_stime) * 1e6),
                usage.memory_peak if usage.memory_peak is not None else use.ru_maxrss * 1024,
                usage.io_read_bytes if usage.io_read_bytes is not None else use.ru_inblock * 512,
                usage.io_write_bytes if usage.io_write_bytes is not None else use.ru_oublock * 512,
            )
        return {
            "result": result,
            "exit_status": code,
            "signal": None if number is None else signal_name(number),
            "error": error,
            "started": self.started,
            "ended": self.ended or time.time_ns() // 1000,
            "cpu_usec": usage.cpu_usec,
            "memory_peak": usage.memory_peak,
            "io_read_bytes": usage.io_read_bytes,
            "io_write_bytes": usage.io_write_bytes,
            "progress": self.progress,
            "output_bytes": self.output.total,
            "output_dropped": self.output.dropped,
        }

    def hello(self) -> dict[str, Any]:
        """Everything the daemon must know of this attempt, for one that has just come up."""
        return {
            "id": self.launch.id,
            "attempt": self.launch.attempt,
            "unit": self.unit,
            "boot_id": self.boot_id,
            "pid": self.pid,
            "supervisor": os.getpid(),
            "card": self.card,
            "started": self.started,
            "frozen": self.frozen_since is not None,
            "progress": self.progress,
            "output_bytes": self.output.total,
            "stalled": self.stalled,
            "timed_out": self.timed_out,
            "left_over": self.left_over_told,
            "exited": False,
        }


def signal_name(number: int) -> str:
    """As kill -l has it; real-time signals, which Python has no names for, as SIGRTMIN+n."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"
