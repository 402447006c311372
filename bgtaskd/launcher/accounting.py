# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an attempt used, from its cgroup (cgroup v2), or from rusage where there is none.

The files are opened while the scope is up: PID 1 removes the cgroup as soon as it is empty, and then
nothing can be opened any more.
"""

from __future__ import annotations

import os

from bgtaskd.launcher.proc import read_file

WATCHED = ("cgroup.events", "cpu.stat", "memory.peak", "memory.events", "io.stat")


class Usage:
    """Totals: microseconds and bytes. None: not known."""

    __slots__ = ("cpu_usec", "io_read_bytes", "io_write_bytes", "memory_peak")

    def __init__(
        self,
        cpu_usec: int | None = None,
        memory_peak: int | None = None,
        io_read_bytes: int | None = None,
        io_write_bytes: int | None = None,
    ) -> None:
        self.cpu_usec = cpu_usec
        self.memory_peak = memory_peak
        self.io_read_bytes = io_read_bytes
        self.io_write_bytes = io_write_bytes


def cgroup_of(pid: int) -> str | None:
    """The process's cgroup v2 directory; None where the machine has none or the process is gone."""
    try:
        for line in read_file(f"/proc/{pid}/cgroup").decode().splitlines():
            if line.startswith("0::"):
                for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
                    if os.path.exists(f"{root}/cgroup.procs"):
                        return root + line[3:]
    except OSError:
        pass
    return None


class Cgroup:
    """Descriptors into one scope's cgroup."""

    def __init__(self, path: str, names: tuple[str, ...] = WATCHED) -> None:
        self.path = path
        self._fds = {name: fd for name in names if (fd := _open(f"{path}/{name}")) is not None}

    def fd(self, name: str) -> int | None:
        """The descriptor of one file, for poll() with POLLPRI."""
        return self._fds.get(name)

    def values(self, name: str) -> dict[str, int]:
        """A file of "key value" lines; empty where it cannot be read (any more)."""
        text = self._read(name)
        pairs = (line.split() for line in text.splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}

    def usage(self) -> Usage:
        """The totals so far."""
        peak = self._read("memory.peak").strip()
        read, written = self._io()
        return Usage(
            self.values("cpu.stat").get("usage_usec"), int(peak) if peak else None, read, written
        )

    def close(self) -> None:
        """Close the descriptors."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    @classmethod
    def read_once(cls, path: str) -> dict[str, int | None]:
        """What a cgroup says at this moment, by the names that tasks are shown with."""
        group = cls(path, ("cpu.stat", "memory.peak", "memory.current", "io.stat"))
        try:
            usage, current = group.usage(), group._read("memory.current").strip()
        finally:
            group.close()
        return {
            "cpu_usec": usage.cpu_usec,
            "memory_current": int(current) if current else None,
            "memory_peak": usage.memory_peak,
            "io_read_bytes": usage.io_read_bytes,
            "io_write_bytes": usage.io_write_bytes,
        }

    def _io(self) -> tuple[int | None, int | None]:
        if "io.stat" not in self._fds:
            return None, None
        read = written = 0
        for word in self._read("io.stat").split():
            key, _, value = word.partition("=")
            if key == "rbytes":
                read += int(value)
            elif key == "wbytes":
                written += int(value)
        return read, written

    def _read(self, name: str) -> str:
        fd = self._fds.get(name)
        if fd is None:
            return ""
        try:
            return os.pread(fd, 65536, 0).decode()
        except OSError:
            return ""


def _open(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
