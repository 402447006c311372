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

    Whole from the first moment: an empty one would be taken for that of a supervisor that was killed.
    Raises AlreadyLaunched.
    """
    name = name_of(task_id, attempt)
    fresh = _write(directory, name, text)
    try:
        os.link(fresh, name, src_dir_fd=directory, dst_dir_fd=directory)
    except FileExistsError:
        if is_taken(directory, task_id, attempt):
            os.unlink(fresh, dir_fd=directory)
            raise AlreadyLaunched(name) from None
        os.rename(fresh, name, src_dir_fd=directory, dst_dir_fd=directory)
    else:
        os.unlink(fresh, dir_fd=directory)


def is_taken(directory: int, task_id: int, attempt: int) -> bool:
    """Whether the attempt has a record that says more than that nothing ever ran."""
    old = read(directory, task_id, attempt)
    return old is not None and old.get("exit", {}).get("result") != "not-started"


def replace(directory: int, task_id: int, attempt: int, text: str) -> None:
    """Write a whole new record in the old one's place; readers see the one or the other."""
    name = name_of(task_id, attempt)
    os.rename(_write(directory, name, text), name, src_dir_fd=directory, dst_dir_fd=directory)


def _write(directory: int, name: str, text: str) -> str:
    """A file beside the record, of this process's own; its name."""
    fresh = f"{name}.{os.getpid()}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(fresh, flags, 0o640, dir_fd=directory)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
    return fresh


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
