# SPDX-License-Identifier: LGPL-2.1-or-later
"""Operations that change what waits, or run again what has ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bgtaskd.daemon import byhand
from bgtaskd.daemon.engine import now_usec
from bgtaskd.daemon.spec import read_spec
from bgtaskd.errors import InvalidSpec, NoSuchTask, NotPossible, QueueFull, TooManyRequests
from bgtaskd.model import ENDED, RECORD, RESIDENT, WAITING, RetryAsked, State, Task, TaskSpec

if TYPE_CHECKING:
    from bgtaskd.daemon.api import Api
    from bgtaskd.protocol.peer import Peer
    from bgtaskd.protocol.server import Call, Reply


def make_room(api: Api, owner_uid: int, spec: TaskSpec) -> None:
    """Refuse one more that waits where there are too many. Raises QueueFull, TooManyRequests."""
    engine = api.engine
    if spec.kind == RECORD:
        byhand.refuse_another(api, owner_uid)
        return
    limit = engine.config.queues[spec.queue].max_waiting
    if engine.scheduler.waiting(spec.queue) >= limit:
        raise QueueFull(queue=spec.queue, limit=limit)
    if engine.waiting[owner_uid] >= engine.config.waiting_per_user:
        raise TooManyRequests(reason=f"{engine.config.waiting_per_user} of your tasks wait already")


def check_after(api: Api, peer: Peer, spec: TaskSpec, below: int | None = None) -> None:
    """That what it waits for is there, and the caller's to see. Raises NoSuchTask, InvalidSpec."""
    for number in spec.after:
        one = api.engine.get(number) if 0 < number < 1 << 62 else None
        if one is None or not api.policy.may_see(peer, one):
            raise NoSuchTask(id=number)
        if below is not None and number >= below:
            raise InvalidSpec(field="after", reason="a task can wait for older ones only")


async def edit(api: Api, call: Call) -> Reply:
    """Change a task that waits."""
    task = api.live(_owned(api, call), "only a task that waits can be edited")
    byhand.refuse_record(task)
    _refuse_resident(task)
    _ask_policy_again(api, call.peer, task)
    spec = _changed(api, call.peer, task, call.parameters["changes"])
    if spec.queue != task.spec.queue:
        make_room(api, task.owner_uid, spec)
    _refuse_same_key(api, task, spec)
    after = replace(task, spec=spec, updated=now_usec())
    if call.parameters["changes"].get("delay_usec") is not None:
        due = after.updated + spec.delay_usec
        state = State.DELAYED if spec.delay_usec else State.QUEUED
        after = replace(after, state=state, not_before=due if spec.delay_usec else None)
    if api.engine.live.get(task.id) is not task or task.state not in WAITING:
        raise _not_possible(task, "only a task that waits can be edited")
    try:
        await api.engine.edit(task, after)
    except KeyError:
        raise _not_possible(api.engine.get(task.id) or task, "it was too late") from None
    return {}


async def retry(api: Api, call: Call) -> Reply:
    """Run an ended task again, perhaps with changes."""
    task = _owned(api, call)
    byhand.refuse_record(task)
    _refuse_resident(task)
    if task.spec.secrets:
        raise _not_possible(task, "its secrets were forgotten when it ended; start it anew")
    _ask_policy_again(api, call.peer, task)
    if task.state not in ENDED:
        raise _not_possible(task, RetryAsked(0).what)
    spec = _changed(api, call.peer, task, call.parameters.get("changes") or {})
    make_room(api, task.owner_uid, spec)
    _refuse_same_key(api, task, spec)
    await api.engine.retry(replace(task, spec=spec))
    return {}


def _refuse_resident(task: Task) -> None:
    if task.spec.kind in RESIDENT:
        raise _not_possible(task, "bgtaskd itself starts it, when it is needed")


def _owned(api: Api, call: Call) -> Task:
    from bgtaskd.daemon.api import Access

    return api.task(call, Access.STEER)


def _ask_policy_again(api: Api, peer: Peer, task: Task) -> None:
    """The rule that allowed it may have gone since. Raises PermissionDenied."""
    if task.spec.http is not None:
        api.engine.requests.choose(api.policy, peer, task.spec.http["app"])
    elif not api.policy.is_admin(peer):
        api.policy.run_as(peer, task.user)


def _changed(api: Api, peer: Peer, task: Task, changes: Mapping[str, Any]) -> TaskSpec:
    """The task's spec with changes, checked as at its submission. Raises InvalidSpec, NoSuchQueue, …"""
    before = task.spec.to_json()
    names = before.pop("secrets", None)
    given = {key: value for key, value in changes.items() if value is not None}
    if task.spec.target is not None and "argv" in given:
        raise InvalidSpec(field="argv", reason="a task written in Python keeps its interpreter")
    spec = read_spec({**before, **given}, api.engine.config, task.user)
    if "after" in given:
        check_after(api, peer, spec, below=task.id)
    return replace(spec, secrets=tuple(names or ()))


def _refuse_same_key(api: Api, task: Task, spec: TaskSpec) -> None:
    """Two tasks with one merge key would both be what the next start is merged with."""
    if spec.merge_key is None:
        return
    other = api.engine.merge_keys.get((task.owner_uid, spec.merge_key))
    if other not in (None, task.id) or (task.owner_uid, spec.merge_key) in api.engine.merging:
        raise _not_possible(task, f"another task with its merge key has not ended: {other}")


def _not_possible(task: Task, reason: str) -> NotPossible:
    return NotPossible(id=task.id, state=task.public_state().value, reason=reason)
