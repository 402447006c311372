# SPDX-License-Identifier: LGPL-2.1-or-later
"""Any file is a configuration, or a list of mistakes with their places."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bgtaskd.config import Config, ConfigErrors, load_config
from bgtaskd.properties import (
    PROPERTIES,
    PropertyError,
    check_properties,
    parse_size,
    parse_timespan,
)

KEYS = st.sampled_from(
    ["queues", "default", "slots", "policy", "run_as", "properties", "MemoryMax", "output", "cap"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("1G"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def load(tmp_path: Path, text: str | bytes, root_owned: bool = False) -> Config:
    path = tmp_path / "bgtaskd.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(str(path), str(tmp_path / "conf.d"), root_owned=root_owned)


def mistakes(tmp_path: Path, text: str | bytes) -> list[tuple[int, str, str]]:
    with pytest.raises(ConfigErrors) as refused:
        load(tmp_path, text)
    return [(one.line, one.key, one.reason) for one in refused.value.errors]


@SHARED
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    try:
        load(tmp_path, data)
    except ConfigErrors as errors:
        assert errors.errors


@SHARED
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_yaml_is_read_or_refused(tmp_path: Path, data: dict[str, object]) -> None:
    try:
        load(tmp_path, yaml.safe_dump(data))
    except ConfigErrors as errors:
        assert all(one.reason for one in errors.errors)


def test_no_file_at_all_is_a_good_configuration() -> None:
    assert load_config("/nonexistent", "/nonexistent").queues["default"].slots >= 4


def test_the_shipped_file_is_all_defaults() -> None:
    shipped = Path(__file__).parents[2] / "etc" / "bgtaskd.yaml"
    assert load_config(str(shipped), "/none") == load_config("/none", "/none")


def test_every_mistake_is_named_with_its_line(tmp_path: Path) -> None:
    text = "queues:\n  a-b: {}\n  big:\n    slots: none\n    properties:\n      MemoryMax: lots\nquees: 1\n"
    found = mistakes(tmp_path, text)
    assert {(line, key) for line, key, _ in found} == {
        (2, "queues.a-b"),
        (4, "queues.big.slots"),
        (6, "queues.big.properties.MemoryMax"),
        (7, "quees"),
    }
    assert any("did you mean queues?" in reason for _, _, reason in found)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a: &x 1\nb: *x\n", "anchors"),
        ("output: 1\noutput: 2\n", "twice"),
        ("- a\n", "mapping"),
        ("a: [\n", "not YAML"),
        ("\0", "not YAML"),
        ("[" * 5000, "not YAML"),
        ("x" * (2 << 20), "larger"),
    ],
)
def test_what_is_no_configuration_is_refused(tmp_path: Path, text: str, word: str) -> None:
    assert any(word in reason for _, _, reason in mistakes(tmp_path, text))


def test_logs_of_others_are_named_where_a_package_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bgtaskd.config.registered_logs", lambda: ("loki", "mine"))
    assert load(tmp_path, "output: {to: file, also: [mine, loki]}").output_also == ("mine", "loki")
    key = "output.also"
    assert mistakes(tmp_path, "output: {also: [other]}") == [
        (1, key, "there is no log other; there are: loki, mine")
    ]
    for wrong, word in [
        ("output: {also: mine}", "list"),
        ("output: {also: [1]}", "list"),
        ("output: {also: [mine, mine]}", "once"),
        ("output: {to: journal, also: [mine]}", "file or both"),
    ]:
        assert [(one[1], word in one[2]) for one in mistakes(tmp_path, wrong)] == [(key, True)]


def test_conf_d_adds_and_changes(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "10.yaml").write_text("queues:\n  a:\n    slots: 3\n  b: {}\n")
    config = load(tmp_path, "queues:\n  a:\n    slots: 2\n    paused: true\n")
    assert (config.queues["a"].slots, config.queues["a"].paused) == (3, True)
    assert set(config.queues) == {"default", "a", "b"}


def test_what_others_may_write_is_no_policy_for_root(tmp_path: Path) -> None:
    load(tmp_path, "", root_owned=True)
    (tmp_path / "bgtaskd.yaml").chmod(0o666)
    with pytest.raises(ConfigErrors, match="owned by root"):
        load_config(str(tmp_path / "bgtaskd.yaml"), "/none", root_owned=True)


# --- properties --------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(PROPERTIES)), st.text(max_size=12))
def test_any_value_is_parsed_or_refused_by_name(name: str, value: str) -> None:
    try:
        check_properties({name: value})
    except PropertyError as error:
        assert error.name == name
        assert error.reason


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("MemoryMax", "512M", ("MemoryMax", "t", 512 << 20)),
        ("MemoryMax", "50%", ("MemoryMaxScale", "u", 0xFFFFFFFF // 2)),
        ("CPUQuota", "150%", ("CPUQuotaPerSecUSec", "t", 1_500_000)),
        ("TasksMax", "infinity", ("TasksMax", "t", 2**64 - 1)),
        ("RuntimeMaxSec", "1min 5s", ("RuntimeMaxUSec", "t", 65_000_000)),
        ("CPUWeight", "idle", ("CPUWeight", "t", 0)),
    ],
)
def test_systemd_is_told_what_it_expects(name: str, value: str, told: object) -> None:
    assert check_properties({name: value})[name].systemd == told


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MemoryMax", "lots"),
        ("MemoryMax", "-1"),
        ("MemoryMax", "101%"),
        ("CPUQuota", "50"),
        ("CPUQuota", "0%"),
        ("CPUWeight", "0"),
        ("LimitNOFILE", "20:10"),
        ("UMask", "999"),
        ("Nice", "20"),
        ("ExecStart", "/bin/sh"),
    ],
)
def test_what_systemd_would_not_take_is_refused(name: str, value: str) -> None:
    with pytest.raises(PropertyError, match=name):
        check_properties({name: value})


@pytest.mark.parametrize(
    "text", ["1", "1.5", "5min 20s", "2h", "1d 3h", "300ms", "1w", "3us", "1y 2months", "20s5min"]
)
def test_time_spans_are_systemds(text: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "timespan", text], capture_output=True, text=True, check=True
    )
    usec = next(line.split(":")[1] for line in done.stdout.splitlines() if "s:" in line)
    assert parse_timespan(text) == int(usec)


@pytest.mark.parametrize("text", ["", "abc", "1parsec", "-1", "1 2 3x", "nan"])
def test_what_is_no_time_span_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="time span"):
        parse_timespan(text)


def test_sizes_are_to_the_base_1024() -> None:
    assert parse_size("1.5G") == 3 << 29
