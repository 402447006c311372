# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a task's process is given over a descriptor, and nobody else sees."""

from __future__ import annotations

import json
from collections.abc import Mapping

from bgtaskd.daemon.requests import Requests
from bgtaskd.model import TEMPLATE, WORKER, Task


def handover_of(task: Task, secrets: Mapping[str, str], requests: Requests) -> str | None:
    """The text for a task of kind python: a JSON object with target, import_path, settings and secrets.

    For one of kind http, what Requests.handover() says. Raises KeyError where its app is gone.
    """
    spec = task.spec
    if spec.kind == TEMPLATE:
        return json.dumps(
            {
                "import_path": list(spec.import_path),
                "preload": list(spec.preload),
                **(spec.settings or {}),
            }
        )
    if spec.kind == WORKER:
        worker = {**spec.settings, "id": task.id, "token": secrets["token"]}
        handed = {"target": spec.target, "import_path": list(spec.import_path), "worker": worker}
        return json.dumps(handed, ensure_ascii=False)
    if spec.http is not None:
        return json.dumps(requests.handover(task, secrets), ensure_ascii=False)
    if spec.target is None:
        return None
    handed = {
        "target": spec.target,
        "import_path": list(spec.import_path),
        "settings": spec.settings,
        "secrets": dict(secrets),
    }
    return json.dumps(handed, ensure_ascii=False)
