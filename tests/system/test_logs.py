# SPDX-License-Identifier: LGPL-2.1-or-later
"""A log that another package brings gets all that tasks print, whoever is killed; and ours is the journal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgtaskd.logs.conformance import LogConformance
from tests import samples
from tests.houses.container import Container
from tests.system.test_spine import start, wait

CONF = "/etc/bgtaskd/conf.d/logs.yaml"
KEPT = "/var/lib/bgtaskd/state/logs/copies"
HANGS = """

class Hangs(Copies):
    def begin(self, entry: Entry, offset: int) -> None:
        import threading

        threading.Event().wait()
"""


@pytest.fixture(scope="module")
def packages(machine: Container) -> str:
    """Where a package that has been installed has its modules."""
    path = machine.output(
        "python3", "-Ic", "import sys; print([p for p in sys.path if '/local/' in p][0])"
    )
    machine.write(f"{path}/copies.py", samples.log_module() + HANGS)
    machine.write(f"{path}/copies-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: copies\n")
    points = samples.log_entry_points() + "hangs = copies:Hangs\n"
    machine.write(f"{path}/copies-1.dist-info/entry_points.txt", points)
    return path


@pytest.fixture
def configured(machine: Container, packages: str) -> Iterator[None]:
    """With the documentation's log, and one that hangs for ever."""
    machine.write(CONF, "output:\n  also: [hangs, copies]\n")
    machine.systemctl("reload", "bgtaskd.service")
    yield
    machine.run(["rm", CONF])
    machine.systemctl("reload", "bgtaskd.service")


def copied(machine: Container, task_id: int, expected: str) -> None:
    """Wait until the log has this, and nothing else."""
    path = f"{KEPT}/{task_id}.1"
    machine.wait_for(
        f"the copy of {task_id}", lambda: machine.sh(f"cat {path} || true").stdout == expected
    )


def test_a_package_gets_all_output_across_kills_of_the_daemon(
    machine: Container, configured: None
) -> None:
    loop = "for i in $(seq 150); do echo line $i; sleep 0.02; done; printf 'no end'"
    long = start(machine, "--", "bash", "-c", loop)
    short = []
    for _ in range(3):
        short.append(start(machine, "--", "seq", "20000"))
        time.sleep(0.3)  # some of it is passed on, and some is not
        machine.systemctl("kill", "--signal=KILL", "bgtaskd.service")
        short.append(start(machine, "--", "seq", "20000"))
    assert wait(machine, long)["result"] == "success"
    copied(machine, long, "".join(f"line {one}\n" for one in range(1, 151)) + "no end")
    for task_id in short:
        assert wait(machine, task_id)["result"] == "success"
        copied(machine, task_id, "".join(f"{one}\n" for one in range(1, 20001)))


def test_one_that_hangs_is_no_reason_to_stop_slowly(machine: Container, configured: None) -> None:
    task_id = start(machine, "--", "echo", "something")
    copied(machine, task_id, "something\n")
    began = time.monotonic()
    machine.systemctl("restart", "bgtaskd.service")
    assert time.monotonic() - began < 10
    journal = machine.journal("-u", "bgtaskd", "-n", "20")
    assert "Traceback" not in journal
    assert "timed out" not in journal


def test_one_that_nobody_brings_is_a_mistake(machine: Container, packages: str) -> None:
    machine.write(CONF, "output:\n  also: [elsewhere]\n")
    done = machine.run(["bgtaskctl", "check-config"], check=False)
    machine.run(["rm", CONF])
    assert done.returncode != 0
    assert "output.also: there is no log elsewhere; there are: copies, hangs" in (
        done.stdout + done.stderr
    )


def test_the_journal_passes_the_suite(machine: Container) -> None:
    machine.write("/tmp/journal_log.py", (Path(__file__).parent / "journal_log.py").read_text())
    done = machine.run(["python3", "-I", "/tmp/journal_log.py"], timeout=60)
    names = {one for one in dir(LogConformance) if one.startswith("test_")}
    assert set(done.stdout.removeprefix("passed:").split()) == names
