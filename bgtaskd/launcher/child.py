# SPDX-License-Identifier: LGPL-2.1-or-later
"""The task's side of the fork: wait at the gate, become the user, exec. Nothing here returns."""

from __future__ import annotations

import marshal
import os
import resource
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

# What the fork server and Python itself have changed; exec keeps an ignored signal ignored.
CHANGED_SIGNALS = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGCHLD,
    signal.SIGPIPE,
    signal.SIGXFSZ,
)
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"


@dataclass(slots=True)
class Child:
    """The supervisor's ends: write the program to ``gate``; read what went wrong from ``failed``."""

    pid: int
    gate: int
    failed: int
    stdout: int
    stderr: int


@dataclass(frozen=True, slots=True)
class Program:
    """What to exec, and as whom. ``limits``: [resource number, soft, hard] each.

    ``user_env``: HOME, USER, LOGNAME, SHELL, as a login would set them.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str | None
    uid: int
    gid: int
    groups: Sequence[int]
    user_env: Mapping[str, str]
    limits: Sequence[tuple[int, int, int]]
    umask: int = 0o022
    nice: int | None = None
    oom_score_adjust: int | None = None


def fork() -> Child:
    """Fork the task's process, which waits at its gate.

    The first thing a supervisor does: whatever it touched before, it would pay for twice.
    """
    gate_out, gate = os.pipe()
    failed, failed_in = os.pipe()
    stdout, stdout_in = os.pipe()
    stderr, stderr_in = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(gate)
        _become(gate_out, failed_in, stdout_in, stderr_in)
    for fd in (gate_out, failed_in, stdout_in, stderr_in):
        os.close(fd)
    return Child(pid, gate, failed, stdout, stderr)


def open_gate(child: Child, program: dict[str, Any]) -> str:
    """Let the task exec the program; what went wrong, or nothing."""
    data = marshal.dumps(program)
    while data:
        data = data[os.write(child.gate, data) :]
    os.close(child.gate)
    text = os.read(child.failed, 4096)
    os.close(child.failed)
    return text.decode("utf-8", "replace")


def _become(gate: int, failed: int, stdout: int, stderr: int) -> NoReturn:
    """Wait for the program, then exec it. What goes wrong is written to ``failed`` as text."""
    try:
        os.setsid()
        data = b""
        while piece := os.read(gate, 65536):
            data += piece
        if not data:
            os._exit(0)
        # marshal: both ends are forks of one process, and it costs a tenth of what json does here.
        _exec(Program(**marshal.loads(data)), stdout, stderr, failed)  # noqa: S302 - from our supervisor
    except OSError as error:
        what = f": {error.filename!r}" if error.filename else ""
        _tell(failed, f"{error.strerror}{what}")
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told
        _tell(failed, f"{type(error).__name__}: {error}")
    os._exit(203)


def _exec(program: Program, stdout: int, stderr: int, failed: int) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    for source, target in ((null, 0), (stdout, 1), (stderr, 2)):
        os.dup2(source, target)
    for number, soft, hard in program.limits:
        resource.setrlimit(number, (soft, hard))
    if program.nice is not None:
        os.setpriority(os.PRIO_PROCESS, 0, program.nice)
    _write_oom_score(program.oom_score_adjust or 0)
    os.umask(program.umask)
    _become_user(program)
    if program.cwd is not None:
        try:
            os.chdir(program.cwd)
        except OSError as error:
            raise OSError(
                error.errno, f"cannot enter the directory: {error.strerror}", program.cwd
            ) from None
    else:
        try:
            os.chdir(program.user_env["HOME"])
        except OSError:
            os.chdir("/")
    env = {
        "PATH": DEFAULT_PATH,
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        **program.user_env,
        **program.env,
    }
    for number in CHANGED_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        os.execvpe(program.argv[0], list(program.argv), env)  # noqa: S606 - no shell is the point
    except OSError as error:
        raise OSError(error.errno, f"cannot execute: {error.strerror}", program.argv[0]) from None


def _become_user(program: Program) -> None:
    if os.geteuid() == 0:
        os.setgroups(program.groups)
        os.setresgid(program.gid, program.gid, program.gid)
        os.setresuid(program.uid, program.uid, program.uid)


def _write_oom_score(value: int) -> None:
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(value))
    except OSError:
        pass  # without root it can only be raised


def _tell(failed: int, text: str) -> None:
    os.write(failed, text.encode("utf-8", "replace")[:4096])
