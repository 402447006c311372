# SPDX-License-Identifier: LGPL-2.1-or-later
"""Attempt records: what happened to an attempt, in a file that outlives whoever wrote it.

``exits/<id>.<attempt>`` is made, exclusively, before the task's program may run, and replaced once the
attempt is over. So "was this attempt ever started?" has one answer, whoever was killed in between.
"""

from __future__ import annotations

import json
import os
from typing import Any


class AlreadyLaunched(Exception):
    """The attempt has a record: it runs, or has run."""


def name_of(task_id: int, attempt: int) -> str:
    """The record's file name."""
    return f"{task_id}.{attempt}"


def create(directory: int, record: dict[str, Any]) -> None:
    """Write the first record of an attempt. A record that says "not-started" gives way.

    Raises AlreadyLaunched.
    """
    name = name_of(record["id"], record["attempt"])
    try:
        fd = os.open(
            name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640, dir_fd=directory
        )
    except FileExistsError:
        old = read(directory, record["id"], record["attempt"])
        if old is None or old.get("exit", {}).get("result") != "not-started":
            raise AlreadyLaunched(name) from None
        replace(directory, record)
        return
    _write(fd, record)


def replace(directory: int, record: dict[str, Any]) -> None:
    """Write a whole new record in the old one's place; readers see the one or the other."""
    name = name_of(record["id"], record["attempt"])
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(f"{name}.new", flags, 0o640, dir_fd=directory)
    _write(fd, record)
    os.rename(f"{name}.new", name, src_dir_fd=directory, dst_dir_fd=directory)


def _write(fd: int, record: dict[str, Any]) -> None:
    try:
        os.write(fd, json.dumps(record).encode())
    finally:
        os.close(fd)


def read(directory: int, task_id: int, attempt: int) -> dict[str, Any] | None:
    """The record; None where there is none, or none that can be read (its writer was killed)."""
    try:
        fd = os.open(
            name_of(task_id, attempt), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory
        )
        with open(fd, "rb") as file:
            data = json.loads(file.read())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


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
