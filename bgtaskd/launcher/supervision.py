# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fork server as the launcher has it: how it is started, and asked for one more supervisor."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

from bgtaskd.launcher import forkserver
from bgtaskd.launcher.places import Places

# The launcher itself dumps no core, for it has seen secrets; tasks may, if whoever started us could.
CORE_LIMIT = resource.getrlimit(resource.RLIMIT_CORE)


class ForkServer:
    """The running fork server."""

    def __init__(self, places: Places) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [
            "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable,
            "-I",
            "-S",
            "-B",
            str(Path(forkserver.__file__).resolve()),
            *map(str, (theirs.fileno(), places.exits, places.tasks)),
            places.run,
            "scopes" if places.has_scopes else "sessions",
        ]
        self._process = subprocess.Popen(
            argv,
            pass_fds=(theirs.fileno(), places.exits, places.tasks),
            stdin=subprocess.DEVNULL,
            cwd="/",
            env={"LANG": "C.UTF-8"},
            start_new_session=True,
        )
        theirs.close()
        resource.prlimit(self._process.pid, resource.RLIMIT_CORE, CORE_LIMIT)
        self._socket = ours

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def is_gone(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """Make sure that it is gone."""
        self._process.kill()
        self._process.wait()

    def fork(self, *, bare: bool = False) -> socket.socket:
        """Fork a supervisor; our end of the socket to it. ``bare``: without a process for its task yet.

        Raises OSError.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 21)
            socket.send_fds(self._socket, [forkserver.BARE if bare else b"f"], [theirs.fileno()])
        ours.setblocking(False)
        return ours
