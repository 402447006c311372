# SPDX-License-Identifier: LGPL-2.1-or-later
"""The storages that can be chosen: ours, and those that others register under an entry point."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from bgtaskd.storage.interface import Storage, StorageError

GROUP: Final = "bgtaskd.storage"
OURS: Final = ("sqlite", "memory")


def registered_names() -> tuple[str, ...]:
    """What others have registered."""
    return tuple(sorted({point.name for point in _points()} - set(OURS)))


def open_backend(name: str, database: Path) -> tuple[Storage, Path | None]:
    """Open one; where a corrupt database was moved to, if one was. Raises StorageError, with the reason."""
    if name == "memory":
        from bgtaskd.storage.memory import MemoryStorage

        return MemoryStorage(), None
    database.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if name == "sqlite":
        from bgtaskd.storage.sqlite import open_storage

        return open_storage(database)
    for point in _points():
        if point.name == name:
            try:
                made: Storage = point.load()(database.parent)
            except Exception as error:
                raise StorageError(f"the storage {name} ({point.value}): {error}") from error
            return made, None
    known = ", ".join((*OURS, *registered_names()))
    raise StorageError(f"there is no storage {name}; there are: {known}")


def _points() -> Iterable[Any]:
    """Loaded when it is asked for: it brings email with it, and most daemons never ask."""
    from importlib.metadata import entry_points

    return entry_points(group=GROUP)
