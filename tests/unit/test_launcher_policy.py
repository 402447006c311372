# SPDX-License-Identifier: LGPL-2.1-or-later
"""Root's own check: what knows an app's key runs as one user, as it is written here, and nothing else does."""

from __future__ import annotations

from typing import Any

import pytest

from bgtaskd.launcher.messages import read_launch
from bgtaskd.launcher.policy import NotAllowed, UidPolicy
from bgtaskd.launcher.users import User
from bgtaskd.model import TEMPLATE
from bgtaskd.units import HTTP, HTTP_ARGV, HTTP_USER
from tests.unit.test_launcher_input import GOOD

REQUESTS = User(990, 990, (990,), HTTP_USER, "/nonexistent", "/usr/sbin/nologin")
ALICE = User(1000, 1000, (1000,), "alice", "/home/alice", "/bin/bash")
REQUEST = {**GOOD, "kind": HTTP, "argv": list(HTTP_ARGV), "env": {}, "cwd": None, "handover": "{}"}


def check(user: User, **changes: Any) -> None:
    UidPolicy(system=True).check(user, read_launch({**REQUEST, **changes}))


def test_a_request_runs_as_its_user() -> None:
    check(REQUESTS)
    check(REQUESTS, template=7)
    check(REQUESTS, kind=TEMPLATE)


@pytest.mark.parametrize(
    ("user", "changes"),
    [
        (ALICE, {}),
        (REQUESTS, {"kind": "command"}),
        (REQUESTS, {"kind": "python"}),
        (REQUESTS, {"kind": TEMPLATE, "env": {"PYTHONPATH": "/tmp"}}),
        (REQUESTS, {"argv": ["sh"]}),
        (REQUESTS, {"argv": [*HTTP_ARGV, "more"]}),
        (REQUESTS, {"argv": ["python3", *HTTP_ARGV[1:]]}),
        (REQUESTS, {"env": {"LD_PRELOAD": "/tmp/x.so"}}),
        (REQUESTS, {"cwd": "/tmp"}),
        (REQUESTS, {"stdin": True}),
        (REQUESTS, {"secrets": {"a": "b"}}),
    ],
)
def test_anything_else_is_refused(user: User, changes: dict[str, Any]) -> None:
    with pytest.raises(NotAllowed, match="kind http"):
        check(user, **changes)
