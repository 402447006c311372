# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records: tasks whose work is done elsewhere, and of which only what is reported by hand is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bgtaskd.daemon.engine import now_usec
from bgtaskd.daemon.spec import plain_json
from bgtaskd.errors import InvalidSpec, NotPossible, TooManyRequests
from bgtaskd.model import (
    ERROR_MAX,
    RECORD,
    Event,
    Exited,
    Reported,
    Result,
    Started,
    State,
    Task,
    transition,
)

if TYPE_CHECKING:
    from bgtaskd.daemon.api import Api
    from bgtaskd.protocol.server import Call, Reply

LIVE_MAX: Final = 10_000
MESSAGE_MAX: Final = 4096
ENDS: Final = {
    "finished": Result.SUCCESS,
    "failed": Result.EXIT_CODE,
    "stopped": Result.STOPPED,
}


def refuse_another(api: Api, uid: int) -> None:
    """A record holds no slot, so that many of a user's may be open at once. Raises TooManyRequests."""
    if api.engine.records[uid] >= LIVE_MAX:
        raise TooManyRequests(reason=f"{LIVE_MAX} of your records have not ended")


def refuse_record(task: Task) -> None:
    """For what is done to processes. Raises NotPossible."""
    if task.spec.kind == RECORD:
        raise NotPossible(
            id=task.id,
            state=task.public_state().value,
            reason="it is a record: its work is done elsewhere",
        )


async def record(api: Api, call: Call) -> Reply:
    """Say how a record stands."""
    from bgtaskd.daemon.api import Access

    task = api.live(api.task(call, Access.STEER), "it has ended already")
    if task.spec.kind != RECORD:
        reason = "it is no record: how it stands, its process says"
        raise NotPossible(id=task.id, state=task.public_state().value, reason=reason)
    given = call.parameters
    state = given["state"]
    if state != "running" and state not in ENDS:
        raise InvalidSpec(field="state", reason="must be running, finished, failed or stopped")
    message, error = given.get("message"), given.get("error")
    for field, text, most in (("message", message, MESSAGE_MAX), ("error", error, ERROR_MAX)):
        if text is not None and len(text) > most:
            raise InvalidSpec(field=field, reason=f"must have at most {most} characters")
    plain_json("value", given.get("value"))
    if error is not None and state == "finished":
        raise InvalidSpec(field="error", reason="is for what did not succeed")
    now = now_usec()
    events: list[Event] = []
    if message is not None or given.get("value") is not None:
        events.append(Reported(now, message=message, value=given.get("value")))
    elif state == "running" and task.state is State.QUEUED:
        events.append(Started(now, 0))
    if state in ENDS:
        events.append(Exited(now, ENDS[state], error=error))
    for event in events[:-1]:
        api.engine.live[task.id] = transition(api.engine.live[task.id], event)
    for event in events[-1:]:
        await api.engine.change(task.id, event)
    return {}
