# SPDX-License-Identifier: LGPL-2.1-or-later
"""The logs that others register under an entry point. What is not named in the configuration is not loaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from bgtaskd.logs.interface import Log, LogError

GROUP: Final = "bgtaskd.logs"


def registered_names() -> tuple[str, ...]:
    """What others have registered."""
    return tuple(sorted({point.name for point in _points()}))


def open_log(name: str, directory: Path) -> Log:
    """Open one, which may write below ``directory``; it is made. Raises LogError, with the reason; OSError."""
    for point in _points():
        if point.name == name:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                made: Log = point.load()(directory)
            except Exception as error:
                raise LogError(f"{point.value}: {error!r}") from error
            return made
    known = ", ".join(registered_names()) or "none"
    raise LogError(f"there is no log {name}; there are: {known}")


def _points() -> Iterable[Any]:
    """Loaded when it is asked for: it brings email with it, and most daemons never ask."""
    from importlib.metadata import entry_points

    return entry_points(group=GROUP)
