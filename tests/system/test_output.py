# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where tasks' output goes is the administrator's choice."""

from __future__ import annotations

import pytest

from tests.houses.container import Container
from tests.system.test_spine import start, wait

CONF = "/etc/bgtaskd/conf.d/output.yaml"


@pytest.mark.parametrize("to", ["both", "journal", "file"])
def test_output_goes_where_it_is_wanted(machine: Container, to: str) -> None:
    machine.write(CONF, f"output:\n  to: {to}\n")
    machine.systemctl("reload", "bgtaskd.service")
    task_id = start(machine, "--", "sh", "-c", "echo a line; echo another >&2")
    task = wait(machine, task_id)
    assert task["result"] == "success"
    filed = machine.output("bgtaskctl", "output", str(task_id), user="alice")
    assert (sorted(filed.split("\n")) == ["a line", "another"]) == (to != "journal")
    machine.run(["journalctl", "--sync"])
    logged = machine.journal("-o", "cat", f"BGTASK_ID={task_id}")
    assert ("a line" in logged and "another" in logged) == (to != "file")
    machine.run(["rm", CONF])
    machine.systemctl("reload", "bgtaskd.service")
