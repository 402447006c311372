# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that we did not write, on the real socket: varlinkctl, which Debian has since 13."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.houses import package
from tests.houses.container import Container

ADDRESS = "unix:/run/bgtaskd/control.sock"


@pytest.fixture(scope="module")
def trixie() -> Iterator[Container]:
    with Container(13) as container:
        package.install(container)
        yield container


def call(machine: Container, method: str, *options: str, **parameters: Any) -> list[dict[str, Any]]:
    """`varlinkctl call`: the replies."""
    argv = ["varlinkctl", "--json=short", *options, "call", ADDRESS, f"org.bgtaskd.{method}"]
    text = machine.output(*argv, json.dumps(parameters), user="alice")
    return [json.loads(line) for line in text.replace("\x1e", "\n").splitlines() if line]


def test_varlinkctl_reads_the_interface(trixie: Container) -> None:
    assert "org.bgtaskd" in trixie.output("varlinkctl", "info", ADDRESS, user="alice").split()
    # It parses the text itself, and prints what it has understood.
    told = trixie.output("varlinkctl", "introspect", ADDRESS, "org.bgtaskd", user="alice")
    assert "method Start" in told
    assert "error NoSuchTask" in told


def test_varlinkctl_lists_starts_waits_and_streams(trixie: Container) -> None:
    spec = {"argv": ["sh", "-c", "echo one; sleep 0.2; echo two"], "name": "by varlinkctl"}
    [started] = call(trixie, "Start", spec=spec)
    states = [one["task"]["state"] for one in call(trixie, "Watch", "--more", ids=[started["id"]])]
    assert states[-1] == "finished"
    assert call(trixie, "Wait", ids=[started["id"]])[0]["task"]["result"] == "success"
    chunks = call(trixie, "Output", "--more", id=started["id"])
    assert "".join(one["data"] for one in chunks) == "one\ntwo\n"
    [listed] = call(trixie, "List", limit=5)
    assert "by varlinkctl" in [one["name"] for one in listed["tasks"]]


def test_varlinkctl_is_told_what_was_wrong(trixie: Container) -> None:
    for method, parameters, error in (
        ("Get", {"id": 10**9}, "org.bgtaskd.NoSuchTask"),
        ("Watch", {}, "ExpectedMore"),
        ("Start", {"spec": {"argv": ["true"], "queue": "nowhere"}}, "org.bgtaskd.NoSuchQueue"),
    ):
        argv = ["varlinkctl", "call", ADDRESS, f"org.bgtaskd.{method}", json.dumps(parameters)]
        done = trixie.run(argv, user="alice", check=False)
        assert done.returncode != 0
        assert error in done.stderr + done.stdout
