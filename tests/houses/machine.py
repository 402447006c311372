# SPDX-License-Identifier: LGPL-2.1-or-later
"""What can be done with a disposable Debian machine, whatever it is made of."""

import io
import shlex
import subprocess
import tarfile
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple, Self

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEBS_INSIDE = "/var/cache/house"

Argument = str | PurePath


class MachineError(Exception):
    """The machine did not do what it was asked to: boot, answer in time, shut down."""


class CommandFailed(MachineError):
    """A command inside the machine ended with a status other than 0."""

    def __init__(self, machine: str, done: subprocess.CompletedProcess[str]) -> None:
        self.done = done
        command = shlex.join(done.args)
        super().__init__(
            f"on {machine}, exit status {done.returncode}: {command}\n{done.stdout}{done.stderr}"
        )


class CommandTimeout(MachineError):
    """A command inside the machine did not end in time, and was killed."""


class Account(NamedTuple):
    """A line of the machine's passwd, as far as running a command needs it."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str


@dataclass(frozen=True)
class Command:
    """A command made ready for running: complete environment, user settled by setpriv."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    data: bytes
    timeout: float


class Machine(ABC):
    """A booted Debian system with systemd as PID 1; a context manager that leaves nothing behind.

    Subclasses say how it starts, stops and runs a command; all else is here and the same for all.
    """

    patience = 1.0  # how much longer than in a container everything may take

    def __init__(self, name: str, release: int) -> None:
        self.name = name
        self.release = release
        self._accounts: dict[str, Account] = {}
        self._lingering: set[str] = set()

    @abstractmethod
    def start(self) -> None:
        """Boot, and return when systemd has finished starting up."""

    @abstractmethod
    def poweroff(self) -> None:
        """Shut down in good order. The disk stays: ``start`` boots the same machine again."""

    @abstractmethod
    def reboot(self) -> None:
        """Reboot in good order, and return when systemd has finished starting up again."""

    @abstractmethod
    def cut_power(self) -> None:
        """Stop at once, telling nobody. The disk stays as it was, unsynced writes may be lost."""

    @abstractmethod
    def close(self) -> None:
        """Stop the machine if it runs and remove all of it."""

    @abstractmethod
    def execute(self, command: Command) -> subprocess.CompletedProcess[bytes]:
        """Run one command and wait for it."""

    @abstractmethod
    def console(self) -> str:
        """What was printed outside the journal: by the kernel, by systemd while it booted."""

    def fetch(self, install: Sequence[str]) -> None:
        """Download what ``install``, an apt-get command, lacks. Machines have no network."""
        raise MachineError(f"{self.name} has no network: put what is missing into its image")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def run(
        self,
        argv: Sequence[Argument],
        *,
        user: str | None = None,
        check: bool = True,
        input: str | None = None,  # noqa: A002 (as subprocess.run has it)
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: Argument | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root or ``user``, with a login's environment and nothing of the host's.

        Raises CommandFailed if ``check`` and it fails, CommandTimeout if it takes too long. Output
        that is not UTF-8 comes as surrogate escapes.
        """
        data = (input or "").encode(errors="surrogateescape")
        command = self.prepare(argv, user=user, data=data, timeout=timeout, env=env, cwd=cwd)
        raw = self.execute(command)
        done = subprocess.CompletedProcess(
            [str(arg) for arg in argv],
            raw.returncode,
            raw.stdout.decode(errors="surrogateescape"),
            raw.stderr.decode(errors="surrogateescape"),
        )
        if check and done.returncode:
            raise CommandFailed(self.name, done)
        return done

    def output(self, *argv: Argument, user: str | None = None) -> str:
        """What a command prints, without the last newline."""
        return self.run(argv, user=user).stdout.rstrip("\n")

    def sh(
        self, script: str, *, user: str | None = None, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a bash script that stops at its first error."""
        argv = ["bash", "-euo", "pipefail", "-c", script]
        return self.run(argv, user=user, check=check, timeout=timeout)

    def systemctl(self, *args: str) -> str:
        return self.output("systemctl", *args)

    def prepare(
        self,
        argv: Sequence[Argument],
        *,
        user: str | None = None,
        data: bytes = b"",
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: Argument | None = None,
    ) -> Command:
        """Settle user, environment and directory of a command."""
        account = self.account(user) if user else Account("root", 0, 0, "/root", "/bin/bash")
        full_env = {
            "PATH": PATH,
            "LANG": "C.UTF-8",
            "TERM": "xterm-256color",
            "HOME": account.home,
            "USER": account.name,
            "LOGNAME": account.name,
            "SHELL": account.shell,
        }
        if account.name in self._lingering:
            full_env["XDG_RUNTIME_DIR"] = f"/run/user/{account.uid}"
        full_argv = [str(arg) for arg in argv]
        if account.uid:
            drop = [f"--reuid={account.uid}", f"--regid={account.gid}", "--init-groups"]
            full_argv = ["setpriv", *drop, "--", *full_argv]
        return Command(
            full_argv,
            {**full_env, **(env or {})},
            str(cwd or account.home),
            data,
            timeout * self.patience,
        )

    def account(self, user: str) -> Account:
        if user not in self._accounts:
            fields = self.output("getent", "passwd", user).split(":")
            uid, gid = int(fields[2]), int(fields[3])
            self._accounts[user] = Account(fields[0], uid, gid, fields[5], fields[6])
        return self._accounts[user]

    def enable_linger(self, user: str) -> None:
        """Start the user's own systemd; commands run as this user reach it from now on."""
        uid = self.account(user).uid
        self.run(["loginctl", "enable-linger", user])
        self.systemctl("start", f"user@{uid}.service")
        self._lingering.add(user)

    def copy_in(self, source: Path, target: Argument) -> None:
        """Copy a file or a tree to ``target`` (its new path, not its parent), owned by root."""
        buffer = io.BytesIO()
        place = PurePath(target)
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.add(source, arcname=place.name, filter=_owned_by_root)
        self.run(["mkdir", "-p", place.parent])
        self._tar(["tar", "-x", "-C", str(place.parent)], buffer.getvalue())

    def copy_out(self, source: Argument, target: Path) -> None:
        """Copy a file or a tree from the machine to the new path ``target``."""
        place = PurePath(source)
        data = self._tar(["tar", "-c", "-C", str(place.parent), place.name])
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            subprocess.run(["tar", "-x", "-C", scratch], input=data, check=True)
            Path(scratch, place.name).rename(target)

    def write(self, target: Argument, text: str, mode: int = 0o644) -> None:
        """Write a file, making its directories."""
        script = 'mkdir -p "$(dirname "$1")" && cat >"$1" && chmod "$2" "$1"'
        self.run(["sh", "-c", script, "sh", target, f"{mode:o}"], input=text)

    def read(self, source: Argument) -> str:
        return self.run(["cat", "--", source]).stdout

    def install_debs(self, debs: Sequence[Path], *options: str, timeout: float = 120) -> str:
        """Install packages with apt, as ``apt install ./x.deb`` would; return what apt printed.

        Dependencies come from what the image has; only if some lack are they downloaded.
        """
        self.run(["rm", "-rf", DEBS_INSIDE])
        for deb in debs:
            self.copy_in(deb, f"{DEBS_INSIDE}/{deb.name}")
        files = [f"{DEBS_INSIDE}/{deb.name}" for deb in debs]
        install = ["apt-get", "install", "--yes", "--quiet=2", *options, *files]
        env = {"DEBIAN_FRONTEND": "noninteractive"}
        if self.run([*install, "--simulate"], env=env, check=False).returncode:
            self.fetch(install)
        return self.run(install, env=env, timeout=timeout).stdout

    def failed_units(self) -> list[str]:
        listed = self.output("systemctl", "list-units", "--failed", "--plain", "--no-legend")
        return [line.split()[0] for line in listed.splitlines()]

    def boot_id(self) -> str:
        return self.read("/proc/sys/kernel/random/boot_id").strip()

    def journal(self, *options: str) -> str:
        """Lines of the journal, oldest first, since the first boot unless options say otherwise."""
        return self.run(["journalctl", "--no-pager", "--output=short-precise", *options]).stdout

    def wait_for(self, what: str, met: Callable[[], bool], timeout: float = 30) -> None:
        """Wait until ``met`` says yes. For events there is something better; for the rest this."""
        deadline = time.monotonic() + timeout * self.patience
        while not met():
            if time.monotonic() > deadline:
                limit = timeout * self.patience
                raise MachineError(f"on {self.name}, waited {limit:.0f} s in vain for {what}")
            time.sleep(0.05)

    def wait_until_up(self, timeout: float = 60) -> None:
        """Wait for systemd to finish starting up; a failed unit is not an error here."""
        argv = ["systemctl", "is-system-running", "--wait"]
        state = self.run(argv, check=False, timeout=timeout).stdout.strip()
        if state not in ("running", "degraded"):
            raise MachineError(f"{self.name} did not come up: systemd says {state!r}")

    def _tar(self, argv: list[str], data: bytes = b"") -> bytes:
        raw = self.execute(self.prepare(argv, data=data, timeout=120))
        if raw.returncode:
            raise MachineError(f"on {self.name}: {raw.stderr.decode(errors='replace')}")
        return raw.stdout


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
