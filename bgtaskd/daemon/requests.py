# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tasks of kind http: which app, may the caller, what is kept where, and what the task's process is handed.

A request's headers and cookies are somebody's session: they travel as one of the task's secrets, and are
gone when it ends. All else is in the task's spec, for whoever may see the task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from bgtaskd.apps import App
from bgtaskd.daemon.policy import Policy
from bgtaskd.daemon.requestspec import check_request, merge_key, session_of
from bgtaskd.errors import InvalidSpec, PermissionDenied
from bgtaskd.model import Task
from bgtaskd.protocol.peer import Peer
from bgtaskd.units import HTTP_ARGV

HIDDEN: Final = "http"
"""What the secret with headers and cookies is called."""
PRELOAD: Final = ("bgtaskd.httptask.program",)


@dataclass
class Requests:
    """The apps that are known, and how the task's process is run."""

    apps: Mapping[str, App] = field(default_factory=dict)
    argv: tuple[str, ...] = HTTP_ARGV
    socket: str | None = None
    """Where the task's process reports; None: at the system's usual place."""

    def prepare(
        self, policy: Policy, peer: Peer, given: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """A caller's spec as it is checked on and kept, and its secrets.

        Raises InvalidSpec, PermissionDenied.
        """
        for name in ("user", "secrets"):
            if given.get(name):
                raise InvalidSpec(
                    field=name, reason="has no meaning for a request: see http.headers"
                )
        asked = given.get("http")
        request = check_request(asked)
        assert asked is not None  # or it would have been refused
        app = self.choose(policy, peer, request.get("app"))
        request["app"] = app.name
        session = session_of(asked)
        secrets = {HIDDEN: json.dumps(session)} if session else {}
        spec = {**given, "http": request, "secrets": secrets}
        if given.get("merge_key") is None and asked.get("merge") is not False:
            spec["merge_key"] = merge_key(app.key, request, session)
        return spec, secrets

    def choose(self, policy: Policy, peer: Peer, name: str | None) -> App:
        """The app of this name; without one, the only one that the caller may use.

        Raises InvalidSpec, PermissionDenied.
        """
        allowed = [one for one in self.apps.values() if policy.may_request(peer, one)]
        words = ", ".join(one.name for one in allowed)
        if name is None:
            if len(allowed) == 1:
                return allowed[0]
            reason = f"must be one of {words}" if allowed else "there is none that you may request"
            raise InvalidSpec(field="http.app", reason=f"{reason} (/etc/bgtaskd/apps.d)")
        if any(one.name == name for one in allowed):
            return self.apps[name]
        if name in self.apps:
            reason = f"requesting app {name} needs an entry under users: in apps.d/{name}.yaml"
            raise PermissionDenied(reason=reason)
        reason = f"there is no app {name[:64]!r} in /etc/bgtaskd/apps.d; you may request: {words or 'none'}"
        raise InvalidSpec(field="http.app", reason=reason)

    def forked(self, task: Task) -> Task:
        """The task as Templates must see it: of one user, with modules to load, whoever it is for."""
        spec = replace(task.spec, argv=self.argv, preload=PRELOAD)
        return replace(task, owner_uid=task.uid, spec=spec)

    def handover(self, task: Task, secrets: Mapping[str, str]) -> dict[str, Any]:
        """All that the task's process must know. Raises KeyError where the app is gone."""
        assert task.spec.http is not None
        app = self.apps[task.spec.http["app"]]
        return {
            "app": app.name,
            "base_url": app.base_url,
            "unix_socket": app.unix_socket,
            "key": app.key.hex(),
            "ca_file": app.ca_file,
            "verify_tls": app.verify_tls,
            "timeout_usec": app.timeout_usec,
            "id": task.id,
            "attempt": task.attempt,
            "request": dict(task.spec.http),
            "headers": {},
            "cookies": {},
            **json.loads(secrets.get(HIDDEN, "{}")),
            "socket": self.socket,
        }
