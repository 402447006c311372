# SPDX-License-Identifier: LGPL-2.1-or-later
"""The place of a container in the host's cgroup trees.

Two containers must not share a cgroup, or each would freeze and kill the other's services. Where
the host runs systemd it is asked for a scope; elsewhere the groups are made by hand.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

REMOVE_SECONDS = 10


def scope_of_host(name: str) -> list[str]:
    """The words to put before a command so that the host's systemd gives it a cgroup."""
    if not _host_has_systemd():
        return []
    return ["systemd-run", "--quiet", "--scope", "--property=Delegate=yes", f"--unit={name}"]


def create(name: str) -> list[Path]:
    """Make the groups that a container's first process is to join, if that is ours to do."""
    if _host_has_systemd():
        return []
    made = paths(name)
    for path in made:
        path.mkdir()
    return made


def paths(name: str) -> list[Path]:
    """Where a container's groups are: in cgroup v2 and, if there is one, in systemd's v1 tree."""
    return [tree / name for tree in (_v2_tree(), _systemd_v1_tree()) if tree]


def kill(name: str, member: int) -> None:
    """Kill the whole container, by any process of the host that is in its group."""
    with contextlib.suppress(FileNotFoundError):
        group = _v2_group(member)
        for place in (group, *group.parents):
            if name in place.name:
                (place / "cgroup.kill").write_text("1")
                return


def remove(groups: Iterable[Path]) -> None:
    """Kill what still runs in these groups and remove them with all below them."""
    deadline = time.monotonic() + REMOVE_SECONDS
    for group in groups:
        while group.exists() and time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # v1 has no such file
                (group / "cgroup.kill").write_text("1")
            for inner, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(inner)
            if group.exists():
                time.sleep(0.02)


def join_point(leader: int) -> Path:
    """A group inside the container's tree, beside its units, for processes that enter it."""
    group = _v2_group(leader)
    if group.name == "init.scope":
        group = group.parent
    group = group / "house"
    group.mkdir(exist_ok=True)
    return group


def _host_has_systemd() -> bool:
    return Path("/run/systemd/system").is_dir()


def _v2_group(pid: int) -> Path:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    unified = next(line for line in lines if line.startswith("0::"))
    return _v2_tree() / unified.removeprefix("0::/")


def _v2_tree() -> Path:
    for kind, tree, _ in _mounts():
        if kind == "cgroup2":
            return tree
    raise RuntimeError("cannot find cgroup v2 mounted anywhere")


def _systemd_v1_tree() -> Path | None:
    for kind, tree, options in _mounts():
        if kind == "cgroup" and "name=systemd" in options.split(","):
            return tree
    return None


def _mounts() -> Iterator[tuple[str, Path, str]]:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, kind, options, *_ = line.split()
        yield kind, Path(target), options
