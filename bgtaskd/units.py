# SPDX-License-Identifier: LGPL-2.1-or-later
"""The names of our units."""

from __future__ import annotations


def scope_name(task_id: int, attempt: int) -> str:
    """The unit of one attempt: bgtask-42.scope, then bgtask-42.2.scope, bgtask-42.3.scope, …"""
    return f"bgtask-{task_id}.scope" if attempt <= 1 else f"bgtask-{task_id}.{attempt}.scope"


def slice_name(queue: str) -> str:
    """The slice of a queue. Queue names have no dash: in a slice's name it means a level (systemd.slice(5))."""
    return f"bgtask-{queue}.slice"


def worker_slice_name(queue: str, worker: str) -> str:
    """The slice of a worker's processes, below that of its queue."""
    return f"bgtask-{queue}-{worker}.slice"


ANONYMOUS = "anonymous"
"""What callers say; tasks then run as this user:"""
ANONYMOUS_USER = "bgtask-anonymous"
HTTP = "http"
"""The kind of a task that requests a route of an app; such tasks, and no others, run as this user:"""
HTTP_USER = "bgtaskd-http"
HTTP_ARGV = ("/usr/bin/python3", "-I", "-m", "bgtaskd.httptask")
"""Its program, which sees the app's key: root's own, and nothing that a caller says."""
