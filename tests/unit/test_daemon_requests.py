# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a caller may say of a request, who may, and which two requests are one."""

from __future__ import annotations

import os
import pwd
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgtaskd.apps import App
from bgtaskd.client.task import request_of
from bgtaskd.config import PolicyConfig, load_config
from bgtaskd.daemon.policy import Policy
from bgtaskd.daemon.requests import HIDDEN, Requests
from bgtaskd.daemon.requestspec import check_request, merge_key, session_of
from bgtaskd.daemon.spec import read_spec
from bgtaskd.errors import InvalidSpec, PermissionDenied
from bgtaskd.model import State, Task, TaskSpec
from bgtaskd.protocol.peer import Peer

KEY = b"k" * 32
CONFIG = load_config("/nonexistent", "/nonexistent")
ME = pwd.getpwuid(os.getuid()).pw_name
DAEMON, GAMES = pwd.getpwnam("daemon").pw_uid, pwd.getpwnam("games").pw_uid
SHOP = App("shop", "http://localhost", KEY, "daemon", users=("games",))
BANK = App("bank", "http://localhost", KEY, "daemon", groups=("mail",))
ASK = {"method": "GET", "path": "/a"}
TEXT = st.text("ab=&%", max_size=3)
REQUESTS = st.fixed_dictionaries(
    {"method": st.sampled_from(["GET", "POST"]), "path": TEXT.map("/".__add__)},
    optional={"query": TEXT, "body": TEXT, "body_type": TEXT},
)
PAIRS = st.dictionaries(st.sampled_from(["a", "b", "Authorization"]), TEXT, min_size=1)
SESSIONS = st.fixed_dictionaries({}, optional={"headers": PAIRS, "cookies": PAIRS})


def peer(uid: int, *groups: int) -> Peer:
    return Peer(pid=1, uid=uid, gid=uid, groups=frozenset(groups))


def prepared(asked: dict[str, Any], uid: int = GAMES, **spec: Any) -> tuple[TaskSpec, Any]:
    policy = Policy(PolicyConfig(), apps={"shop": SHOP})
    given, hidden = Requests({"shop": SHOP}).prepare(
        policy, peer(uid), {"argv": [], "kind": "http", "http": asked, **spec}
    )
    return read_spec(given, CONFIG, ME), hidden


def refused(asked: dict[str, Any], **spec: Any) -> str:
    with pytest.raises(InvalidSpec) as error:
        prepared({**ASK, **asked}, **spec)
    return str(error.value)


def test_a_session_is_a_secret_and_all_else_is_kept() -> None:
    asked = {**ASK, "headers": {"X-A": "1"}, "cookies": {"sid": "2", "b": "3"}, "body": "x"}
    spec, hidden = prepared(asked)
    assert spec.http == {"app": "shop", "method": "GET", "path": "/a", "body": "x"}
    assert spec.secrets == (HIDDEN,)
    assert hidden == {HIDDEN: '{"headers": {"X-A": "1"}, "cookies": {"sid": "2", "b": "3"}}'}
    assert spec.name == "GET /a"
    assert TaskSpec.from_json(spec.to_json()) == spec
    task = Task(3, spec, 0, "x", GAMES, State.STARTING, 0, 0, attempt=1)
    handed = Requests({"shop": SHOP}).handover(task, hidden)
    assert handed["cookies"] == {"sid": "2", "b": "3"}
    assert list(handed["cookies"]) == ["sid", "b"]
    assert bytes.fromhex(handed["key"]) == KEY


def test_a_request_without_a_session_has_no_secret() -> None:
    for asked in (
        ASK,
        {**ASK, "as_user": False, "cookies": {"a": "b"}, "headers": {"cookie": "x"}},
    ):
        spec, hidden = prepared(asked)
        assert (spec.secrets, hidden) == ((), {})


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"method": "get"}, "http.method"),
        ({"method": "TRACE"}, "http.method"),
        ({"path": "a"}, "http.path"),
        ({"path": "//evil.example/a"}, "http.path"),
        ({"path": "/a b"}, "http.path"),
        ({"path": "/a?b"}, "http.path"),
        ({"path": "/a#b"}, "http.path"),
        ({"path": "/%0a"}, "http.path"),
        ({"path": "/%zz"}, "http.path"),
        ({"path": "/a/%2E./b"}, "http.path"),
        ({"path": "/a%2f..%2fb"}, "http.path"),
        ({"path": "/" + "a" * 4096}, "http.path"),
        ({"query": "a b"}, "http.query"),
        ({"query": "a\r\nX: y"}, "http.query"),
        ({"query": "a#b"}, "http.query"),
        ({"query": "a" * 20000}, "http.query"),
        ({"body_type": "a\nb"}, "http.body_type"),
        ({"body": "x" * 300_000}, "http: must be at most"),
        ({"body": "?", "encoding": "base64"}, "no base64"),
        ({"body": "?", "encoding": "rot13"}, "http.encoding"),
        ({"headers": {"A b": "1"}}, "http.headers"),
        ({"headers": {"A": "1\r\nX-Bgtask-Id: 3"}}, "http.headers"),
        ({"headers": {"Host": "evil"}}, "not the caller's"),
        ({"headers": {"connection": "x"}}, "not the caller's"),
        ({"headers": {"X_BGTASK_ID": "3"}}, "not the caller's"),
        ({"headers": {"Content-Length": "3"}}, "not the caller's"),
        ({"headers": {"content_length": "3"}}, "not the caller's"),
        ({"headers": {"X-A": "1", "x_a": "2"}}, "twice"),
        ({"headers": {f"X-{one}": "1" for one in range(101)}}, "at most 100"),
        ({"headers": {"X-A": "x" * 70000}}, "at most 65536"),
        ({"cookies": {"a": "b;c"}}, "http.cookies"),
        ({"cookies": {"a=": "b"}}, "http.cookies"),
        ({"cookies": {"a": "b"}, "headers": {"Cookie": "c=d"}}, "not both"),
        ({"app": "nix"}, "you may request: shop"),
    ],
)
def test_a_wrong_field_is_named(asked: dict[str, Any], reason: str) -> None:
    assert reason in refused(asked)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user", "games"),
        ("secrets", {"a": "b"}),
        ("env", {"LD_PRELOAD": "/tmp/x.so"}),
        ("cwd", "/tmp"),
        ("argv", ["sh"]),
        ("stdin", True),
        ("target", "a:b"),
    ],
)
def test_nothing_of_the_process_is_the_callers(field: str, value: Any) -> None:
    assert refused({}, **{field: value}).startswith(field)


def test_a_command_has_no_request() -> None:
    with pytest.raises(InvalidSpec, match="kind http"):
        read_spec({"argv": ["true"], "http": ASK}, CONFIG, ME)
    with pytest.raises(InvalidSpec, match="which request"):
        read_spec({"argv": [], "kind": "http"}, CONFIG, ME)


def test_who_may_request_what() -> None:
    apps = {"shop": SHOP, "bank": BANK}
    policy = Policy(PolicyConfig(), apps=apps)
    requests = Requests(apps)
    mail = 8  # Debian's own, and nobody's here
    assert requests.choose(policy, peer(GAMES), None) is SHOP
    assert requests.choose(policy, peer(4, mail), None) is BANK
    assert requests.choose(policy, peer(0), "bank") is BANK
    assert requests.choose(policy, peer(DAEMON), "bank") is BANK
    with pytest.raises(InvalidSpec, match="one of shop, bank"):
        requests.choose(policy, peer(DAEMON), None)
    with pytest.raises(PermissionDenied, match=r"apps\.d/bank\.yaml"):
        requests.choose(policy, peer(GAMES), "bank")
    with pytest.raises(InvalidSpec, match="none that you may"):
        requests.choose(policy, peer(4), None)


def test_the_app_sees_and_steers_its_tasks_and_no_others() -> None:
    policy = Policy(PolicyConfig(), apps={"shop": SHOP})
    spec, _ = prepared(ASK)
    task = Task(1, spec, 5, "x", GAMES, State.RUNNING, 0, 0)
    assert policy.may_see(peer(DAEMON), task)
    assert policy.may_steer(peer(DAEMON), task)
    assert not policy.may_see(peer(4), task)
    other = Task(1, TaskSpec(argv=("true",)), 5, "x", GAMES, State.RUNNING, 0, 0)
    assert not policy.may_see(peer(DAEMON), other)
    assert not Policy(PolicyConfig()).may_see(peer(DAEMON), task)


@given(REQUESTS, SESSIONS, REQUESTS, SESSIONS)
def test_only_the_same_request_has_the_same_key(
    one: dict[str, Any], session: dict[str, Any], other: dict[str, Any], others: dict[str, Any]
) -> None:
    same = (one, session) == (other, others)
    assert (merge_key(KEY, one, session) == merge_key(KEY, other, others)) == same
    backwards = dict(reversed(one.items()))
    assert merge_key(KEY, backwards, session) == merge_key(KEY, one, session)
    assert merge_key(b"x" * 32, one, session) != merge_key(KEY, one, session)


def test_a_merge_key_is_made_unless_it_is_given_or_refused() -> None:
    assert (prepared(ASK)[0].merge_key or "").startswith("http:")
    assert prepared({**ASK, "merge": False})[0].merge_key is None
    assert prepared(ASK, merge_key="mine")[0].merge_key == "mine"
    anonymous = {**ASK, "as_user": False, "cookies": {"a": "b"}}
    assert prepared(anonymous)[0].merge_key == prepared(ASK)[0].merge_key


def client_request(method: str, path: str, **options: Any) -> dict[str, Any]:
    given: dict[str, Any] = dict.fromkeys(
        ("app", "query", "data", "json", "body", "headers", "cookies")
    )
    return request_of(method, path, **{**given, "as_user": True, "merge": True, **options})


SHORT = st.text(max_size=20)
QUERIES = st.dictionaries(SHORT, SHORT | st.integers() | st.lists(SHORT, max_size=5), max_size=5)


@given(st.text(max_size=100), QUERIES)  # as long as may be, percent-encoded, at most
def test_what_the_client_makes_of_any_text_passes_or_is_refused(
    text: str, query: dict[str, Any]
) -> None:
    try:
        made = client_request("post", "/" + text, query=query)
        kept = check_request(made)
    except UnicodeEncodeError:  # half a surrogate pair
        return
    except InvalidSpec as error:
        assert error.parameters["field"] in ("http.path", "http.query")
        assert any(one in text for one in ("/", ".", "\\", "%")) or not text.isprintable()
        return
    assert kept["path"].isascii()


def test_the_clients_bodies() -> None:
    form = client_request("POST", "/a?b=c", query={"d": [1, 2]}, data={"e": "ü"})
    assert (form["query"], form["body"]) == ("b=c&d=1&d=2", "e=%C3%BC")
    assert client_request("PUT", "/", json={"a": None})["body_type"] == "application/json"
    assert client_request("PUT", "/", body=b"\xff")["encoding"] == "base64"
    given = {"content-type": "text/csv", "X-A": "1"}
    made = client_request("PUT", "/", body="a,b", headers=given)
    assert (made["body_type"], made["headers"]) == ("text/csv", {"X-A": "1"})
    assert "content-type" in given
    with pytest.raises(TypeError, match="one body"):
        client_request("PUT", "/", body="a", data={"b": "c"})


def test_sessions_keep_their_order_and_ours_are_ours() -> None:
    assert list(session_of({"cookies": {"b": "1", "a": "2"}})["cookies"]) == ["b", "a"]
