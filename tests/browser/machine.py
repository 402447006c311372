# SPDX-License-Identifier: LGPL-2.1-or-later
"""The machine that has a browser: what goes into it, for the tests and for the screenshots."""

from pathlib import Path

from tests.houses import package
from tests.houses.container import Container

FILES = Path(__file__).parent
HOME = "/home/alice"
INSIDE = (
    "__init__",
    "app",
    "harness",
    "check_widgets",
    "check_examples",
    "check_admin",
    "screenshots",
)


def prepare(container: Container) -> None:
    """Install bgtaskd; alice, who may restart services, gets this folder's files at home."""
    package.install(container)
    container.write("/etc/sudoers.d/alice", "alice ALL=(ALL) NOPASSWD: ALL\n")
    container.write(f"{HOME}/tests/__init__.py", "")
    for name in INSIDE:
        container.write(f"{HOME}/tests/browser/{name}.py", (FILES / f"{name}.py").read_text())
