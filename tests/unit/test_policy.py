# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may do what."""

from __future__ import annotations

import pwd
from collections.abc import Iterator
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgtaskd.config import PolicyConfig, RunAsRule
from bgtaskd.daemon import policy as module
from bgtaskd.daemon.policy import Policy
from bgtaskd.errors import InvalidSpec, PermissionDenied
from bgtaskd.model import State, Task, TaskSpec
from bgtaskd.protocol.peer import Peer

REAL_GETPWNAM = pwd.getpwnam
NAMES = {0: "root", 1: "ann", 2: "bob", 3: "cid"}
GROUPS = {"bgtask-admin": 90, "builders": 91, "bgtask": 92}
UIDS = st.sampled_from(sorted(NAMES))
PEERS = st.builds(
    lambda uid, groups: Peer(uid=uid, gid=uid, pid=1, groups=frozenset(groups)),
    UIDS,
    st.sets(st.sampled_from([90, 91, 92])),
)
RULES = st.builds(
    RunAsRule,
    users=st.sets(st.sampled_from(["ann", "bob"]), max_size=1).map(tuple),
    groups=st.sets(st.just("builders"), max_size=1).map(tuple),
    run_as=st.sets(st.sampled_from(sorted(NAMES.values())), max_size=2).map(tuple),
)
CONFIGS = st.builds(
    PolicyConfig, allow_root=st.booleans(), run_as=st.lists(RULES, max_size=2).map(tuple)
)


def entry(uid: int) -> pwd.struct_passwd:
    return pwd.struct_passwd((NAMES[uid], "x", uid, uid, "", "/", "/bin/sh"))


@pytest.fixture(autouse=True, scope="module")
def users() -> Iterator[None]:
    uids = {name: uid for uid, name in NAMES.items()}
    with (
        patch.object(pwd, "getpwuid", entry),
        patch.object(pwd, "getpwnam", lambda name: entry(uids[name])),
        patch.object(module, "_gid", lambda name: GROUPS.get(name, -1)),
    ):
        yield


def task(uid: int, owner: int) -> Task:
    spec = TaskSpec(kind="command", name="x", argv=("x",), queue="default", user=NAMES[uid])
    return Task(1, spec, uid, NAMES[uid], owner, State.QUEUED, created=1, updated=1)


@given(PEERS, UIDS, UIDS)
def test_owner_and_administrators_steer_and_the_user_sees(peer: Peer, uid: int, owner: int) -> None:
    policy, one = Policy(PolicyConfig()), task(uid, owner)
    steers = peer.uid in (0, owner) or 90 in peer.groups
    assert policy.may_steer(peer, one) == steers
    assert policy.may_see(peer, one) == (steers or peer.uid == uid)


@given(PEERS)
def test_who_may_have_something_started_is_who_may_connect(peer: Peer) -> None:
    allowed = peer.uid == 0 or bool({90, 92} & set(peer.groups))
    assert Policy(PolicyConfig()).may_start(peer) is allowed
    assert Policy(PolicyConfig(), own_uid=peer.uid).may_start(peer)


@given(PEERS, CONFIGS, UIDS)
def test_nobody_runs_as_another_without_a_rule(peer: Peer, config: PolicyConfig, uid: int) -> None:
    ruled = any(
        NAMES[uid] in rule.run_as
        and (NAMES[peer.uid] in rule.users or ("builders" in rule.groups and 91 in peer.groups))
        for rule in config.run_as
    )
    may = ruled or (peer.uid in (0, uid) and (uid != 0 or config.allow_root))
    try:
        got = Policy(config).run_as(peer, NAMES[uid]).pw_uid
    except PermissionDenied:
        assert not may
    else:
        assert may
        assert got == uid


@given(PEERS)
def test_without_root_there_is_one_user_only(peer: Peer) -> None:
    policy = Policy(PolicyConfig(), own_uid=1)
    assert policy.is_admin(peer) == (peer.uid in (0, 1) or 90 in peer.groups)
    with pytest.raises(PermissionDenied):
        policy.run_as(peer, "bob")


@pytest.mark.parametrize("user", ["nobody-such", "a\0", "\ud800"])
def test_a_user_that_is_none(user: str) -> None:
    with (
        patch.object(pwd, "getpwnam", REAL_GETPWNAM),
        pytest.raises(InvalidSpec),
    ):
        Policy(PolicyConfig()).run_as(Peer(0, 0, 1, frozenset()), user)
