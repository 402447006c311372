# SPDX-License-Identifier: LGPL-2.1-or-later
"""The containers themselves: what the other system tests take for granted."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.houses import cgroups, container, roots, workdir
from tests.houses.container import Container
from tests.houses.events import wait_for_end
from tests.houses.machine import CommandFailed, CommandTimeout, MachineError

# Every file with its size and owner, but for what any boot writes.
EVERY_FILE = r"""
find / -xdev \( -path /var/log/journal -o -path /var/log/wtmp -o -path /var/lib/systemd/random-seed \
    -o -path /run -o -path /proc -o -path /sys -o -path /dev -o -path /tmp \) -prune \
    -o -type f -printf '%p %s %u %m\n' | sort
"""

COUNT = "n=0; while :; do n=$((n + 1)); echo $n >/run/count; sleep 0.01; done"

BOOT_AND_DIE = """
import os, sys
from tests.houses.container import Container
machine = Container(12)
machine.start()
print(machine.leader, machine._work, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module", params=[12, 13], ids=["debian12", "debian13"])
def bare(request: pytest.FixtureRequest) -> Iterator[Container]:
    with Container(request.param) as machine:
        yield machine


def test_systemd_is_up_and_nothing_failed(bare: Container) -> None:
    assert bare.failed_units() == []
    assert bare.systemctl("is-system-running") == "running"
    assert bare.read("/proc/1/comm").strip() == "systemd"
    assert bare.read("/etc/debian_version").startswith(f"{bare.release}.")


def test_the_cgroup_tree_is_v2_and_its_own(bare: Container) -> None:
    assert bare.output("stat", "-f", "-c", "%T", "/sys/fs/cgroup") == "cgroup2fs"
    assert bare.read("/proc/1/cgroup").splitlines()[-1] == "0::/init.scope"
    assert bare.read("/proc/self/cgroup").splitlines()[-1] == "0::/house"


def test_a_scope_can_be_made(bare: Container) -> None:
    argv = ["systemd-run", "--quiet", "--scope", "--unit=one", "cat", "/proc/self/cgroup"]
    assert bare.output(*argv).splitlines()[-1] == "0::/system.slice/one.scope"


def test_freezing_freezes(bare: Container) -> None:
    bare.run(["systemd-run", "--quiet", "--unit=counter", "sh", "-c", COUNT])
    bare.wait_for(
        "the first count",
        lambda: bare.run(["test", "-s", "/run/count"], check=False).returncode == 0,
    )
    bare.systemctl("freeze", "counter.service")
    count = bare.read("/run/count")
    time.sleep(0.2)
    assert bare.read("/run/count") == count
    bare.systemctl("thaw", "counter.service")
    bare.wait_for("the next count", lambda: bare.read("/run/count") != count)
    bare.systemctl("stop", "counter.service")


def test_commands_tell_how_they_ended(bare: Container) -> None:
    done = bare.run(["sh", "-c", "cat; echo err >&2; exit 3"], input="in \udcff\n", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "in \udcff\n", "err\n")
    assert bare.run(["sh", "-c", "kill -TERM $$"], check=False).returncode == -signal.SIGTERM
    with pytest.raises(CommandFailed, match="exit status 1: sh -c 'echo why; exit 1'\nwhy"):
        bare.run(["sh", "-c", "echo why; exit 1"])


def test_a_command_that_takes_too_long_is_killed(bare: Container) -> None:
    with pytest.raises(CommandTimeout, match="so far"):
        bare.run(["sh", "-c", "echo so far; sleep 1234; true"], timeout=0.5)
    assert bare.run(["pgrep", "-f", "sleep 1234"], check=False).returncode == 1


def test_users_have_their_own_environment_and_nothing_of_the_hosts(
    bare: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_HOST", "1")
    assert bare.output("id", user="alice") == "uid=1000(alice) gid=1000(alice) groups=1000(alice)"
    env = bare.output("env", user="alice").splitlines()
    assert "HOME=/home/alice" in env
    assert not [line for line in env if line.startswith(("OF_THE_HOST", "XDG_RUNTIME_DIR"))]
    assert bare.output("pwd", user="alice") == "/home/alice"


def test_a_user_can_have_a_systemd_of_their_own(bare: Container) -> None:
    bare.enable_linger("bob")
    argv = ["systemctl", "--user", "is-system-running", "--wait"]
    assert bare.output(*argv, user="bob") == "running"


def test_files_go_in_and_out(bare: Container, tmp_path: Path) -> None:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "tool").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "tree" / "sub" / "tool").chmod(0o755)
    os.chown(tmp_path / "tree" / "sub" / "tool", 4242, 4242)
    bare.copy_in(tmp_path / "tree", "/srv/new/place")
    assert bare.output("/srv/new/place/sub/tool", user="alice") == "ran"
    assert bare.output("stat", "-c", "%U:%G", "/srv/new/place/sub/tool") == "root:root"
    bare.copy_out("/srv/new/place", tmp_path / "back")
    assert (tmp_path / "back" / "sub" / "tool").read_text() == "#!/bin/sh\necho ran\n"


def test_packages_are_installed_by_apt_without_a_network(bare: Container, tmp_path: Path) -> None:
    deb = make_deb(tmp_path, "house-good", depends="python3-yaml")
    bare.install_debs([deb])
    assert bare.output("dpkg-query", "-W", "-f", "${db:Status-Status}", "house-good") == "installed"
    assert bare.output("cat", "/etc/house-good") == "hello"
    interfaces = Path(f"/proc/{bare.leader}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]


def make_deb(where: Path, name: str, depends: str) -> Path:
    tree = where / name
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "etc").mkdir()
    (tree / "etc" / name).write_text("hello\n")
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nDepends: {depends}\n"
        "Maintainer: Nobody <nobody@example.org>\nDescription: of the house\n"
    )
    deb = where / f"{name}_1_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, deb], check=True)
    return deb


def test_a_reboot_changes_the_boot_id_and_no_file(bare: Container) -> None:
    bare.write("/etc/kept", "kept\n")
    bare.write("/run/lost", "lost\n")
    bare.reboot()  # the first one settles what a first boot leaves
    before, files = bare.boot_id(), bare.sh(EVERY_FILE).stdout.splitlines()
    assert len(files) > 1000
    bare.reboot()
    assert bare.boot_id() != before
    assert bare.read("/etc/kept") == "kept\n"
    assert bare.run(["test", "-e", "/run/lost"], check=False).returncode == 1
    after = bare.sh(EVERY_FILE).stdout.splitlines()
    assert set(files) ^ set(after) == set()
    assert bare.failed_units() == []
    assert before.replace("-", "") in bare.journal("--list-boots")


def test_a_power_cut_keeps_what_was_written(bare: Container) -> None:
    leader = bare.leader
    bare.write("/etc/before", "before\n")
    bare.cut_power()
    wait_for_end(leader, timeout=0)
    with pytest.raises(MachineError, match="is not running"):
        bare.run(["true"])
    bare.start()
    assert bare.read("/etc/before") == "before\n"


def test_a_machine_that_was_powered_off_starts_again(bare: Container) -> None:
    bare.poweroff()
    bare.start()
    assert bare.systemctl("is-system-running") == "running"


def test_machines_share_neither_files_nor_cgroups(bare: Container) -> None:
    run = ["systemd-run", "--quiet", "--unit=same", "sleep", "1000"]
    with Container(bare.release) as other:
        for machine in (bare, other):
            machine.run(run)
        other.write("/etc/of-the-other", "")
        other.systemctl("freeze", "same.service")
        events = bare.read("/sys/fs/cgroup/system.slice/same.service/cgroup.events")
        assert "frozen 0" in events
        other.systemctl("thaw", "same.service")
        other.systemctl("kill", "--signal=KILL", "same.service")
        assert bare.systemctl("is-active", "same.service") == "active"
        assert bare.run(["test", "-e", "/etc/of-the-other"], check=False).returncode == 1
        assert bare.read("/etc/machine-id") != other.read("/etc/machine-id")
    bare.systemctl("stop", "same.service")
    assert not (roots.container_root(bare.release) / "etc" / "of-the-other").exists()


def test_without_overlayfs_the_root_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    script = container.MOUNT_AND_BOOT.replace("mount -t overlay", "false")
    monkeypatch.setattr(container, "MOUNT_AND_BOOT", script)
    with Container(12) as machine:
        assert " / overlay " not in machine.read("/proc/mounts")
        machine.write("/etc/copied", "")
        machine.reboot()
        assert machine.read("/etc/copied") == ""
    assert not (roots.container_root(12) / "etc" / "copied").exists()


def test_nothing_is_left_behind() -> None:
    with Container(12) as machine:
        leader, work = machine.leader, machine._work
        machine.run(["systemd-run", "--quiet", "sleep", "1000"])
    wait_for_end(leader, timeout=0)
    assert not work.exists()
    assert not [group for group in cgroups.paths(work.name) if group.exists()]


def test_a_killed_harness_takes_its_machine_along() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BOOT_AND_DIE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as harness:
        assert harness.stdout
        leader, work = harness.stdout.readline().split()
        harness.kill()
    wait_for_end(int(leader), timeout=30)
    workdir.remove(workdir.create())  # whoever comes next sweeps up
    assert not Path(work).exists()
    assert not [group for group in cgroups.paths(Path(work).name) if group.exists()]
