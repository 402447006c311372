# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is to run when a task has ended: a task of its own, made by the commit that ends the other."""

from __future__ import annotations

import pwd

from bgtaskd.model import NAME_MAX, Result, State, Task, TaskSpec
from bgtaskd.units import HTTP


def hook_of(ended: Task, task_id: int, now: int) -> Task | None:
    """The task that ``ended`` calls for, if it does. Its failure is its own."""
    hook = ended.spec.on_end
    if hook is None or ended.result is None:
        return None
    well = ended.result is Result.SUCCESS
    if hook.get("on", "any") not in ("any", "success" if well else "failure"):
        return None
    spec = ended.spec
    uid, user = _runs_as(ended)
    env = {
        **spec.env,
        "BGTASK_ENDED_ID": str(ended.id),
        "BGTASK_ENDED_NAME": spec.name,
        "BGTASK_ENDED_STATE": ended.state.value,
        "BGTASK_ENDED_RESULT": ended.result.value,
    }
    return Task(
        id=task_id,
        spec=TaskSpec(
            name=f"{spec.name[: NAME_MAX - 4]}:end",
            argv=tuple(hook["argv"]),
            user=user,
            cwd=spec.cwd,
            env=env,
            queue=spec.queue,
            group=spec.group,
        ),
        uid=uid,
        user=user,
        owner_uid=ended.owner_uid,
        state=State.QUEUED,
        created=now,
        updated=now,
    )


def _runs_as(ended: Task) -> tuple[int, str]:
    """As whom: the task's user; where that is one of ours, who may run nothing else, the owner."""
    if ended.spec.kind != HTTP:
        return ended.uid, ended.user
    try:
        return ended.owner_uid, pwd.getpwuid(ended.owner_uid).pw_name
    except KeyError:  # the launcher will say so
        return ended.owner_uid, str(ended.owner_uid)
