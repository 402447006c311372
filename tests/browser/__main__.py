# SPDX-License-Identifier: LGPL-2.1-or-later
"""``python3 -m tests.browser``: make docs/screenshots anew."""

import shutil
import sys

from tests.browser.machine import HOME, prepare
from tests.houses.container import Container
from tests.houses.package import REPOSITORY

TARGET = REPOSITORY / "docs" / "screenshots"

with Container(12, browser=True) as machine:
    prepare(machine)
    argv = ["python3", "-m", "tests.browser.screenshots"]
    done = machine.run(argv, user="alice", cwd=HOME, check=False, timeout=120)
    print(done.stdout, done.stderr, sep="\n")
    if done.returncode:
        sys.exit(done.returncode)
    shutil.rmtree(TARGET, ignore_errors=True)
    machine.copy_out(f"{HOME}/screenshots", TARGET)
