# SPDX-License-Identifier: LGPL-2.1-or-later
"""Build Debian root filesystems and disk images into a cache, keyed by what went into them.

The cache is ``$XDG_CACHE_HOME/bgtaskd`` (or ``~/.cache/bgtaskd``) and may be deleted at any time:
``debs/`` holds downloaded packages, ``roots/`` and ``images/`` what was built from them. Nothing
in it is ever changed after it was built, so machines use it as the lower layer of an overlay.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CODENAMES = {12: "bookworm", 13: "trixie"}
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
IMAGE_SIZE = "4G"

# What the package needs, what a real server has, and what the tests drive it with.
PACKAGES = (
    "systemd systemd-sysv libpam-systemd dbus dbus-user-session polkitd "
    "python3 python3-pystemd python3-dbus-next python3-sdnotify python3-yaml python3-httpx "
    "python3-django python3-flask python3-starlette python3-aiosmtpd "
    "adduser bash-completion doc-debian less man-db passwd procps sudo util-linux zsh "
    "python3-pytest python3-hypothesis"
).split()
BROWSER_PACKAGES = (
    "chromium chromium-driver fonts-dejavu-core python3-selenium python3-uvicorn python3-waitress"
).split()
PEER_PACKAGES = "redis-server python3-redis python3-celery python3-rq gearman-job-server".split()
VM_PACKAGES = ["linux-image-cloud-amd64", "initramfs-tools", "udev"]

# Runs outside the root, with the root as $1, when all packages are in.
CUSTOMIZE = r"""
: > "$1/etc/machine-id"                     # empty: every boot of a fresh copy gets its own
echo bgtaskd-house > "$1/etc/hostname"
printf '127.0.0.1 localhost bgtaskd-house\n' > "$1/etc/hosts"
: > "$1/etc/resolv.conf"
rm -f "$1/var/lib/man-db/auto-update"       # rebuilding the man index slows every apt install
for timer in apt-daily apt-daily-upgrade dpkg-db-backup e2scrub_all fstrim man-db; do
    ln -sf /dev/null "$1/etc/systemd/system/$timer.timer"
done
mkdir -p "$1/var/log/journal"               # the journal outlives a reboot
for user in alice bob carol; do
    chroot "$1" useradd --create-home --shell /bin/bash "$user"
done
"""

# The virtual machine is driven by an agent on a virtio port; its serial console is root's.
CUSTOMIZE_VM = r"""
install -m 755 "$AGENT" "$1/usr/local/sbin/house-agent"
cat > "$1/etc/systemd/system/house-agent.service" <<'UNIT'
[Unit]
Description=Agent of the test house
[Service]
ExecStart=/usr/bin/python3 -I /usr/local/sbin/house-agent /dev/virtio-ports/house
KillMode=process
Restart=always
[Install]
WantedBy=multi-user.target
UNIT
chroot "$1" systemctl --quiet enable house-agent.service
mkdir -p "$1/etc/systemd/system/serial-getty@ttyS0.service.d"
cat > "$1/etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf" <<'UNIT'
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear %I linux
UNIT
"""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a root contains, and so what it is cached as."""

    release: int
    kind: str
    packages: tuple[str, ...]
    customize: str
    agent: str = ""

    @property
    def codename(self) -> str:
        return CODENAMES[self.release]

    @property
    def name(self) -> str:
        recipe = [self.codename, self.packages, self.customize, self.agent]
        digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()
        return f"debian-{self.release}-{self.kind}-{digest[:12]}"


@dataclass(frozen=True)
class Image:
    """A bootable disk: an ext4 filesystem without partitions, its kernel beside it."""

    disk: Path
    kernel: Path
    initrd: Path


def container_recipe(release: int) -> Recipe:
    return Recipe(release, "container", tuple(PACKAGES), CUSTOMIZE)


def browser_recipe(release: int) -> Recipe:
    return Recipe(release, "browser", (*PACKAGES, *BROWSER_PACKAGES), CUSTOMIZE)


def peers_recipe(release: int) -> Recipe:
    """For `make bench-peers`."""
    return Recipe(release, "peers", (*PACKAGES, *PEER_PACKAGES), CUSTOMIZE)


def vm_recipe(release: int) -> Recipe:
    agent = Path(__file__).with_name("agent.py").read_text()
    packages = (*PACKAGES, *VM_PACKAGES)
    return Recipe(release, "vm", packages, CUSTOMIZE + CUSTOMIZE_VM, agent)


def cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "bgtaskd"


def container_root(release: int) -> Path:
    """The root filesystem for containers. Never write to it."""
    return _root(container_recipe(release))


def browser_root(release: int) -> Path:
    """The same with a browser, its driver and the web frameworks of the examples. Never write to it."""
    return _root(browser_recipe(release))


def peers_root(release: int) -> Path:
    """The same with the peers of the bench. Never write to it."""
    return _root(peers_recipe(release))


def _root(recipe: Recipe) -> Path:
    target = cache_dir() / "roots" / recipe.name
    with _built_once(target) as scratch:
        if scratch:
            _bootstrap(recipe, scratch)
    return target


def vm_image(release: int) -> Image:
    """The disk image, kernel and initrd for virtual machines. Never write to them."""
    recipe = vm_recipe(release)
    target = cache_dir() / "images" / recipe.name
    with _built_once(target) as scratch:
        if scratch:
            _make_image(recipe, scratch)
    return Image(target / "disk.img", target / "kernel", target / "initrd")


def apt_sources(codename: str) -> str:
    """The host's own Debian archives, as apt itself reads them, turned to another release."""
    host = platform.freedesktop_os_release()["VERSION_CODENAME"]
    targets = _apt_targets()
    if not targets:  # apt tells of what it once downloaded only
        subprocess.run(["apt-get", "update", "--quiet=2"])
        targets = _apt_targets()
    lines = []
    for uri, found, component, origin in targets:
        base, _, pocket = found.partition("-")
        if (base, component, origin) == (host, "main", "Debian"):
            suite = f"{codename}-{pocket}" if pocket else codename
            lines.append(f"deb [signed-by={KEYRING}] {uri} {suite} main\n")
    if not any(f" {codename} main" in line for line in lines):
        raise RuntimeError(f"cannot find a Debian {host} archive in the host's apt sources")
    return "".join(dict.fromkeys(lines))


def _apt_targets() -> list[list[str]]:
    """Address, codename, component and origin of each package index that apt has."""
    fields = "$(REPO_URI)|$(CODENAME)|$(COMPONENT)|$(ORIGIN)"
    argv = ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"]
    listed = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True)
    return [line.split("|") for line in listed.stdout.splitlines() if line]


@contextlib.contextmanager
def _built_once(target: Path) -> Iterator[Path | None]:
    """Hand out a scratch directory that becomes ``target`` when the block ends well.

    Hands out None if the target is there already. Others who want it meanwhile wait.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(f".{target.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            yield None
            return
        say(f"building {target.name}")
        began = time.monotonic()
        scratch = target.with_name(f".{target.name}.new")
        _remove_tree(scratch)
        scratch.mkdir()
        try:
            yield scratch
            scratch.rename(target)
        except BaseException:
            _remove_tree(scratch)
            raise
        say(f"built {target.name} in {time.monotonic() - began:.0f} s")


def _bootstrap(recipe: Recipe, root: Path) -> None:
    debs = cache_dir() / "debs" / str(recipe.release)
    debs.mkdir(parents=True, exist_ok=True)
    sources = root.with_name(f"{root.name}.list")
    agent = root.with_name(f"{root.name}.agent")
    sources.write_text(apt_sources(recipe.codename))
    agent.write_text(recipe.agent)
    archives = "/var/cache/apt/archives"
    argv = [
        "mmdebstrap",
        "--quiet",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        f"--include={','.join(recipe.packages)}",
        "--skip=download/empty",
        "--skip=essential/unlink",
        f'--setup-hook=mkdir -p "$1{archives}"',
        f"--setup-hook=sync-in {debs} {archives}",
        f"--customize-hook=sync-out {archives} {debs}",
        f"--customize-hook={recipe.customize}",
        recipe.codename,
        str(root),
        str(sources),
    ]
    try:
        done = subprocess.run(
            argv,
            env={**os.environ, "AGENT": str(agent)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    finally:
        sources.unlink()
        agent.unlink()
    if done.returncode:
        raise RuntimeError(f"cannot build {recipe.name}: mmdebstrap says\n{done.stdout}")


def _make_image(recipe: Recipe, into: Path) -> None:
    root = into / "root"
    root.mkdir()
    _bootstrap(recipe, root)
    for link, name in (("vmlinuz", "kernel"), ("initrd.img", "initrd")):
        shutil.copyfile(root / (root / link).readlink(), into / name)
    mkfs = ["mkfs.ext4", "-q", "-L", "bgtaskd", "-d", str(root), str(into / "disk.img"), IMAGE_SIZE]
    subprocess.run(mkfs, check=True, stdout=subprocess.DEVNULL)
    _remove_tree(root)


def _remove_tree(path: Path) -> None:
    if path.exists():
        subprocess.run(["rm", "-rf", "--one-file-system", str(path)], check=True)


def say(text: str) -> None:
    """One line about a long step, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
