# SPDX-License-Identifier: LGPL-2.1-or-later
"""A command's secrets: files in $CREDENTIALS_DIRECTORY, as systemd's own services have them.

In /run, so never on a disk; readable by the task's user alone, writable by nobody; gone with the task.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def make(directory: str, owner: int, credentials: Mapping[str, bytes]) -> None:
    """Write them. ``owner``: a uid. Raises OSError."""
    remove(directory)  # an attempt that was launched anew
    os.mkdir(directory, 0o700)
    for name, value in credentials.items():
        path = f"{directory}/{name}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        try:
            while value:
                value = value[os.write(fd, value) :]
            os.fchown(fd, owner, -1)
        finally:
            os.close(fd)
    os.chmod(directory, 0o500)
    os.chown(directory, owner, -1)


def remove(directory: str) -> None:
    """Remove them, if they are there."""
    try:
        if os.geteuid() != 0:
            os.chmod(directory, 0o700)
        for name in os.listdir(directory):
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)
    except FileNotFoundError:
        pass
