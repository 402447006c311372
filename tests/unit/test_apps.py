# SPDX-License-Identifier: LGPL-2.1-or-later
"""apps.d: what a file may say, and that a mistake in one is told with its place and harms no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bgtaskd.apps import KEYS, load_apps

KEY = "0123456789abcdef0123456789abcdef"
GOOD = f"""
base_url: https://shop.example:8443/app/
user: www-data
key: {KEY}
users: [alice]
groups: [staff]
unix_socket: /run/shop.sock
ca_file: /etc/ssl/shop.pem
verify_tls: false
timeout: 5min
page: {{title: Shop}}
"""
SHORT = f"base_url: http://localhost\nuser: alice\nkey: {KEY}\n"
VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.lists(st.integers())
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def save(tmp_path: Path, text: str, name: str = "shop.yaml", mode: int = 0o640) -> Path:
    path = tmp_path / name
    path.write_text(text)
    path.chmod(mode)
    return path


def mistakes(tmp_path: Path, text: str) -> list[tuple[int, str, str]]:
    save(tmp_path, text)
    found, errors = load_apps(str(tmp_path))
    assert found == {}
    return [(one.line, one.key, one.reason) for one in errors]


def test_a_file_is_an_app_of_its_name(tmp_path: Path) -> None:
    save(tmp_path, GOOD)
    found, errors = load_apps(str(tmp_path))
    assert errors == []
    one = found["shop"]
    assert (one.base_url, one.user, one.key) == (
        "https://shop.example:8443/app",
        "www-data",
        KEY.encode(),
    )
    assert (one.users, one.groups, one.unix_socket) == (("alice",), ("staff",), "/run/shop.sock")
    assert (one.ca_file, one.verify_tls, one.timeout_usec) == (
        "/etc/ssl/shop.pem",
        False,
        300_000_000,
    )
    assert one.page == {"title": "Shop"}
    assert KEY not in repr(one)


@pytest.mark.parametrize(
    ("text", "line", "key", "named"),
    [
        (SHORT + "base_ulr: x\n", 4, "base_ulr", "did you mean base_url"),
        (SHORT.replace("http://localhost", "ftp://localhost"), 1, "base_url", "https"),
        (SHORT.replace("localhost", "me:pw@localhost"), 1, "base_url", "no user"),
        (SHORT.replace("localhost", "localhost/?a=b"), 1, "base_url", "query"),
        (SHORT.replace("localhost", "localhost/a/../b"), 1, "base_url", "plain"),
        (SHORT.replace("localhost", "localhost:99999"), 1, "base_url", "URL"),
        (SHORT.replace("http://localhost", "localhost"), 1, "base_url", "http://"),
        (SHORT.replace("http://localhost", "HTTPS://localhost"), 1, "base_url", "https://"),
        ("user: alice\nkey: " + KEY, 0, "base_url", "missing"),
        (f"base_url: http://localhost\nkey: {KEY}\n", 0, "user", "missing"),
        ("base_url: http://localhost\nuser: alice\n", 0, "key", "key_file"),
        (SHORT + "key_file: /etc/key\n", 3, "key", "not both"),
        (SHORT.replace(KEY, KEY[:31]), 3, "key", "32 bytes"),
        (SHORT + "users: alice\n", 4, "users", "list of names"),
        (SHORT + "unix_socket: run/x\n", 4, "unix_socket", "absolute"),
        (SHORT + f"unix_socket: /{'x' * 107}\n", 4, "unix_socket", "107"),
        (SHORT + "verify_tls: maybe\n", 4, "verify_tls", "true or false"),
        (SHORT + "timeout: soon\n", 4, "timeout", "time span"),
        (SHORT + "page: 3\n", 4, "page", "mapping"),
    ],
)
def test_a_mistake_has_its_place(
    tmp_path: Path, text: str, line: int, key: str, named: str
) -> None:
    [(where, what, why)] = mistakes(tmp_path, text)
    assert (where, what) == (line, key)
    assert named in why
    assert KEY not in why


def test_a_mistake_in_one_harms_no_other(tmp_path: Path) -> None:
    save(tmp_path, SHORT, "good.yaml")
    save(tmp_path, "{", "bad.yaml")
    save(tmp_path, SHORT, "bad name.yaml")
    found, errors = load_apps(str(tmp_path))
    assert list(found) == ["good"]
    assert len(errors) == 2


def test_a_key_is_closed_to_others(tmp_path: Path) -> None:
    save(tmp_path, SHORT, mode=0o644)
    _, [error] = load_apps(str(tmp_path))
    assert (error.key, error.line) == ("key", 3)
    assert "chmod o=" in error.reason


def test_a_key_may_be_in_a_file_of_its_own(tmp_path: Path) -> None:
    secret = save(tmp_path, KEY + "\n", "shop.key")
    save(tmp_path, SHORT.replace(f"key: {KEY}", f"key_file: {secret}"), mode=0o644)
    found, errors = load_apps(str(tmp_path))
    assert (found["shop"].key, errors) == (KEY.encode(), [])
    secret.chmod(0o644)
    _, [error] = load_apps(str(tmp_path))
    assert error.key == "key_file"
    secret.unlink()
    _, [error] = load_apps(str(tmp_path))
    assert "No such file" in error.reason


@SHARED
@given(st.dictionaries(st.sampled_from(KEYS), VALUES))
def test_any_values_are_read_or_refused(tmp_path: Path, data: dict[str, object]) -> None:
    save(tmp_path, yaml.safe_dump(data))
    found, errors = load_apps(str(tmp_path))
    assert bool(found) != bool(errors)
