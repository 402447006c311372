# SPDX-License-Identifier: LGPL-2.1-or-later
"""Operations on named tasks: calls, payloads, and how they do."""

from __future__ import annotations

import grp
import pwd
from typing import TYPE_CHECKING, Any, Final

from bgtaskd.daemon.spec import plain_json
from bgtaskd.daemon.workers import Instance, Named
from bgtaskd.errors import InvalidSpec, NoSuchWorker, PermissionDenied, StorageFailed
from bgtaskd.model import canonical_json

if TYPE_CHECKING:
    from bgtaskd.daemon.api import Api
    from bgtaskd.protocol.peer import Peer
    from bgtaskd.protocol.server import Call, Reply

BATCH_MAX: Final = 1000
ASIDE_MAX: Final = 1000
KEY_MAX: Final = 1000


def _named(api: Api, peer: Peer, name: str) -> Named:
    """A named task that the caller may call. Raises NoSuchWorker, PermissionDenied."""
    named = api.workers.get(name)
    if named is None:
        raise NoSuchWorker(name=name[:64])
    if not _may_call(api, peer, named):
        who = f"its user, and group {named.file.group}"
        raise PermissionDenied(reason=f"{name} may be called by {who}")
    return named


def _may_call(api: Api, peer: Peer, named: Named) -> bool:
    """What the kernel says of the sockets of synchronous tasks, by owner, group and mode."""
    if api.policy.is_admin(peer):
        return True
    mode = named.file.mode
    try:
        if pwd.getpwnam(named.file.user).pw_uid == peer.uid:
            return bool(mode & 0o200)
        if grp.getgrnam(named.file.group).gr_gid in peer.groups:
            return bool(mode & 0o020)
    except KeyError:
        pass
    return bool(mode & 0o002)


async def call(api: Api, call: Call) -> Reply:
    """Have a synchronous task answer, or an asynchronous one accept."""
    given = call.parameters
    named = _named(api, call.peer, given["name"])
    payload, key = given.get("payload"), given.get("merge_key")
    plain_json("payload", payload)
    if named.file.type == "async":
        ids = await _accept(api, call, named, [payload])
        return {"id": ids[0], "answer": None}
    if key is not None and not 1 <= len(key) <= KEY_MAX:
        raise InvalidSpec(field="merge_key", reason=f"must have 1 to {KEY_MAX} characters")
    usec = given.get("timeout_usec")
    timeout = None if usec is None else max(0, usec) / 1e6
    answer = await api.workers.call(named, call.peer.uid, payload, key, timeout)
    return {"id": None, "answer": answer}


async def submit(api: Api, call: Call) -> Reply:
    """Have an asynchronous task accept many payloads."""
    named = _named(api, call.peer, call.parameters["name"])
    if named.file.type != "async":
        raise InvalidSpec(field="name", reason="is a synchronous task: it answers calls")
    payloads = call.parameters["payloads"]
    if not 1 <= len(payloads) <= BATCH_MAX:
        raise InvalidSpec(field="payloads", reason=f"must be 1 to {BATCH_MAX}")
    for one in payloads:
        plain_json("payloads", one)
    return {"ids": await _accept(api, call, named, payloads)}


async def _accept(api: Api, call: Call, named: Named, payloads: list[Any]) -> list[int]:
    if api.payloads.writer.failure is not None:
        raise StorageFailed(reason=str(api.payloads.writer.failure))
    bodies = [canonical_json(one) for one in payloads]
    return await api.workers.submit(named, call.peer.uid, bodies)


async def workers(api: Api, call: Call) -> Reply:
    """How the named tasks do that the caller may call."""
    shown = [_shown(api, named) for named in api.workers.all() if _may_call(api, call.peer, named)]
    return {"workers": shown}


def _shown(api: Api, named: Named) -> dict[str, Any]:
    file = named.file
    return {
        "name": file.name,
        "type": file.type,
        "target": file.target,
        "user": file.user,
        "wanted": file.instances if named.wanted else 0,
        "waiting": api.payloads.count(file.name),
        "aside": api.payloads.aside_count(file.name),
        "error": named.error,
        "processes": [
            _process(api, one)
            for one in sorted(named.instances.values(), key=lambda one: (one.number, one.id))
        ],
    }


def _process(api: Api, one: Instance) -> dict[str, Any]:
    task = api.engine.live.get(one.id)
    shown = {} if task is None else api.shown(task)
    state = str(shown.get("state", "queued"))
    if state == "running":
        if one.leaving:
            state = "leaving"
        elif one.link is None:
            state = "starting"
    return {
        "id": one.id,
        "instance": one.number,
        "state": state,
        "started": shown.get("started"),
        "served": one.served,
        "failed": one.failed,
        "held": len(api.payloads.held.get(one.id, ())),
        "memory_current": shown.get("memory_current"),
        "memory_peak": shown.get("memory_peak"),
        "cpu_usec": shown.get("cpu_usec"),
    }


async def aside(api: Api, call: Call) -> Reply:
    """Payloads that were given up, newest first."""
    given = call.parameters
    limit = given.get("limit") or 100
    if not 1 <= limit <= ASIDE_MAX:
        raise InvalidSpec(field="limit", reason=f"must be from 1 to {ASIDE_MAX}")
    found = api.payloads.aside(given.get("name"), given.get("before"), limit)
    return {
        "payloads": [
            {
                "id": one.id,
                "name": one.worker,
                "uid": one.uid,
                "payload": one.body[:4096],
                "tries": one.tries,
                "created": one.created,
                "reason": one.reason,
            }
            for one in found
        ]
    }


async def forgive(api: Api, call: Call) -> Reply:
    """Have payloads that were given up tried again."""
    found = api.payloads.find_aside(call.parameters["ids"][:ASIDE_MAX])
    await api.payloads.forgive(found)
    for name in {one.worker for one in found}:
        api.workers.pump(name)
    return {"ids": [one.id for one in found]}


async def drop(api: Api, call: Call) -> Reply:
    """Forget payloads that were given up."""
    found = api.payloads.find_aside(call.parameters["ids"][:ASIDE_MAX])
    await api.payloads.drop(found)
    return {"ids": [one.id for one in found]}
