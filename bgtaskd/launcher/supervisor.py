# SPDX-License-Identifier: LGPL-2.1-or-later
"""One supervisor a task attempt: forks the task, waits for it, takes its output and its reports.

Runs in a fork of the fork server, on the interpreter's built-in modules and os alone: whatever a supervisor
loads or touches is time in every start, and memory of its own once for every running task.

Order of events: fork the task, which waits at its gate; tell the launcher its pid, and wait for an attempt
to be given; write the attempt's record; wait for the launcher's "go" (the scope is up) and open the gate;
then the loop, until the task has ended, nothing of it is left and its output is drained; then the exit
record, then the word to the daemon, then gone.
If the launcher's end of the socket closes before "go", nothing has run: the record says "not-started".
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal.py would bring enum
import os
import resource
import select
import time

from bgtaskd.launcher import child, credentials, records, warm
from bgtaskd.launcher.accounting import Cgroup, Usage, cgroup_of
from bgtaskd.launcher.ending import exit_object
from bgtaskd.launcher.hindsight import unit_result
from bgtaskd.launcher.home import Home
from bgtaskd.launcher.notify import NotifySocket, parse
from bgtaskd.launcher.places import Places
from bgtaskd.launcher.plainjson import dumps
from bgtaskd.launcher.proc import session_members, start_time
from bgtaskd.launcher.stdin import Stdin
from bgtaskd.logs.capture import Capture
from bgtaskd.logs.journal import Journal
from bgtaskd.logs.outputfile import NoFile, OutputFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

READ_SIZE = 1 << 17
TELL_INTERVAL = 0.1
SHUTDOWN_GRACE = 1.0
PIPE_MAX = 1 << 20
RECORD_RETRIES = 3600


class Supervisor:
    """The attempt's whole life, one poll() loop."""

    task: child.Child | warm.WarmChild

    def __init__(self, places: Places) -> None:
        """What can be done before it is known which attempt it will be."""
        self.places = places
        self.pid = 0
        self.request: dict[str, Any] = {}
        self.started: int | None = None
        self.exec_error: str | None = None
        self.progress: dict[str, Any] = {}
        self.frozen_since: float | None = None
        self.stalled = self.timed_out = self.shutting_down = self.left_over_told = False
        self.stop_asked = False
        self.oom_kills = 0
        self.status: int | None = None
        self.rusage: Any = None
        self.usage = Usage()
        self.ended: int | None = None
        self.cgroup: Cgroup | None = None
        self.exit: str | None = None
        self.poll = select.poll()
        self.polled_home = -1
        self.left_pidfd = -1
        self.stall_deadline: float | None = None
        self.deadline: float | None = None
        self.unsent: dict[str, Any] = {}
        self.unsent_output = False
        self.next_tell = 0.0
        self.stdin = Stdin()
        self.credentials: str | None = None
        self.home = Home(places.home, self.hello)

    def adopt(self, task: child.Child | warm.WarmChild) -> None:
        """This process is the task's."""
        self.task = task
        self.pid = task.pid
        # Not reaped yet, ours is surely there; of one that a template has forked, that is known by its own.
        self.pidfd = task.pidfd if isinstance(task, warm.WarmChild) else os.pidfd_open(task.pid)
        me = os.getpid()
        self.processes = (
            f'"supervisor": {{"pid": {me}, "start_time": {dumps(start_time(me))}}}, '
            f'"task": {{"pid": {task.pid}, "start_time": {dumps(start_time(task.pid))}}}'
        )
        self.pipes = {task.stdout: 1, task.stderr: 2}
        for fd in self.pipes:
            os.set_blocking(fd, False)

    # --- the start ------------------------------------------------------------------------------

    def register(self, request: dict[str, Any], fds: list[int]) -> None:
        """Take an attempt: write its record, which says that nobody else may start it.

        ``request``: id, attempt, unit, uid; ``identity``, what records and hellos begin with (JSON, without
        the braces); ``journal``, the encoded fields of its entries; ``program``, see Child; ``stdin``, whether
        the task gets a pipe; ``listen``, where to listen for it; ``template``, the socket of a process to fork
        it from, or None; ``handover``, what its process may read from a descriptor (bytes or None);
        ``credentials``, its secrets by name;
        timeout_usec, stall_timeout_usec, runtime_max_usec, output_to, output_cap, journal_burst;
        ``asked``, when (CLOCK_MONOTONIC). ``fds``: the socket on which the task is called, if it has one.
        Raises AlreadyLaunched.
        """
        self.request = request
        self.called_at = fds
        self.id, self.attempt = request["id"], request["attempt"]
        if request["template"] is not None:
            self._fork_from(request["template"])
        records.create(self.places.exits, self.id, self.attempt, self.record())
        path = self.places.notify(self.id, self.attempt)
        self.notify = NotifySocket(path, request["uid"])
        self.output: OutputFile | NoFile = NoFile()
        if request["output_to"] != "journal":
            self.output = OutputFile(
                self.places.tasks, self.id, self.attempt, request["output_cap"]
            )
        journal = None if request["output_to"] == "file" else Journal
        self.capture = Capture(self.output, journal, request["journal"], request["journal_burst"])

    def _fork_from(self, template: str) -> None:
        """Have a process with the app loaded for the task; if there is none, one of our own will do."""
        try:
            self.adopt(warm.WarmChild(template, self.request["uid"]))
        except warm.NoTemplate:
            self.adopt(child.fork())

    def record(self) -> str:
        """The attempt as its record has it."""
        end = "" if self.exit is None else f', "exit": {self.exit}'
        started = dumps(self.started)
        return f'{{{self.request["identity"]}, {self.processes}, "started": {started}{end}}}'

    def not_started(self, reason: str) -> None:
        """Nothing has run, and nothing will: kill the waiting child, and say so in the record."""
        self.task.forget()
        self.exit = self._exit("not-started", reason)
        self.notify.close()  # before the record says so: then the path is another's
        now = records.read(self.places.exits, self.id, self.attempt) or {}
        if now.get("supervisor", {}).get("pid") == os.getpid():  # and no later one's
            records.replace(self.places.exits, self.id, self.attempt, self.record())

    def open_gate(self) -> None:
        """The scope is up: let the task exec, and learn whether it could."""
        if self.places.has_scopes:
            path = cgroup_of(self.pid)
            self.cgroup = None if path is None else Cgroup(path)
        self.exec_error = self._hand_over() or None
        # Secrets, and a page or two.
        self.request["program"] = self.request["handover"] = self.request["credentials"] = None
        self.started = time.time_ns() // 1000
        if self.request["timeout_usec"] is not None:
            self.deadline = time.monotonic() + self.request["timeout_usec"] / 1e6
        self._feed()
        self.home.connect()

    def _hand_over(self) -> str:
        """Give the task its program and all that goes with it; what went wrong, or nothing."""
        request, fds = self.request, []
        if request["credentials"] or request["handover"] is not None:
            _dump_no_core()
        if request["credentials"]:
            self.credentials = self.places.credentials(self.id, self.attempt)
            try:
                credentials.make(self.credentials, request["uid"], request["credentials"])
            except OSError as error:
                self.task.close_gate()
                return f"its credentials cannot be written: {error.strerror}"
        if request["stdin"]:
            fds.append(self.stdin.open())
        if isinstance(self.task, warm.WarmChild):
            stdin = fds[0] if fds else None
            wrong = self.task.open_gate(request["program"], request["handover"], stdin)
        else:
            fds += self.called_at
            if request["listen"] is not None:
                fds.append(warm.listen(request["listen"]))
            if request["handover"] is not None:
                fds.append(_readable(request["handover"]))
            wrong = self.task.open_gate(request["program"], fds)
        for fd in fds:
            os.close(fd)
        return wrong

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
        waiting = True
        while waiting or not self._is_empty():
            self._poll_home()
            for fd, _ in poll.poll(self._timeout()):
                if fd == self.pidfd:
                    waiting = False
                    poll.unregister(fd)
                    self._reap()
                elif fd in self.pipes:
                    if not self._take(fd):
                        poll.unregister(fd)
                elif fd == self.notify.fileno():
                    self._take_notify()
                elif fd == self.polled_home:
                    self._hear_home()
                elif fd == self.stdin.fd:
                    self.stdin.flush()
                    if not self.stdin.wants_to_write:
                        poll.unregister(fd)
                elif fd == self.left_pidfd:
                    poll.unregister(fd)
                    os.close(fd)
                    self.left_pidfd = -1
                elif watched.get(fd) == "cgroup.events":
                    self._look_at_cgroup()
                elif watched.get(fd) == "memory.events":
                    self._count_oom_kills()
            self._check_clocks()
            self._poll_home()
        self._finish()

    def _poll_home(self) -> None:
        """Poll the present connection: it may have closed, or be another one under the same number."""
        home = self.home.fileno()
        if self.polled_home not in (-1, home):
            try:
                self.poll.unregister(self.polled_home)
            except KeyError:
                pass
        self.polled_home = home
        if home >= 0:
            writes = select.POLLOUT if self.home.wants_to_write else 0
            self.poll.register(home, select.POLLIN | writes)

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
            self.home.send('{"stalled": true}')
        if self.deadline is not None and now >= self.deadline and self.frozen_since is None:
            self.deadline, self.timed_out = None, True
            self.home.send('{"timed_out": true}')
        if (self.unsent or self.unsent_output) and now >= self.next_tell:
            self._tell_progress(now)

    def _tell_progress(self, now: float) -> None:
        if self.unsent:
            self.home.send(f'{{"report": {dumps(self.unsent)}}}')
            self.unsent = {}
        if self.unsent_output:
            self.home.send(f'{{"output_bytes": {self.output.total}}}')
            self.unsent_output = False
        self.next_tell = now + TELL_INTERVAL

    def _feed(self) -> None:
        stall_timeout = self.request["stall_timeout_usec"]
        if stall_timeout is not None and self.status is None:
            self.stall_deadline = time.monotonic() + stall_timeout / 1e6
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
        if uid not in (self.request["uid"], 0):
            return False
        where = cgroup_of(pid)
        if self.cgroup is None or where is None:
            return bool(uid == self.request["uid"])
        return where == self.cgroup.path or where.startswith(self.cgroup.path + "/")

    def _hear_home(self) -> None:
        self.home.flush()
        for message in self.home.receive():
            if message.get("fed"):
                self._feed()
            if message.get("stopping"):
                self.stop_asked = True
            if self.cgroup is None and isinstance(message.get("frozen"), bool):
                self._set_frozen(message["frozen"])  # of sessions nobody else tells
            if isinstance(message.get("progress"), dict):
                self.progress.update(message["progress"])
            if isinstance(message.get("stdin"), str):
                self._send_stdin(message["stdin"].encode("utf-8", "replace"), message.get("eof"))

    def _send_stdin(self, data: bytes, eof: object) -> None:
        """Text for the task's standard input: taken whole, or not at all."""
        taken = self.stdin.send(data, eof is True)
        if self.stdin.wants_to_write:
            self.poll.register(self.stdin.fd, select.POLLOUT)
        self.home.send(f'{{"stdin_taken": {dumps(taken)}}}')

    def _look_at_cgroup(self) -> None:
        assert self.cgroup is not None
        self._set_frozen(self.cgroup.values("cgroup.events").get("frozen") == 1)

    def _set_frozen(self, frozen: bool) -> None:
        """The clocks stand still while the task does."""
        now = time.monotonic()
        if frozen and self.frozen_since is None:
            self.frozen_since = now
            self.home.send('{"frozen": true}')
        elif not frozen and self.frozen_since is not None:
            away = now - self.frozen_since
            self.frozen_since = None
            if self.deadline is not None:
                self.deadline += away
            if self.stall_deadline is not None:
                self.stall_deadline += away
            self.home.send('{"frozen": false}')

    def _count_oom_kills(self) -> None:
        assert self.cgroup is not None
        kills = self.cgroup.values("memory.events").get("oom_kill", 0)
        self.oom_kills = max(self.oom_kills, kills)

    # --- the end --------------------------------------------------------------------------------

    def _reap(self) -> None:
        """The task's own process has ended."""
        self.status, self.rusage = self.task.wait()
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
            self.home.send('{"left_over": true}')
        return False

    def _has_left_over(self) -> bool:
        if self.cgroup is not None:
            return self.cgroup.values("cgroup.events").get("populated", 0) != 0
        if self.places.has_scopes:
            return False
        while self.left_pidfd < 0:
            left = session_members(self.pid)
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
        if self.credentials is not None:
            credentials.remove(self.credentials)
        if self.request["listen"] is not None:
            warm.unlisten(self.request["listen"])
        self.capture.finish()
        unseen = warm.UNSEEN if self.status is None else None
        self.exit = self._exit(self._result(), self.exec_error or unseen or self.output.error)
        self._write_record()
        self.notify.close()
        self._tell_progress(time.monotonic())
        self.home.send(f'{{"exited": {self.exit}}}')

    def _write_record(self) -> None:
        """Replace the record. On a full disk: tell the daemon at once, and wait for room, or for its word."""
        for tries in range(RECORD_RETRIES):
            try:
                records.replace(self.places.exits, self.id, self.attempt, self.record())
                return
            except OSError as error:
                if tries == 0:
                    self.capture.note(f"Cannot write the exit record yet: {error.strerror}", 3)
                    self.home.send(f'{{"exited": {self.exit}}}')
            time.sleep(1)  # nothing tells of free space
            if records.read(self.places.exits, self.id, self.attempt) is None:
                return  # the daemon has committed the end, and forgotten the record

    def _result(self) -> str:
        if self.exec_error is not None:
            return "resources"
        if self.status is None:
            return "oom-kill" if self.oom_kills else "lost"
        if os.WIFEXITED(self.status) and os.WEXITSTATUS(self.status) == 0:
            return "success"
        if self.shutting_down and not self.stop_asked:
            return "interrupted"
        if os.WIFEXITED(self.status):
            return "exit-code"
        number = os.WTERMSIG(self.status)
        if self.oom_kills or (number == _signal.SIGKILL and self._was_oom_kill()):
            return "oom-kill"
        if number in (_signal.SIGTERM, _signal.SIGKILL) and not self.stop_asked:
            runtime_max = self.request["runtime_max_usec"]
            if runtime_max is not None and self._ran_usec() >= runtime_max:
                return "timeout"
            if number == _signal.SIGTERM and self._is_shutting_down():
                return "interrupted"
        return "core-dump" if os.WCOREDUMP(self.status) else "signal"

    def _was_oom_kill(self) -> bool:
        """Whether PID 1 says so, where it has removed the cgroup before we had a look."""
        if self.cgroup is None or self.stop_asked or self.cgroup.values("memory.events"):
            return False
        return unit_result(self.request["unit"]) == "oom-kill"

    def _ran_usec(self) -> int:
        """At least as long as the scope: PID 1's clock for RuntimeMaxSec= began after "asked"."""
        return int((time.monotonic() - self.request["asked"]) * 1e6)

    def _is_shutting_down(self) -> bool:
        """PID 1 stops all scopes at once when the machine goes down: ours a moment before or after."""
        deadline = time.monotonic() + SHUTDOWN_GRACE
        while not self.shutting_down and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.02))
        return self.shutting_down

    def on_shutdown(self, *_: object) -> None:
        """SIGTERM: only PID 1 sends it to this scope, and only at shutdown."""
        self.shutting_down = True

    def _exit(self, result: str, error: str | None) -> str:
        status = None if self.exec_error is not None else self.status
        ran = {
            **exit_object(result, status, self.usage, self.rusage),
            "error": error,
            "started": self.started,
            "ended": self.ended or time.time_ns() // 1000,
            "progress": self.progress,
            "output_bytes": self.output.total,
            "output_dropped": self.output.dropped,
        }
        return dumps(ran)

    def hello(self) -> str:
        """Everything the daemon must know of this attempt, for one that has just come up."""
        now = {
            "pid": self.pid,
            "supervisor": os.getpid(),
            "started": self.started,
            "frozen": self.frozen_since is not None,
            "progress": self.progress,
            "output_bytes": self.output.total,
            "stalled": self.stalled,
            "timed_out": self.timed_out,
            "left_over": self.left_over_told,
        }
        return f'{{"hello": {{{self.request["identity"]}, {dumps(now)[1:-1]}}}}}'


def _dump_no_core() -> None:
    """Of what we are about to hold. The task's process was forked before, and is not concerned."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _readable(data: bytes) -> int:
    """A descriptor of a file in memory that has ``data``, to be read from its beginning."""
    fd = os.memfd_create("bgtaskd-handover", os.MFD_CLOEXEC)
    while data:
        data = data[os.write(fd, data) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
