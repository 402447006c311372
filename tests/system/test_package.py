# SPDX-License-Identifier: LGPL-2.1-or-later
"""The packages from installation to purge, on Debian 12 and 13, each time on a machine of its own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.houses import package
from tests.houses.container import Container

NEXT = "99.0"
PACKAGES = ["bgtaskd", "python3-bgtaskd"]
AUTOPKGTESTS = ["run-a-task", "survives-a-crash", "python-client", "without-systemd"]

# Everything that is, but for what apt and the journal keep for themselves.
LIST_FILES = """
find / -xdev \\( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /var/log -o -path /var/cache \
    -o -path /var/lib/apt -o -path /var/lib/systemd/catalog \\) -prune -o -print | sort
find /run -name '*bgtask*' | sort
"""


@pytest.fixture(params=[12, 13], ids=["debian12", "debian13"])
def bare(request: pytest.FixtureRequest) -> Iterator[Container]:
    """A machine without bgtaskd."""
    with Container(request.param) as machine:
        yield machine


def apt(machine: Container, verb: str) -> str:
    """Remove or purge both packages; what apt and the scripts printed."""
    argv = ["apt-get", verb, "--yes", "--quiet", *PACKAGES]
    done = machine.run(argv, env={"DEBIAN_FRONTEND": "noninteractive"}, timeout=120)
    return done.stdout + done.stderr


def next_version(debs: list[Path], into: Path) -> list[Path]:
    """The same packages under a higher version."""
    made = []
    for deb in debs:
        tree = into / deb.stem
        subprocess.run(["dpkg-deb", "-R", deb, tree], check=True)
        control = tree / "DEBIAN" / "control"
        version = re.search(r"^Version: (.*)$", control.read_text(), re.MULTILINE)
        assert version is not None
        control.write_text(control.read_text().replace(version[1], NEXT))
        made.append(into / f"{deb.name.partition('_')[0]}_{NEXT}_all.deb")
        subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, made[-1]], check=True)
    return made


def start(machine: Container, script: str) -> int:
    """Alice starts a shell script; its id, once it runs."""
    task_id = int(machine.output("bgtaskctl", "run", "--", "sh", "-c", script, user="alice"))
    machine.wait_for("the task", lambda: get(machine, task_id)["state"] == "running")
    return task_id


def get(machine: Container, task_id: int) -> dict[str, Any]:
    """The task as it is now."""
    argv = ["bgtaskctl", "status", "-o", "json", str(task_id)]
    task: dict[str, Any] = json.loads(machine.output(*argv, user="alice"))
    return task


def wait(machine: Container, task_id: int) -> dict[str, Any]:
    """The task once it has ended."""
    machine.run(["bgtaskctl", "wait", str(task_id)], user="alice", check=False)
    return get(machine, task_id)


def test_installed_everything_is_up_and_as_it_should_be(fresh_machine: Container) -> None:
    units = [
        "bgtaskd.service",
        "bgtaskd.socket",
        "bgtaskd-supervisors.socket",
        "bgtaskd-tasks.socket",
        "bgtaskd-workers.socket",
        "bgtaskd-launcher.socket",
    ]
    assert fresh_machine.systemctl("is-active", *units).split() == ["active"] * 6
    assert fresh_machine.systemctl("is-enabled", *units).split() == ["enabled"] * 6
    assert fresh_machine.failed_units() == []
    # The name is ours from the first start on, though the bus read its policy before the user existed.
    fresh_machine.wait_for(
        "the bus name",
        lambda: "bgtaskd.service" in fresh_machine.sh("busctl list | grep bgtaskd1").stdout,
    )
    for path, mode in {
        "/run/bgtaskd": "drwxr-xr-x root:root",
        "/run/bgtaskd/control.sock": "srw-rw---- root:bgtask",
        "/run/bgtaskd/supervisors.sock": "srw------- root:root",
        "/run/bgtaskd/tasks.sock": "srw-rw-rw- root:root",
        "/run/bgtaskd/launcher.sock": "srw------- bgtaskd:root",
        "/run/bgtaskd/notify": "drwx--x--x root:root",
        "/var/lib/bgtaskd": "drwxr-xr-x root:root",
        "/var/lib/bgtaskd/state": "drwx------ bgtaskd:bgtaskd",
        "/var/lib/bgtaskd/tasks": "drwxr-s--- root:bgtaskd",
        "/var/lib/bgtaskd/exits": "drwxr-s--- root:bgtaskd",
    }.items():
        assert fresh_machine.output("stat", "-c", "%A %U:%G", path) == mode, path
    assert "background tasks as a service" in fresh_machine.output(
        "man", "-P", "cat", "8", "bgtaskd"
    )
    # Root writes no bytecode but what the package manager wrote and will remove.
    compiled = "find / -xdev -name '*.pyc' -path '*bgtask*' -not -path '*/dist-packages/*'"
    assert fresh_machine.sh(compiled).stdout == ""


def test_systemd_has_nothing_to_say_against_the_units(fresh_machine: Container) -> None:
    # Other packages' units may be complained about on the way; ours may not.
    said = fresh_machine.sh("systemd-analyze verify /lib/systemd/system/bgtask* 2>&1", check=False)
    assert "bgtask" not in said.stdout
    fresh_machine.enable_linger("alice")
    said = fresh_machine.sh(
        "systemd-analyze verify --user /usr/lib/systemd/user/bgtask* 2>&1",
        user="alice",
        check=False,
    )
    assert "bgtask" not in said.stdout


def test_the_daemon_is_locked_in(fresh_machine: Container) -> None:
    said = fresh_machine.output("systemd-analyze", "security", "--no-pager", "bgtaskd.service")
    score = re.search(r"exposure level for bgtaskd.service: ([0-9.]+)", said)
    assert score is not None
    assert float(score[1]) <= 2.0


@pytest.mark.parametrize("name", AUTOPKGTESTS)
def test_autopkgtest(fresh_machine: Container, name: str) -> None:
    fresh_machine.copy_in(package.REPOSITORY / "debian" / "tests", "/tmp/tree/debian/tests")
    done = fresh_machine.run([f"debian/tests/{name}"], cwd="/tmp/tree", check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_upgrade_leaves_running_tasks_alone(fresh_machine: Container, tmp_path: Path) -> None:
    task_id = start(
        fresh_machine, "echo before; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo after; exit 5"
    )
    daemon = fresh_machine.systemctl("show", "-P", "InvocationID", "bgtaskd.service")
    launcher = fresh_machine.systemctl("show", "-P", "InvocationID", "bgtaskd-launcher.service")
    sockets = ["show", "-P", "InvocationID", "bgtaskd.socket", "bgtaskd-supervisors.socket"]
    before = fresh_machine.systemctl(*sockets)

    fresh_machine.install_debs(next_version(package.debs(), tmp_path))

    assert fresh_machine.output("dpkg-query", "-W", "-f", "${Version}", "bgtaskd") == NEXT
    assert fresh_machine.systemctl("show", "-P", "InvocationID", "bgtaskd.service") != daemon
    assert (
        fresh_machine.systemctl("show", "-P", "InvocationID", "bgtaskd-launcher.service")
        != launcher
    )
    assert fresh_machine.systemctl(*sockets) == before
    assert get(fresh_machine, task_id)["state"] == "running"
    fresh_machine.run(["touch", "/tmp/go"])
    task = wait(fresh_machine, task_id)
    assert (task["result"], task["exit_status"], task["attempt"]) == ("exit-code", 5, 1)
    assert (
        fresh_machine.output("bgtaskctl", "output", str(task_id), user="alice") == "before\nafter"
    )
    assert wait(fresh_machine, start(fresh_machine, "sleep 1"))["result"] == "success"


def test_removal_stops_tasks_and_installing_again_goes_on(fresh_machine: Container) -> None:
    running = start(fresh_machine, "echo words; exec sleep 600")
    waiting = ["bgtaskctl", "run", "--delay", "5", "--", "true"]
    waiting_id = int(fresh_machine.output(*waiting, user="alice"))
    often = ["bgtaskctl", "schedule", "add", "often", "--calendar", "minutely", "--", "true"]
    fresh_machine.run(often, user="alice")

    said = apt(fresh_machine, "remove")

    assert "stopping the background tasks" in said
    listed = fresh_machine.systemctl("list-units", "--plain", "--no-legend", "bgtask*")
    assert listed == ""
    for pattern in ("sleep 600", "bgtaskd"):
        assert fresh_machine.run(["pgrep", "-af", pattern], check=False).stdout == ""

    package.install(fresh_machine)
    task = wait(fresh_machine, running)
    assert (task["state"], task["signal"]) == ("failed", "SIGTERM")
    assert fresh_machine.output("bgtaskctl", "output", str(running), user="alice") == "words"
    assert wait(fresh_machine, waiting_id)["result"] == "success"
    timer = ["systemctl", "is-active", "bgtask-schedule@often.timer"]
    fresh_machine.wait_for(
        "its timer", lambda: fresh_machine.run(timer, check=False).returncode == 0
    )


def test_purge_leaves_nothing(bare: Container) -> None:
    before = bare.sh(LIST_FILES).stdout.splitlines()
    package.install(bare)
    start(bare, "exec sleep 600")
    persistent = ["bgtaskctl", "schedule", "add", "p", "--calendar", "*-*-* *:*:*", "--persistent"]
    bare.run([*persistent, "--", "true"], user="alice")
    stamp = ["test", "-e", "/var/lib/systemd/timers/stamp-bgtask-schedule@p.timer"]
    bare.wait_for("its stamp", lambda: bare.run(stamp, check=False).returncode == 0)
    said = apt(bare, "purge")
    assert "not empty" not in said
    left = set(bare.sh(LIST_FILES).stdout.splitlines()) - set(before)
    left.discard("/var/lib/systemd/timers")  # systemd's own, made for the first timer that needs it
    assert {path for path in left if not path.startswith("/proc")} == set()
    # The manual says so: the numbers must not go to somebody else.
    assert bare.output("getent", "passwd", "bgtaskd").startswith("bgtaskd:")


def test_lintian_finds_no_error_and_no_warning() -> None:
    if not shutil.which("lintian"):
        pytest.skip("lintian is not installed")
    argv = ["lintian", "--pedantic", "--fail-on", "error,warning", *map(str, package.debs())]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_is_complete_and_the_client_needs_nothing(tmp_path: Path) -> None:
    # In a copy, because setuptools writes beside what it builds.
    source = tmp_path / "source"
    source.mkdir()
    tree = package.REPOSITORY
    shutil.copytree(
        tree / "bgtaskd", source / "bgtaskd", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(tree / name, source)
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    (wheel,) = tmp_path.glob("bgtaskd-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    for path in source.glob("bgtaskd/**/*"):
        if path.is_file():
            assert (tmp_path / "site" / path.relative_to(source)).is_file(), path
    # -S: not even the system's packages are in reach.
    script = f"import sys; sys.path.append({str(tmp_path / 'site')!r})\nfrom bgtaskd import AsyncClient, Client"
    subprocess.run(["/usr/bin/python3", "-I", "-S", "-c", script], check=True)


def test_a_user_has_a_daemon_of_their_own_without_root(fresh_machine: Container) -> None:
    fresh_machine.enable_linger("bob")  # who is not in the group
    socket = f"/run/user/{fresh_machine.account('bob').uid}/bgtaskd/control.sock"
    enable = ["systemctl", "--user", "enable", "--now", "bgtaskd.socket"]
    fresh_machine.run(enable, user="bob")
    env = {"BGTASKD_SOCKET": socket}
    show = ["bgtaskctl", "run", "--wait", "--", "sh", "-c", "cat /proc/self/cgroup; exit 5"]
    done = fresh_machine.run(show, user="bob", env=env, check=False)
    assert done.returncode == 5, done.stdout + done.stderr
    output = fresh_machine.run(["bgtaskctl", "output", "1"], user="bob", env=env).stdout
    assert re.search(r"/user@\d+\.service/.*/bgtask-default\.slice/bgtask-1\.scope$", output), (
        output
    )
    for unit in ("bgtaskd.service", "bgtaskd-launcher.service"):
        argv = ["systemctl", "--user", "is-active", unit]
        assert fresh_machine.output(*argv, user="bob") == "active"
    # systemd's socket outlives the daemon.
    fresh_machine.run(["systemctl", "--user", "restart", "bgtaskd.service"], user="bob")
    again = ["bgtaskctl", "run", "--wait", "--", "true"]
    fresh_machine.run(again, user="bob", env=env)
    # The system's daemon knows nothing of it.
    assert fresh_machine.output("bgtaskctl", "list", "--all", "-o", "json") == "[]"
