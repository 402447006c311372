# SPDX-License-Identifier: LGPL-2.1-or-later
"""Background tasks for web apps, each in a systemd scope of its own.

Importing this costs next to nothing: everything is loaded when it is first used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own would load typing, in every supervisor too

if TYPE_CHECKING:
    from typing import Any

    from bgtaskd.client.aio import AsyncClient as AsyncClient
    from bgtaskd.client.blocking import Client as Client
    from bgtaskd.client.runner import Runner as Runner
    from bgtaskd.client.runner_aio import AsyncRunner as AsyncRunner
    from bgtaskd.client.task import TaskEvent as TaskEvent
    from bgtaskd.client.task import TaskInfo as TaskInfo
    from bgtaskd.errors import BgtaskdError as BgtaskdError
    from bgtaskd.errors import NotReachable as NotReachable
    from bgtaskd.errors import TaskFailed as TaskFailed
    from bgtaskd.task.bar import tqdm as tqdm
    from bgtaskd.task.base import BackgroundTask as BackgroundTask
    from bgtaskd.task.base import background as background
    from bgtaskd.task.own import OwnStatus as OwnStatus
    from bgtaskd.task.own import current as current
    from bgtaskd.task.record import Record as Record
    from bgtaskd.task.status import TaskStatus as TaskStatus
    from bgtaskd.task.worker import AsyncTask as AsyncTask
    from bgtaskd.task.worker import Context as Context
    from bgtaskd.task.worker import SyncTask as SyncTask

__version__ = "0.1.0"
_HOMES = {
    "AsyncClient": "bgtaskd.client.aio",
    "Client": "bgtaskd.client.blocking",
    "AsyncRunner": "bgtaskd.client.runner_aio",
    "Runner": "bgtaskd.client.runner",
    "TaskEvent": "bgtaskd.client.task",
    "TaskInfo": "bgtaskd.client.task",
    "BgtaskdError": "bgtaskd.errors",
    "NotReachable": "bgtaskd.errors",
    "TaskFailed": "bgtaskd.errors",
    "BackgroundTask": "bgtaskd.task.base",
    "background": "bgtaskd.task.base",
    "OwnStatus": "bgtaskd.task.own",
    "current": "bgtaskd.task.own",
    "Record": "bgtaskd.task.record",
    "TaskStatus": "bgtaskd.task.status",
    "AsyncTask": "bgtaskd.task.worker",
    "Context": "bgtaskd.task.worker",
    "SyncTask": "bgtaskd.task.worker",
    "tqdm": "bgtaskd.task.bar",
}
__all__ = ["__version__", *_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'bgtaskd' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)
