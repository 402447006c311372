# SPDX-License-Identifier: LGPL-2.1-or-later
"""The virtual machine itself: that the limits, reboots and power cuts in it are real."""

import pytest

from tests.houses.machine import CommandTimeout
from tests.houses.vm import VM

EAT = "bytearray(100 << 20)"


def test_systemd_is_up_with_every_controller(bare_vm: VM) -> None:
    assert bare_vm.failed_units() == []
    assert bare_vm.output("stat", "-f", "-c", "%T", "/sys/fs/cgroup") == "cgroup2fs"
    controllers = bare_vm.read("/sys/fs/cgroup/cgroup.controllers").split()
    assert {"cpu", "io", "memory", "pids"} <= set(controllers)


@pytest.mark.parametrize(("limit", "result"), [("20M", "oom-kill"), ("500M", "success")])
def test_memory_max_is_real(bare_vm: VM, limit: str, result: str) -> None:
    properties = [f"--property=MemoryMax={limit}", "--property=MemorySwapMax=0"]
    argv = ["systemd-run", "--wait", *properties, "python3", "-c", EAT]
    assert f"result: {result}" in bare_vm.run(argv, check=False).stderr


def test_commands_have_users_input_and_time_limits(bare_vm: VM) -> None:
    done = bare_vm.run(
        ["sh", "-c", "id -un; cat; exit 3"], user="alice", input="\udcff", check=False
    )
    assert (done.returncode, done.stdout) == (3, "alice\n\udcff")
    with pytest.raises(CommandTimeout, match="so far"):
        bare_vm.run(["sh", "-c", "echo so far; sleep 1234; true"], timeout=0.5)
    assert bare_vm.run(["pgrep", "-f", "sleep 1234"], check=False).returncode == 1


def test_a_reboot_is_one_and_keeps_the_disk(bare_vm: VM) -> None:
    before = bare_vm.boot_id()
    bare_vm.write("/etc/kept", "kept\n")
    bare_vm.reboot()
    assert bare_vm.boot_id() != before
    assert bare_vm.read("/etc/kept") == "kept\n"
    assert bare_vm.failed_units() == []


def test_a_power_cut_loses_what_was_not_synced(bare_vm: VM) -> None:
    before = bare_vm.boot_id()
    bare_vm.sh("echo safe >/etc/synced && sync /etc/synced && echo gone >/etc/unsynced")
    bare_vm.cut_power()
    bare_vm.start()
    assert bare_vm.boot_id() != before
    assert bare_vm.read("/etc/synced") == "safe\n"
    assert bare_vm.sh("cat /etc/unsynced || true").stdout == ""
