# SPDX-License-Identifier: LGPL-2.1-or-later
"""What PID 1 wrote into the journal when a scope failed.

PID 1 removes a scope's cgroup as soon as it is empty, sometimes before we have read in it that the
out-of-memory killer was there. PID 1 had: "Failed with result 'oom-kill'".
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal.py would bring enum
import os
import select

JOURNALCTL = "/usr/bin/journalctl"
UNIT_FAILED = "d9b373ed55a64feb8242e02dbe79a49c"  # SD_MESSAGE_UNIT_FAILURE_RESULT, sd-messages.h
PATIENCE_MS = 5000


def unit_result(unit: str) -> str | None:
    """The result PID 1 (or, unless we are root, our own systemd) has logged for ``unit``; None if none."""
    ours = ["_PID=1", f"UNIT={unit}"]
    if os.geteuid() != 0:
        ours = [f"_UID={os.getuid()}", f"USER_UNIT={unit}"]
    _output(["journalctl", "--quiet", "--sync"])
    fields = ["--output=cat", "--output-fields=UNIT_RESULT", "--lines=1", "--boot"]
    said = _output(["journalctl", "--quiet", *fields, *ours, f"MESSAGE_ID={UNIT_FAILED}"])
    return said.decode("utf-8", "replace").strip() or None


def _output(argv: list[str]) -> bytes:
    """What a command prints; empty where it cannot be had in time."""
    out, out_in = os.pipe()
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    arrange = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, out_in, 1)]
    arrange.append((os.POSIX_SPAWN_DUP2, null, 2))
    data = b""
    try:
        pid = os.posix_spawn(JOURNALCTL, argv, {"LANG": "C.UTF-8"}, file_actions=arrange)
    except OSError:
        os.close(out_in)
        os.close(out)
        os.close(null)
        return b""
    os.close(out_in)
    os.close(null)
    poll = select.poll()
    poll.register(out, select.POLLIN)
    while poll.poll(PATIENCE_MS):
        piece = os.read(out, 4096)
        if not piece:
            break
        data += piece
    else:
        os.kill(pid, _signal.SIGKILL)
    os.close(out)
    os.waitpid(pid, 0)
    return data
