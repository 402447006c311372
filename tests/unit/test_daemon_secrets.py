# SPDX-License-Identifier: LGPL-2.1-or-later
"""Secrets in their files: kept, forgotten, and refused without a word of what they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgtaskd.daemon.secrets import Secrets, check_secrets
from bgtaskd.errors import InvalidSpec


def test_they_are_kept_until_they_are_forgotten(tmp_path: Path) -> None:
    kept = Secrets(str(tmp_path / "secrets"))
    kept.put(7, {"a": "one", "b": "zwei\nü"})
    kept.put(7, {"a": "one"})  # the same id again: nobody was told of the first
    kept.put(8, {"a": "two"})
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "secrets/7").stat().st_mode & 0o777 == 0o600
    assert kept.get(7) == {"a": "one"}
    kept.keep_only({8})
    assert (kept.get(7), kept.get(8)) == (None, {"a": "two"})
    kept.drop(8)
    kept.drop(8)
    assert kept.get(8) is None
    (tmp_path / "secrets/9").write_text("{half")
    assert kept.get(9) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"../up": "xyzzy"},
        {"": "xyzzy"},
        {".": "xyzzy"},
        {"a/b": "xyzzy"},
        {"a" * 65: "xyzzy"},
        {"a": "xyzzy" + "x" * 65_536},
        {"a": "xyzzy\ud800"},
        {str(number): "xyzzy" for number in range(65)},
    ],
    ids=range(8),
)
def test_a_refusal_names_no_secret(wrong: dict[str, str]) -> None:
    with pytest.raises(InvalidSpec) as refused:
        check_secrets(wrong)
    assert "xyzzy" not in str(refused.value)


@given(
    st.dictionaries(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,9}", fullmatch=True), st.text())
)
def test_names_that_files_can_have_pass(secrets: dict[str, str]) -> None:
    assert check_secrets(secrets) == tuple(sorted(secrets))
