# SPDX-License-Identifier: LGPL-2.1-or-later
"""The task's side of the fork: wait at the gate, become the user, exec. Nothing here returns."""

from __future__ import annotations

import os
import pwd
import resource
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"


@dataclass(frozen=True, slots=True)
class Program:
    """What to exec, and as whom. ``limits``: resource number → (soft, hard)."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str | None
    uid: int
    limits: Mapping[int, tuple[int, int]]
    umask: int = 0o022
    nice: int | None = None
    oom_score_adjust: int | None = None


def become(program: Program, gate: int, failed: int, stdout: int, stderr: int) -> NoReturn:
    """Wait for a byte on ``gate``, then exec. What goes wrong is written to ``failed`` as text."""
    try:
        os.setsid()
        if os.read(gate, 1) != b"g":
            os._exit(0)
        _exec(program, stdout, stderr, failed)
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
    for number, pair in program.limits.items():
        resource.setrlimit(number, pair)
    if program.nice is not None:
        os.setpriority(os.PRIO_PROCESS, 0, program.nice)
    _write_oom_score(program.oom_score_adjust or 0)
    os.umask(program.umask)
    home = _become_user(program.uid)
    if program.cwd is not None:
        try:
            os.chdir(program.cwd)
        except OSError as error:
            raise OSError(
                error.errno, f"cannot enter the directory: {error.strerror}", program.cwd
            ) from None
    else:
        try:
            os.chdir(home["HOME"])
        except OSError:
            os.chdir("/")
    env = {"PATH": DEFAULT_PATH, "LANG": os.environ.get("LANG", "C.UTF-8"), **home, **program.env}
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):
                continue
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    try:
        os.execvpe(program.argv[0], list(program.argv), env)  # noqa: S606 - no shell is the point
    except OSError as error:
        raise OSError(error.errno, f"cannot execute: {error.strerror}", program.argv[0]) from None


def _become_user(uid: int) -> dict[str, str]:
    """Drop to the user; what a login would put into the environment."""
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        raise RuntimeError(f"no user has the id {uid}") from None
    if os.geteuid() == 0:
        os.initgroups(user.pw_name, user.pw_gid)
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(uid, uid, uid)
    return {
        "HOME": user.pw_dir or "/",
        "USER": user.pw_name,
        "LOGNAME": user.pw_name,
        "SHELL": user.pw_shell or "/bin/sh",
    }


def _write_oom_score(value: int) -> None:
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(value))
    except OSError:
        pass  # without root it can only be raised


def _tell(failed: int, text: str) -> None:
    os.write(failed, text.encode("utf-8", "replace")[:4096])
