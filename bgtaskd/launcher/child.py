# SPDX-License-Identifier: LGPL-2.1-or-later
"""The task's side of the fork: wait at the gate, become the user, exec. Nothing here returns.

Like all that runs in a fork of the fork server, this stands on the interpreter's built-in modules and os.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal.py would bring enum
import marshal
import os
import resource
import sys
from _socket import CMSG_LEN, MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOL_SOCKET, socket, socketpair

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

# What the fork server and Python itself have changed; exec keeps an ignored signal ignored.
CHANGED_SIGNALS = ("SIGHUP", "SIGINT", "SIGTERM", "SIGCHLD", "SIGPIPE", "SIGXFSZ")
FDS_MAX = 8
# <sched.h>, <sys/mount.h>
CLONE_NEWNS = 0x00020000
MS_NOSUID, MS_NODEV = 0x2, 0x4
MS_REC, MS_SLAVE = 0x4000, 0x80000


class Child:
    """The supervisor's ends: send the program through ``gate``; read what went wrong from ``failed``."""

    __slots__ = ("failed", "gate", "pid", "stderr", "stdout")

    def __init__(self, pid: int, gate: socket, failed: int, stdout: int, stderr: int) -> None:
        self.pid = pid
        self.gate = gate
        self.failed = failed
        self.stdout = stdout
        self.stderr = stderr

    def open_gate(self, program: bytes, fds: list[int]) -> str:
        """Let the task exec the program; what went wrong, or nothing.

        ``program`` is a marshalled dict: argv, env, cwd, uid, gid, groups, limits ([resource, soft, hard]
        each), umask, nice, oom_score_adjust, private_tmp, fds: the numbers that the task has ``fds`` under.
        """
        rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
        sent = self.gate.sendmsg([program], [(SOL_SOCKET, SCM_RIGHTS, rights)] if fds else [])
        self.gate.sendall(program[sent:])
        self.gate.close()
        text = os.read(self.failed, 4096)
        os.close(self.failed)
        return text.decode("utf-8", "replace")

    def close_gate(self) -> None:
        """Let it go without having run."""
        self.gate.close()

    def wait(self) -> tuple[int | None, Any]:
        """Its status and rusage, once it has ended."""
        _, status, rusage = os.wait4(self.pid, 0)
        return status, rusage

    def forget(self) -> None:
        """It will not run: end it."""
        for fd in (self.failed, self.stdout, self.stderr):
            os.close(fd)
        self.gate.close()
        os.kill(self.pid, _signal.SIGKILL)
        os.waitpid(self.pid, 0)


def fork() -> Child:
    """Fork the task's process, which waits at its gate.

    The first thing a supervisor does: whatever it touched before, it would pay for twice.
    """
    gate, gate_out = socketpair()
    failed, failed_in = os.pipe()
    stdout, stdout_in = os.pipe()
    stderr, stderr_in = os.pipe()
    pid = os.fork()
    if pid == 0:
        gate.close()
        _become(gate_out, failed_in, stdout_in, stderr_in)
    gate_out.close()
    for fd in (failed_in, stdout_in, stderr_in):
        os.close(fd)
    return Child(pid, gate, failed, stdout, stderr)


def _become(gate: socket, failed: int, stdout: int, stderr: int) -> NoReturn:
    """Wait for the program, then exec it. What goes wrong is written to ``failed`` as text."""
    try:
        os.setsid()
        data, ancillary, _, _ = gate.recvmsg(65536, CMSG_LEN(4 * FDS_MAX), MSG_CMSG_CLOEXEC)
        while piece := gate.recv(65536):
            data += piece
        if not data:
            os._exit(0)
        fds = [
            int.from_bytes(rights[at : at + 4], sys.byteorder)
            for _, _, rights in ancillary
            for at in range(0, len(rights), 4)
        ]
        # marshal: both ends are forks of one process, and it costs a tenth of what json does here.
        _exec(marshal.loads(data), stdout, stderr, fds)  # noqa: S302 - from our supervisor
    except OSError as error:
        what = f": {error.filename!r}" if error.filename else ""
        _tell(failed, f"{error.strerror}{what}")
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told
        _tell(failed, f"{type(error).__name__}: {error}")
    os._exit(203)


def _exec(program: dict[str, Any], stdout: int, stderr: int, fds: list[int]) -> None:
    _arrange(stdout, stderr, fds, program["fds"])
    for number, soft, hard in program["limits"]:
        resource.setrlimit(number, (soft, hard))
    if program["nice"] is not None:
        os.setpriority(os.PRIO_PROCESS, 0, program["nice"])
    _write_oom_score(program["oom_score_adjust"] or 0)
    os.umask(program["umask"])
    if program["private_tmp"]:
        _make_private_tmp()
    if os.geteuid() == 0:
        os.setgroups(program["groups"])
        os.setresgid(program["gid"], program["gid"], program["gid"])
        os.setresuid(program["uid"], program["uid"], program["uid"])
    env = program["env"]
    if "LISTEN_FDS" in env:
        env["LISTEN_PID"] = str(os.getpid())
    _enter(program["cwd"], env["HOME"])
    for name in CHANGED_SIGNALS:
        _signal.signal(getattr(_signal, name), _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    _search_and_exec(program["argv"], env)


def _arrange(stdout: int, stderr: int, fds: list[int], numbers: list[int]) -> None:
    """Put every descriptor where the task expects it; all others close on exec."""
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    sources = {0: null, 1: stdout, 2: stderr, **dict(zip(numbers, fds, strict=True))}
    top = max(sources) + 1
    # First out of the way of the numbers: a target may be another's source.
    moved = [(_above(source, top), number) for number, source in sources.items()]
    for source, number in moved:
        os.dup2(source, number)


def _above(fd: int, lowest: int) -> int:
    while fd < lowest:
        fd = os.dup(fd)  # the numbers below stay taken until exec, so each one is higher
    return fd


def _enter(cwd: str | None, home: str) -> None:
    if cwd is not None:
        try:
            os.chdir(cwd)
        except OSError as error:
            raise OSError(
                error.errno, f"cannot enter the directory: {error.strerror}", cwd
            ) from None
        return
    try:
        os.chdir(home)
    except OSError:
        os.chdir("/")


def _make_private_tmp() -> None:
    """A mount namespace of its own, with empty /tmp and /var/tmp that go with it. Only root can."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: Any) -> None:
        if getattr(libc, name)(*arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot make a private /tmp: {name}: {os.strerror(number)}")

    call("unshare", CLONE_NEWNS)
    call("mount", None, b"/", None, ctypes.c_ulong(MS_REC | MS_SLAVE), None)
    for path in (b"/tmp", b"/var/tmp"):
        flags = ctypes.c_ulong(MS_NOSUID | MS_NODEV)
        call("mount", b"tmpfs", path, b"tmpfs", flags, b"mode=1777,size=10%")


def _search_and_exec(argv: list[str], env: dict[str, str]) -> None:
    """As execvpe(3). os.execvpe() would load warnings on the way, once a task."""
    name = argv[0]
    found = [name]
    if "/" not in name:
        found = [f"{directory or '.'}/{name}" for directory in env["PATH"].split(":")]
    denied = missing = None
    for path in found:
        try:
            os.execve(path, argv, env)  # noqa: S606 - no shell is the point
        except (FileNotFoundError, NotADirectoryError) as error:
            missing = error
        except OSError as error:
            denied = denied or error
    why = denied or missing
    assert why is not None  # some path was tried
    raise OSError(why.errno, f"cannot execute: {why.strerror}", name)


def _write_oom_score(value: int) -> None:
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(fd, b"%d" % value)
    except OSError:
        pass  # without root it can only be raised
    finally:
        os.close(fd)


def _tell(failed: int, text: str) -> None:
    os.write(failed, text.encode("utf-8", "replace")[:4096])
