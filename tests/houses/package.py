# SPDX-License-Identifier: LGPL-2.1-or-later
"""The packages under test, and a machine that has them."""

from pathlib import Path

from tests.houses.machine import Machine

REPOSITORY = Path(__file__).resolve().parents[2]
GROUP = "bgtask"


def debs() -> list[Path]:
    """What ``make deb`` made."""
    found = sorted((REPOSITORY / "dist").glob("*.deb"))
    if not found:
        raise FileNotFoundError("there is no package in dist/: run make deb")
    return found


def install(machine: Machine) -> None:
    """Install bgtaskd. alice and bob may use it, carol may not; alice may read the journal."""
    machine.install_debs(debs())
    for user, group in (("alice", GROUP), ("bob", GROUP), ("alice", "systemd-journal")):
        machine.run(["adduser", "--quiet", user, group])
