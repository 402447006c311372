# SPDX-License-Identifier: LGPL-2.1-or-later
"""Long-living tasks as the launcher has them: their sockets, and that they are what root has written down."""

from __future__ import annotations

import grp
import json
import os
import pwd
from collections.abc import Callable, Mapping
from typing import Any, Final

from bgtaskd.launcher.messages import BadMessage, Launch, text
from bgtaskd.launcher.policy import NotAllowed
from bgtaskd.launcher.sockets import Sockets
from bgtaskd.model import WORKER
from bgtaskd.workers import NAME, WorkerFile, load_worker, path_of

Answer = Callable[[dict[str, Any]], None]
SOCKETS_MAX: Final = 512


class Workers:
    """Reads each file again whenever it is asked: it happens rarely, and no old one is ever followed."""

    def __init__(self, directory: str, sockets: Sockets, system: bool) -> None:
        """``system``: files must be root's."""
        self._directory = directory
        self._sockets = sockets
        self._system = system
        self._awaited: dict[str, Answer] = {}

    def check(self, launch: Launch) -> None:
        """Raises NotAllowed unless the launch is what its file says."""
        if launch.kind != WORKER:
            if launch.worker is not None:
                raise BadMessage("worker", "is for kind worker")
            return
        one = self._definition(launch.worker or "")
        try:
            handover = json.loads(launch.handover or "{}")
            handed = (handover.get("target"), tuple(handover.get("import_path", ())))
        except (ValueError, AttributeError, TypeError):
            handed = (None, ())
        asked = (
            *(launch.user, launch.argv, dict(launch.env), launch.cwd, launch.queue),
            *(dict(launch.properties), *handed),
        )
        told = (
            *(one.user, one.argv, dict(one.env), one.cwd, one.queue),
            *(dict(one.properties), one.target, one.import_path),
        )
        if asked != told:
            raise NotAllowed(f"this is not what {one.path} says; reload bgtaskd.service")

    def socket_of(self, launch: Launch) -> int | None:
        """The descriptor on which the task is called, if it is to have one."""
        sock = None if launch.worker is None else self._sockets.get(launch.worker)
        return None if sock is None else sock.fileno()

    def ensure(self, message: Mapping[str, Any], answer: Answer) -> None:
        """The socket of a synchronous task. Raises BadMessage, NotAllowed, OSError."""
        one = self._definition(text(message, "name", 64))
        if one.type != "sync":
            raise BadMessage("name", "only a task of type sync has a socket")
        if len(self._sockets.names()) >= SOCKETS_MAX:
            raise BadMessage("name", f"there are {SOCKETS_MAX} sockets already")
        owner, group = os.geteuid(), -1
        if self._system:
            try:
                owner, group = pwd.getpwnam(one.user).pw_uid, grp.getgrnam(one.group).gr_gid
            except KeyError as error:
                raise NotAllowed(f"{one.path}: {error.args[0]}") from None
        answer({"ok": {"fresh": self._sockets.ensure(one.name, owner, group, one.mode)}})

    def drop(self, message: Mapping[str, Any], answer: Answer) -> None:
        """All sockets but these are not needed any more. Raises BadMessage."""
        kept = message.get("keep")
        if not isinstance(kept, list):
            raise BadMessage("keep", "a list of names")
        for name in self._sockets.names():
            if name not in kept:
                self._sockets.drop(name)
                self._awaited.pop(name, None)
        answer({"ok": {}})

    def await_call(self, message: Mapping[str, Any], answer: Answer) -> None:
        """Answer once somebody calls. Raises BadMessage."""
        name = text(message, "name", 64)
        if self._sockets.get(name) is None:
            raise BadMessage("name", "there is no such socket")
        self._awaited[name] = answer

    def watched(self) -> dict[int, Callable[[], None]]:
        """Descriptors to poll, and what to call when they are readable."""
        out: dict[int, Callable[[], None]] = {}
        for name in self._awaited:
            sock = self._sockets.get(name)
            if sock is not None:
                out[sock.fileno()] = lambda name=name: self._called(name)  # type: ignore[misc]
        return out

    def _called(self, name: str) -> None:
        self._awaited.pop(name)({"ok": {}})

    def _definition(self, name: str) -> WorkerFile:
        if not NAME.fullmatch(name):
            raise BadMessage("name", "letters, digits and _ only, 64 at most")
        path = path_of(name, self._directory)
        one, errors = load_worker(path, root_owned=self._system)
        if one is None:
            raise NotAllowed(str(errors[0]) if errors else f"there is no {path}")
        return one
