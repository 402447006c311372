# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where a machine keeps what is its own, and how that never piles up."""

import os
import shutil
import tempfile
from pathlib import Path

from tests.houses import cgroups

PREFIX = "bgtaskd-house"


def create() -> Path:
    """A new directory; its name is unique, carries the owner's pid and serves as a cgroup's too."""
    _sweep()
    work = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-{os.getpid()}-"))
    work.chmod(0o755)
    return work


def remove(work: Path) -> None:
    cgroups.remove(cgroups.paths(work.name))
    shutil.rmtree(work, ignore_errors=True)


def _sweep() -> None:
    """Remove what harnesses left that were killed before they could clean up."""
    for work in Path(tempfile.gettempdir()).glob(f"{PREFIX}-*-*"):
        owner = work.name.removeprefix(f"{PREFIX}-").split("-")[0]
        if not Path("/proc", owner).exists():
            remove(work)
