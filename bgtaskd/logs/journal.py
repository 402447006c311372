# SPDX-License-Identifier: LGPL-2.1-or-later
"""The journal's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): one datagram an entry."""

from __future__ import annotations

import os
import sys
import time
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_CLOEXEC, SOCK_DGRAM, SOL_SOCKET, socket

SOCKET = "/run/systemd/journal/socket"
HANGING_SECONDS = 30.0


def encode(fields: list[tuple[bytes, bytes]]) -> bytes:
    """One entry's bytes. Values with a newline travel with their length in front."""
    out = []
    for name, value in fields:
        if b"\n" in value:
            out.append(name + b"\n" + len(value).to_bytes(8, "little") + value + b"\n")
        else:
            out.append(name + b"=" + value + b"\n")
    return b"".join(out)


class Journal:
    """A sender. Where there is no journald, entries are dropped: the output file has everything."""

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._hanging_until = 0.0
        self._socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC)
        self._socket.settimeout(
            5
        )  # journald may be restarting; a dead one must not hold the task for ever
        self._connect()

    def _connect(self) -> bool:
        try:
            self._socket.connect(self._path)
        except OSError:
            return False
        return True

    def send(self, entry: bytes) -> bool:
        """Send one encoded entry; whether it went out."""
        if self._hanging_until and time.monotonic() < self._hanging_until:
            return False
        for _ in range(2):
            try:
                self._socket.send(entry)
            except TimeoutError:
                # It hangs: one wait for many lines, or the task would stand still behind a full pipe.
                self._hanging_until = time.monotonic() + HANGING_SECONDS
                return False
            except OSError as error:
                if error.errno == 90:  # EMSGSIZE: too long for a datagram, so it goes as a file
                    return self._send_as_file(entry)
                if not self._connect():
                    return False
            else:
                return True
        return False

    def _send_as_file(self, entry: bytes) -> bool:
        fd = os.memfd_create("bgtaskd-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.write(fd, entry)
            rights = fd.to_bytes(4, sys.byteorder)
            self._socket.sendmsg([b""], [(SOL_SOCKET, SCM_RIGHTS, rights)])
        except OSError:
            return False
        finally:
            os.close(fd)
        return True
