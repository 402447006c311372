# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a supervisor is given for one attempt: everything worked out here, so that it need not."""

from __future__ import annotations

import json
import marshal
import time
from collections.abc import Mapping
from typing import Any, Final

from bgtaskd.launcher.messages import Launch, parsed
from bgtaskd.launcher.places import Places
from bgtaskd.launcher.users import User
from bgtaskd.logs.journal import encode
from bgtaskd.model import TEMPLATE
from bgtaskd.units import ANONYMOUS_USER, scope_name

DEFAULT_PATH: Final = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
CARD: Final = ("name", "kind", "queue", "uid", "user", "owner_uid")
STDIN: Final = 0
LISTEN: Final = 3
"""sd_listen_fds(3)."""


def build(
    launch: Launch, user: User, places: Places, boot_id: str, *, has_socket: bool = False
) -> dict[str, Any]:
    """The request, as Supervisor.register() describes it. ``has_socket``: one goes with it."""
    unit = scope_name(launch.id, launch.attempt)
    properties = parsed(launch.properties)
    runtime_max = properties.get("RuntimeMaxSec")
    values = {name: one.value for name, one in properties.items() if one.systemd is None}
    identity = {
        "id": launch.id,
        "attempt": launch.attempt,
        "unit": unit,
        "boot_id": boot_id,
        "card": {name: getattr(launch, name) for name in CARD},
    }
    handover = launch.handover
    listens = launch.kind == TEMPLATE or has_socket
    program = {
        "argv": list(launch.argv),
        "env": _environment(launch, user, places, listens),
        "cwd": launch.cwd,
        "uid": user.uid,
        "gid": user.gid,
        "groups": user.groups,
        "limits": [value for name, value in values.items() if name.startswith("Limit")],
        "umask": values.get("UMask", 0o022),
        "nice": values.get("Nice"),
        "oom_score_adjust": values.get("OOMScoreAdjust"),
        "private_tmp": places.has_scopes and user.name == ANONYMOUS_USER,
        "fds": [STDIN] * launch.stdin
        + [LISTEN] * listens
        + [LISTEN + listens] * (handover is not None),
    }
    return {
        "id": launch.id,
        "attempt": launch.attempt,
        "unit": unit,
        "uid": launch.uid,
        "identity": json.dumps(identity)[1:-1],
        "journal": _journal_fields(launch, unit if places.has_scopes else None),
        "program": marshal.dumps(program),
        "handover": None if handover is None else handover.encode("utf-8", "replace"),
        "stdin": launch.stdin,
        "listen": places.template(launch.id) if launch.kind == TEMPLATE else None,
        "template": None if launch.template is None else places.template(launch.template),
        "credentials": {
            name: value.encode("utf-8", "replace") for name, value in launch.secrets.items()
        },
        "timeout_usec": launch.timeout_usec,
        "stall_timeout_usec": launch.stall_timeout_usec,
        "runtime_max_usec": None if runtime_max is None else runtime_max.value,
        "output_to": launch.output_to,
        "output_cap": launch.output_cap,
        "journal_burst": launch.journal_burst,
        "asked": time.monotonic(),
    }


def _environment(launch: Launch, user: User, places: Places, listens: bool) -> Mapping[str, str]:
    env = {
        "PATH": DEFAULT_PATH,
        "LANG": "C.UTF-8",
        "HOME": user.home,
        "USER": user.name,
        "LOGNAME": user.name,
        "SHELL": user.shell,
        **launch.env,
        "BGTASK_ID": str(launch.id),
        "BGTASK_NAME": launch.name,
        "BGTASK_ATTEMPT": str(launch.attempt),
        "NOTIFY_SOCKET": places.notify(launch.id, launch.attempt),
    }
    if launch.secrets:
        env["CREDENTIALS_DIRECTORY"] = places.credentials(launch.id, launch.attempt)
    if launch.handover is not None:
        env["BGTASK_HANDOVER_FD"] = str(LISTEN + listens)
    if listens:
        env["LISTEN_FDS"] = "1"
    return env


def _journal_fields(launch: Launch, unit: str | None) -> bytes:
    name = launch.name.encode("utf-8", "surrogateescape")
    fields = [
        (b"BGTASK_ID", b"%d" % launch.id),
        (b"BGTASK_NAME", name),
        (b"BGTASK_ATTEMPT", b"%d" % launch.attempt),
        (b"BGTASK_QUEUE", launch.queue.encode()),
        (b"SYSLOG_IDENTIFIER", name),
    ]
    if unit is not None:
        fields.append((b"OBJECT_SYSTEMD_UNIT", unit.encode()))
    return encode(fields)
