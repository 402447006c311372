# SPDX-License-Identifier: LGPL-2.1-or-later
"""Attempt records: what happened to an attempt, in a file that outlives whoever wrote it.

``exits/<id>.<attempt>`` is made, exclusively, before the task's program may run, and replaced once the
attempt is over. So "was this attempt ever started?" has one answer, whoever was killed in between.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class AlreadyLaunched(Exception):
    """The attempt has a record: it runs, or has run."""


def name_of(task_id: int, attempt: int) -> str:
    """The record's file name."""
    return f"{task_id}.{attempt}"


def create(directory: int, task_id: int, attempt: int, text: str) -> None:
    """Write the first record of an attempt: ``text`` is JSON. A record that says "not-started" gives way.

    Raises AlreadyLaunched.
    """
    name = name_of(task_id, attempt)
    try:
        fd = os.open(
            name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640, dir_fd=directory
        )
    except FileExistsError:
        if is_taken(directory, task_id, attempt):
            raise AlreadyLaunched(name) from None
        replace(directory, task_id, attempt, text)
        return
    _write(fd, text)


def is_taken(directory: int, task_id: int, attempt: int) -> bool:
    """Whether the attempt has a record that says more than that nothing ever ran."""
    old = read(directory, task_id, attempt)
    return old is not None and old.get("exit", {}).get("result") != "not-started"


def replace(directory: int, task_id: int, attempt: int, text: str) -> None:
    """Write a whole new record in the old one's place; readers see the one or the other."""
    name = name_of(task_id, attempt)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(f"{name}.new", flags, 0o640, dir_fd=directory)
    _write(fd, text)
    os.rename(f"{name}.new", name, src_dir_fd=directory, dst_dir_fd=directory)


def _write(fd: int, text: str) -> None:
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def read(directory: int, task_id: int, attempt: int) -> dict[str, Any] | None:
    """The record; None where there is none; empty where it cannot be read (its writer was killed)."""
    import json  # most supervisors never read one

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
