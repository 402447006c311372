# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tasks' secrets while they wait and run: a file each, in memory (/run), for the daemon's eyes only.

Written before the task is accepted, removed once it has ended for good. Never in the database; so they do
not survive a reboot, and a task that would need them then fails with that reason.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Mapping
from typing import Final

from bgtaskd.errors import InvalidSpec

COUNT_MAX: Final = 64
BYTES_MAX: Final = 64 * 1024
# What systemd takes for the name of a credential is longer, but no user needs that (systemd.exec(5)).
NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def check_secrets(secrets: Mapping[str, str]) -> tuple[str, ...]:
    """Their names, sorted. Raises InvalidSpec, which names no value."""
    if len(secrets) > COUNT_MAX:
        raise InvalidSpec(field="secrets", reason=f"must be at most {COUNT_MAX}")
    if not all(NAME.fullmatch(name) for name in secrets):
        raise InvalidSpec(
            field="secrets", reason="a name has letters, digits, _, - and . only, 64 at most"
        )
    try:
        size = sum(len(value.encode()) for value in secrets.values())
    except UnicodeEncodeError:
        raise InvalidSpec(field="secrets", reason="a value has half a surrogate pair") from None
    if size > BYTES_MAX:
        raise InvalidSpec(field="secrets", reason=f"must be at most {BYTES_MAX} bytes in all")
    return tuple(sorted(secrets))


class Secrets:
    """The files, by task id."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def put(self, task_id: int, secrets: Mapping[str, str]) -> None:
        """Keep a task's secrets. Raises OSError."""
        os.makedirs(self._directory, 0o700, exist_ok=True)
        path = self._path(task_id)
        # O_TRUNC: one that was killed before it could accept the task may have left the file.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with open(os.open(path, flags, 0o600), "w") as file:
            json.dump(secrets, file)

    def get(self, task_id: int) -> Mapping[str, str] | None:
        """A task's secrets; None where they are gone."""
        try:
            with open(self._path(task_id)) as file:
                secrets: dict[str, str] = json.load(file)
        except (OSError, ValueError):
            return None
        return secrets

    def drop(self, task_id: int) -> None:
        """Forget a task's secrets."""
        with contextlib.suppress(OSError):
            os.unlink(self._path(task_id))

    def keep_only(self, task_ids: Collection[int]) -> None:
        """Forget all secrets but these tasks': at start-up."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self._directory):
                if not name.isdigit() or int(name) not in task_ids:
                    os.unlink(os.path.join(self._directory, name))

    def _path(self, task_id: int) -> str:
        return os.path.join(self._directory, str(task_id))
