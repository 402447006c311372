# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the daemon listens."""

from __future__ import annotations

import os

SYSTEM = "/run/bgtaskd/control.sock"
TASKS = "/run/bgtaskd/tasks.sock"
"""For tasks whose user may not use the other one: there they see and report of themselves."""


def default_socket() -> str:
    """$BGTASKD_SOCKET; else the system's; else, where only that is there, the user's own."""
    given = os.environ.get("BGTASKD_SOCKET")
    if given:
        return given
    if "BGTASK_ID" in os.environ and os.access(TASKS, os.W_OK) and not os.access(SYSTEM, os.W_OK):
        return TASKS
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and not os.path.exists(SYSTEM):
        own = f"{runtime}/bgtaskd/control.sock"
        if os.path.exists(own):
            return own
    return SYSTEM
