# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who is at the other end: uid, pid and groups, as the kernel has them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHOW = """
import socket
from bgtaskd.protocol.peer import peer_of
one, other = socket.socketpair()
peer = peer_of(one)
print(peer.uid, peer.gid, *sorted(peer.groups))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root may choose its groups")
@pytest.mark.parametrize("groups", [[], [4242, 4243], [*range(5000, 5256)]], ids=len)
def test_the_groups_of_a_caller(groups: list[int]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHOW],
        cwd=Path(__file__).parents[2],
        extra_groups=groups,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    said = [int(one) for one in done.stdout.split()]
    assert said[:2] == [0, 0]
    assert set(said[2:]) == {0, *groups}
