# SPDX-License-Identifier: LGPL-2.1-or-later
"""Recurring tasks. When they are due is systemd's business: each schedule is a timer of its, which calls us.

A timer's call is for the moment at which it elapsed last, and the task is on the disk together with that
moment: so a call that is made again, because somebody was killed, makes no second task. (systemd.exec(5) has
a variable for the moment, $TRIGGER_TIMER_REALTIME_USEC; of a service that is started again and again, systemd
252 gives the first one's.)
"""

from __future__ import annotations

import logging
import pwd
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from bgtaskd.daemon.launcher_link import LauncherError
from bgtaskd.daemon.spec import read_spec
from bgtaskd.errors import (
    BgtaskdError,
    InvalidSpec,
    LauncherFailed,
    NoSuchSchedule,
    PermissionDenied,
    TooManyRequests,
)
from bgtaskd.model import IllegalTransition, StopReason
from bgtaskd.schedules import NAME, OVERLAPS, ScheduleFile
from bgtaskd.storage.interface import PutSchedule, RemoveSchedule

if TYPE_CHECKING:
    from bgtaskd.daemon.api import Api
    from bgtaskd.protocol.peer import Peer
    from bgtaskd.protocol.server import Call, Reply

log = logging.getLogger(__name__)

OF_USER_MAX: Final = 100
CALENDARS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Schedule:
    """One. ``spec`` is as a caller's, so that today's configuration checks it at every start."""

    name: str
    owner_uid: int
    calendar: tuple[str, ...]
    spec: Mapping[str, Any]
    persistent: bool = False
    randomized_delay_usec: int = 0
    overlap: str = "skip"
    enabled: bool = True
    file: str | None = None
    fired: int | None = None
    """The moment of the last call that was answered, as the timer had it."""
    last_task: int | None = None

    def definition(self) -> dict[str, Any]:
        """What the administrator or the user has said."""
        return {**asdict(self), "fired": None, "last_task": None}


class Schedules:
    """All schedules, by name, and their timers."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._engine = api.engine
        stored = self._engine.storage.schedules()
        self.all = {name: _schedule(body) for name, body in stored.items()}
        self.errors: dict[str, str] = {}

    async def take_files(self, files: Iterable[ScheduleFile]) -> None:
        """What the administrator's files say, now: theirs that are gone go, the others' state stays."""
        there: set[str] = set()
        for file in files:
            there.add(file.name)
            try:
                uid = pwd.getpwnam(file.user).pw_uid
            except KeyError:
                log.error("%s: user: there is no user %s", file.path, file.user)
                continue
            before = self.all.get(file.name)
            fresh = Schedule(
                file.name,
                uid,
                file.calendar,
                file.spec,
                file.persistent,
                file.randomized_delay_usec,
                file.overlap,
                file.enabled,
                file.path,
            )
            if before is not None and before.definition() == fresh.definition():
                continue
            if before is not None:
                fresh = replace(fresh, fired=before.fired, last_task=before.last_task)
            await self._keep(fresh)
        for name, one in list(self.all.items()):
            if one.file is not None and name not in there:
                await self.remove(name)

    async def arm_all(self) -> None:
        """Have systemd's timers as the schedules are. A timer that is right already goes on."""
        if self._api.launcher_mode == "process":
            return
        for one in list(self.all.values()):
            try:
                await self.arm(one)
            except LauncherError as error:
                self.errors[one.name] = str(error)
                log.error("Schedule %s: %s", one.name, error)

    async def arm(self, one: Schedule) -> None:
        """Start, change or stop its timer. Raises LauncherError, with systemd's words."""
        if not one.enabled:
            await self._engine.launcher.insist("untimer", name=one.name)
            return
        await self._engine.launcher.insist(
            "timer",
            name=one.name,
            calendar=list(one.calendar),
            persistent=one.persistent,
            randomized_delay_usec=one.randomized_delay_usec,
        )
        self.errors.pop(one.name, None)

    async def add(self, one: Schedule) -> None:
        """Keep a new one, or another in its place. Raises InvalidSpec, StorageError."""
        try:
            await self.arm(one)
        except LauncherError as error:
            raise InvalidSpec(field="calendar", reason=str(error)) from None
        await self._keep(one)

    async def _keep(self, one: Schedule) -> None:
        await self._engine.writer.write([PutSchedule(one.name, asdict(one))], must=False)
        self.all[one.name] = one

    async def remove(self, name: str) -> None:
        """Forget one, and stop its timer. Raises StorageError."""
        await self._engine.writer.write([RemoveSchedule(name)], must=False)
        self.all.pop(name, None)
        self.errors.pop(name, None)
        try:
            await self._engine.launcher.insist("untimer", name=name)
        except LauncherError as error:
            log.warning("Schedule %s: its timer could not be stopped: %s", name, error)

    async def fire(self, name: str, trigger: int | None) -> int | None:
        """Start its task; the id, or None where the last one still runs. Raises what Start does."""
        one = self.all[name]
        if trigger is not None and trigger == one.fired:
            return one.last_task
        from bgtaskd.daemon.api import accept, new_task

        engine = self._engine
        running = engine.live.get(one.last_task) if one.last_task is not None else None
        if running is not None and one.overlap == "skip":
            log.info("Schedule %s: skipped, for task %d has not ended", name, running.id)
            await self._keep(replace(one, fired=trigger or one.fired))
            return None
        user = pwd.getpwuid(one.owner_uid)
        given = {"name": name, **one.spec}
        if running is not None:
            given |= {"after": [running.id], "after_result": "any-result"}
        spec = read_spec(given, engine.config, user.pw_name)
        task = new_task(engine, one.owner_uid, user, spec)
        fired = replace(one, fired=trigger or one.fired, last_task=task.id)
        self.all[name] = fired  # the same call, once more, must wait for no commit to be known
        try:
            await accept(self._api, task, {}, PutSchedule(name, asdict(fired)))
        except BaseException:
            self.all[name] = one
            raise
        if running is not None and one.overlap == "replace":
            try:
                await engine.stop(running.id, StopReason.USER)
            except (IllegalTransition, KeyError):
                pass  # it has ended meanwhile
        return task.id


def _schedule(body: Mapping[str, Any]) -> Schedule:
    return Schedule(**{**body, "calendar": tuple(body["calendar"])})


# --- operations ----------------------------------------------------------------------------------------


def _mine(api: Api, peer: Peer, name: str) -> Schedule:
    one = api.schedules.all.get(name)
    if one is None:
        raise NoSuchSchedule(name=name[:64])
    if peer.uid != one.owner_uid and not api.policy.is_admin(peer):
        raise PermissionDenied(reason=f"schedule {name} belongs to another user")
    return one


async def add_schedule(api: Api, call: Call) -> Reply:
    """Make a schedule of the caller's."""
    given = call.parameters["schedule"]
    name, calendar = given["name"], tuple(given["calendar"])
    if api.launcher_mode == "process":
        raise InvalidSpec(field="calendar", reason="schedules are systemd's; this daemon has none")
    if not NAME.fullmatch(name):
        raise InvalidSpec(field="name", reason="letters, digits, _ and - only, 64 at most")
    if not 1 <= len(calendar) <= CALENDARS_MAX or any(len(one) > 200 for one in calendar):
        raise InvalidSpec(field="calendar", reason=f"must be 1 to {CALENDARS_MAX} expressions")
    overlap = given.get("overlap") or "skip"
    if overlap not in OVERLAPS:
        raise InvalidSpec(field="overlap", reason=f"must be one of {', '.join(OVERLAPS)}")
    delay = given.get("randomized_delay_usec") or 0
    if not 0 <= delay < 1 << 53:
        raise InvalidSpec(field="randomized_delay_usec", reason="must not be negative")
    spec = {key: value for key, value in given["spec"].items() if value is not None}
    for field in ("secrets", "after", "user", "merge_key", "http"):
        if field in spec:
            raise InvalidSpec(field=f"spec.{field}", reason="has no meaning in a schedule")
    user = pwd.getpwuid(call.peer.uid)
    api.policy.run_as(call.peer, None)
    read_spec({"name": name, **spec}, api.engine.config, user.pw_name)
    before = api.schedules.all.get(name)
    if before is not None:
        _mine(api, call.peer, name)
        if before.file is not None:
            raise _in_file(before)
    elif sum(one.owner_uid == call.peer.uid for one in api.schedules.all.values()) >= OF_USER_MAX:
        raise TooManyRequests(reason=f"you have {OF_USER_MAX} schedules already")
    one = Schedule(
        name,
        call.peer.uid if before is None else before.owner_uid,
        calendar,
        spec,
        given.get("persistent") or False,
        delay,
        overlap,
        fired=None if before is None else before.fired,
        last_task=None if before is None else before.last_task,
    )
    await api.schedules.add(one)
    return {}


async def remove_schedule(api: Api, call: Call) -> Reply:
    """Forget a schedule."""
    one = _mine(api, call.peer, call.parameters["name"])
    if one.file is not None:
        raise _in_file(one)
    await api.schedules.remove(one.name)
    return {}


async def enable_schedule(api: Api, call: Call) -> Reply:
    """Stop or start a schedule's timer."""
    one = _mine(api, call.peer, call.parameters["name"])
    if one.file is not None:
        raise _in_file(one)
    await api.schedules.add(replace(one, enabled=call.parameters["enabled"]))
    return {}


async def fire_schedule(api: Api, call: Call) -> Reply:
    """Start a schedule's task: what its timer calls, and anybody who may."""
    name = call.parameters["name"]
    if not api.is_self(call.peer):
        _mine(api, call.peer, name)
    elif name not in api.schedules.all:
        raise NoSuchSchedule(name=name[:64])
    trigger = None
    if call.parameters.get("timer"):
        trigger = (await _times(api, [name])).get(name, {}).get("last")
    try:
        return {"id": await api.schedules.fire(name, trigger)}
    except BgtaskdError as error:
        log.error("Schedule %s: its task was not started: %s", name, error)
        raise


async def schedules(api: Api, call: Call) -> Reply:
    """The caller's schedules."""
    mine = [
        one
        for _, one in sorted(api.schedules.all.items())
        if one.owner_uid == call.peer.uid or api.policy.is_admin(call.peer)
    ]
    times = await _times(api, [one.name for one in mine])
    return {"schedules": [_shown(api, one, times.get(one.name)) for one in mine]}


async def _times(api: Api, names: list[str]) -> dict[str, dict[str, int | None]]:
    """When their timers will elapse next, and did last. Raises LauncherFailed."""
    if api.launcher_mode == "process":
        return {}
    try:
        found = await api.engine.launcher.insist("timers", names=names)
    except LauncherError as error:
        raise LauncherFailed(reason=str(error)) from None
    times: dict[str, dict[str, int | None]] = found["timers"]
    return times


def _shown(api: Api, one: Schedule, times: Mapping[str, int | None] | None) -> dict[str, Any]:
    try:
        user = pwd.getpwuid(one.owner_uid).pw_name
    except KeyError:
        user = str(one.owner_uid)
    return {
        "name": one.name,
        "user": user,
        "calendar": list(one.calendar),
        "persistent": one.persistent,
        "randomized_delay_usec": one.randomized_delay_usec,
        "overlap": one.overlap,
        "enabled": one.enabled,
        "file": one.file,
        "argv": list(one.spec.get("argv", ())),
        "next": (times or {}).get("next"),
        "last": (times or {}).get("last"),
        "last_task": one.last_task,
        "error": api.schedules.errors.get(one.name),
    }


def _in_file(one: Schedule) -> InvalidSpec:
    return InvalidSpec(field="name", reason=f"the schedule is kept in {one.file}: change it there")
