# SPDX-License-Identifier: LGPL-2.1-or-later
"""A machine in a container: real systemd as PID 1 under systemd-nspawn, up in half a second.

The host's PID 1 need not be systemd. The container has cgroup v2 to itself but, where the host
keeps its controllers in cgroup v1, none of them: freezing and cpu.stat work there, MemoryMax,
TasksMax, CPUWeight and memory.peak do nothing. What needs those is tried in ``vm``.

The root is an overlay over the cached one, mounted in a mount namespace of its own, so that the
mount cannot be left behind. The container shuts down when the thread that started it ends.
"""

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.houses import cgroups, roots, workdir
from tests.houses.events import NotifySocket, wait_for_end
from tests.houses.machine import Argument, Command, CommandTimeout, Machine, MachineError

BOOT_SECONDS = 90
SHUTDOWN_SECONDS = 120
ASKED_FOR_REBOOT = 133  # nspawn's exit status

# $1 work directory, $2 cached root, rest: nspawn. Runs in a mount namespace of its own.
MOUNT_AND_BOOT = """
set -eu
work=$1 lower=$2
shift 2
for group in $HOUSE_CGROUPS; do echo $$ >"$group/cgroup.procs"; done
if [ ! -e "$work/root/etc" ]; then
    mount -t overlay -o "lowerdir=$lower,upperdir=$work/upper,workdir=$work/work" \\
        house "$work/root" || cp -a --reflink=auto "$lower/." "$work/root"
fi
exec setpriv --pdeathsig TERM "$@"
"""

ENTER = 'echo 0 >"$0/cgroup.procs" && exec nsenter "$@"'


class Container(Machine):
    """A systemd-nspawn container on a copy of a cached root."""

    def __init__(
        self,
        release: int = 12,
        *,
        binds: Mapping[Path, str] | None = None,
        browser: bool = False,
        lower: Path | None = None,
    ) -> None:
        """``binds`` says which host paths appear where inside, read-only; ``browser``: with one in it;
        ``lower``: another root altogether."""
        super().__init__(f"house-{release}-{secrets.token_hex(3)}", release)
        usual = roots.browser_root if browser else roots.container_root
        self._lower = lower or usual(release)
        self._binds = binds or {}
        self._work = workdir.create()
        for part in ("root", "upper", "work"):
            (self._work / part).mkdir()
        self._cgroups = cgroups.create(self._work.name)
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self._cgroup = Path()

    @property
    def leader(self) -> int:
        """The host's pid of the container's PID 1."""
        if not self._leader:
            raise MachineError(f"{self.name} is not running")
        return self._leader

    def start(self) -> None:
        with contextlib.closing(NotifySocket(self._work / "notify")) as notify:
            self._nspawn = self._spawn(notify.path)
            for key, value in notify.messages(self._nspawn, BOOT_SECONDS):
                if key == "X_NSPAWN_LEADER_PID":
                    self._leader = int(value)
                if key == "READY":
                    break
            else:
                raise MachineError(f"{self.name} did not boot:\n{self.console()}")
        self._cgroup = cgroups.join_point(self.leader)
        self.wait_until_up()

    def poweroff(self) -> None:
        self._shut_down("poweroff")

    def reboot(self) -> None:
        status = self._shut_down("reboot")
        if status != ASKED_FOR_REBOOT:
            raise MachineError(f"{self.name} ended with {status}, not for a reboot")
        self.start()

    def cut_power(self) -> None:
        """As for any machine, but what was written is kept by the host's kernel."""
        if self._leader:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._leader, signal.SIGKILL)
        if self._nspawn:
            try:
                self._nspawn.wait(5 if self._leader else 0)
            except subprocess.TimeoutExpired:
                cgroups.kill(self._work.name, self._nspawn.pid)
                self._nspawn.kill()
                self._nspawn.wait()
            self._nspawn = None
        if self._leader:
            wait_for_end(self._leader, SHUTDOWN_SECONDS)
            self._leader = 0

    def close(self) -> None:
        self.cut_power()
        workdir.remove(self._work)

    def execute(self, command: Command) -> subprocess.CompletedProcess[bytes]:
        pipe = subprocess.PIPE
        with subprocess.Popen(
            self._enter(command),
            env=command.env,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,
        ) as process:
            try:
                stdout, stderr = process.communicate(command.data, timeout=command.timeout)
            except subprocess.TimeoutExpired as expired:
                _end_session(process)
                told = (expired.stdout or b"") + (expired.stderr or b"")
                raise CommandTimeout(
                    f"on {self.name}, not done after {command.timeout:.0f} s: "
                    f"{shlex.join(command.argv)}\n{told.decode(errors='replace')}"
                ) from None
            except BaseException:
                _end_session(process)
                raise
        return subprocess.CompletedProcess(command.argv, process.returncode, stdout, stderr)

    @contextlib.contextmanager
    def popen(
        self,
        argv: Sequence[Argument],
        *,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Iterator[subprocess.Popen[str]]:
        """A command that goes on while the block runs, stdin and stdout piped as text."""
        command = self.prepare(argv, user=user, env=env)
        with subprocess.Popen(
            self._enter(command),
            env=command.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            errors="surrogateescape",
        ) as process:
            try:
                yield process
            finally:
                _end_session(process)

    def interact(self, argv: Sequence[Argument], *, user: str | None = None) -> int:
        """Run a command on the caller's own terminal, if there is one; return its exit status."""
        command = self.prepare(argv, user=user)
        if os.isatty(0):
            # A terminal of the container's own: job control, sudo and pagers want one.
            inside = ["script", "--quiet", "--return", "--command", shlex.join(command.argv)]
            command = self.prepare([*inside, "/dev/null"], env=command.env, cwd=command.cwd)
        return subprocess.run(self._enter(command), env=command.env).returncode

    def fetch(self, install: Sequence[str]) -> None:
        """Download through the host's network; everything else in here has the loopback only."""
        shutil.copyfile("/etc/resolv.conf", f"/proc/{self.leader}/root/etc/resolv.conf")
        for argv in (["apt-get", "update", "--quiet=2"], [*install, "--download-only"]):
            command = self.prepare(argv)
            done = subprocess.run(
                self._enter(command, "-m", "-u", "-i", "-p", "-C"),
                env=command.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            if done.returncode:
                raise MachineError(f"on {self.name}, cannot download:\n{done.stdout}")

    def console(self) -> str:
        """What systemd printed while it booted, and nspawn before it."""
        return (self._work / "console").read_text(errors="replace")

    def _spawn(self, notify_path: Path) -> "subprocess.Popen[bytes]":
        nspawn = [
            "systemd-nspawn",
            f"--directory={self._work / 'root'}",
            f"--machine={self.name}",
            "--boot",
            "--settings=no",
            "--register=no",
            "--keep-unit",
            "--private-network",
            "--resolv-conf=off",
            "--timezone=off",
            "--link-journal=no",
            "--notify-ready=yes",
            "--console=pipe",
            *(f"--bind-ro={host}:{inside}" for host, inside in self._binds.items()),
        ]
        private = ["unshare", "--mount", "--propagation", "private"]
        shell = ["sh", "-c", MOUNT_AND_BOOT, "sh", str(self._work), str(self._lower)]
        with open(self._work / "console", "ab") as console:
            return subprocess.Popen(
                [*cgroups.scope_of_host(self._work.name), *private, *shell, *nspawn],
                env={
                    **os.environ,
                    "HOUSE_CGROUPS": " ".join(map(str, self._cgroups)),
                    "NOTIFY_SOCKET": str(notify_path),
                    "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
                },
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )

    def _shut_down(self, verb: str) -> int:
        assert self._nspawn
        self.run(["systemctl", "--no-block", verb])
        try:
            status = self._nspawn.wait(SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            raise MachineError(f"{self.name} did not {verb}:\n{self.console()}") from None
        self._nspawn = None
        self._leader = 0
        return status

    def _enter(self, command: Command, *namespaces: str) -> list[str]:
        into = namespaces or ("-m", "-u", "-i", "-n", "-p", "-C")
        inside = ["env", f"--chdir={command.cwd}", "--", *command.argv]
        enter = ["sh", "-c", ENTER, str(self._cgroup)]
        return [*enter, "-t", str(self.leader), *into, "--", *inside]


def _end_session(nsenter: "subprocess.Popen[str] | subprocess.Popen[bytes]") -> None:
    """Kill what an entered command left in its session, and the command if it still runs.

    Not nsenter, which ends by itself: it must reap the command. An orphan from another PID
    namespace would go to the host's PID 1, and as a zombie there hold up the container's shutdown.
    """
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            session = int(stat.read_text().rpartition(")")[2].split()[3])
            if session == nsenter.pid != int(stat.parent.name):
                os.kill(int(stat.parent.name), signal.SIGKILL)
    try:
        nsenter.wait(5)
    except subprocess.TimeoutExpired:  # it had not even entered
        nsenter.kill()
