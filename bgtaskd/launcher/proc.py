# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the kernel says of processes, read in as few calls as it takes."""

from __future__ import annotations

import os


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot: with the boot id, a name no other process has."""
    try:
        return int(read_file(f"/proc/{pid}/stat").rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def boot_id() -> str:
    """This boot's id, as the kernel has it."""
    return read_file("/proc/sys/kernel/random/boot_id").decode().strip()


def read_file(path: str) -> bytes:
    """A small file of the kernel's, whole: open() would ask it a dozen questions first. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)


def session_members(session: int) -> list[int]:
    """The pids of a session's living processes."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                words = read_file(f"/proc/{name}/stat").rpartition(b")")[2].split()
            except OSError:
                continue
            if int(words[3]) == session and words[0] not in (b"Z", b"X"):
                found.append(int(name))
    return found
