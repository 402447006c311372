# SPDX-License-Identifier: LGPL-2.1-or-later
"""A machine with a kernel of its own: qemu in software emulation, which needs no KVM.

Its cgroup v2 has all controllers, so MemoryMax, TasksMax, CPUQuota and the OOM killer are real,
and so are reboots and power cuts. It boots in some 20 seconds and is several times slower than a
container. It has no network. Commands run through the agent on a virtio port (see ``agent``).
"""

import base64
import itertools
import json
import queue
import secrets
import shlex
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from tests.houses import roots, workdir
from tests.houses.events import wait_readable
from tests.houses.machine import Command, CommandTimeout, Machine, MachineError

BOOT_SECONDS = 240
SHUTDOWN_SECONDS = 180
ANSWER_SECONDS = 60
MEMORY_MIB = 2048
CPUS = 2


class VM(Machine):
    """A qemu virtual machine; its disk is a copy-on-write layer over the cached image."""

    patience = 5.0

    def __init__(self, release: int = 13) -> None:
        super().__init__(f"vm-{release}-{secrets.token_hex(3)}", release)
        self._image = roots.vm_image(release)
        self._work = workdir.create()
        self._disk = self._work / "disk.qcow2"
        backing = ["-b", str(self._image.disk), "-F", "raw"]
        create = ["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(self._disk)]
        subprocess.run(create, check=True)
        self._qemu: subprocess.Popen[bytes] | None = None
        self._agent: Agent | None = None

    def start(self) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with listener, open(self._work / "console", "ab") as console:
            port = self._work / "agent"
            port.unlink(missing_ok=True)
            listener.bind(str(port))
            listener.listen()
            self._qemu = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", "--"),
                    *self._qemu_argv("systemd.mask=serial-getty@ttyS0.service"),
                    *("-serial", "stdio"),
                    *("-chardev", f"socket,id=house,path={port}"),
                    *("-device", "virtserialport,chardev=house,name=house"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
            if not wait_readable(listener, self._qemu, BOOT_SECONDS):
                raise MachineError(f"{self.name}: qemu did not start:\n{self.console()}")
            self._agent = Agent(listener.accept()[0])
        self._wait_for_boot()

    def poweroff(self) -> None:
        assert self._qemu
        self.agent.request(["systemctl", "--no-block", "poweroff"])
        try:
            self._qemu.wait(SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            raise MachineError(f"{self.name} did not power off:\n{self.console()}") from None
        self.cut_power()

    def reboot(self) -> None:
        self.agent.request(["systemctl", "--no-block", "reboot"])
        self._wait_for_boot()

    def cut_power(self) -> None:
        if self._qemu:
            self._qemu.kill()
            self._qemu.wait()
            self._qemu = None
        if self._agent:
            self._agent.join()
            self._agent = None

    def close(self) -> None:
        self.cut_power()
        workdir.remove(self._work)

    def execute(self, command: Command) -> subprocess.CompletedProcess[bytes]:
        argv = ["env", f"--chdir={command.cwd}", "--", *command.argv]
        reply = self.agent.request(argv, command.env, command.data, command.timeout)
        try:
            done = reply.result(command.timeout + ANSWER_SECONDS)
        except TimeoutError:
            raise MachineError(f"{self.name} does not answer:\n{self.console()}") from None
        stdout, stderr = (base64.b64decode(done[stream]) for stream in ("stdout", "stderr"))
        if done["returncode"] is None:
            told = (stdout + stderr).decode(errors="replace")
            raise CommandTimeout(
                f"on {self.name}, not done after {command.timeout:.0f} s: "
                f"{shlex.join(command.argv)}\n{told}"
            )
        return subprocess.CompletedProcess(command.argv, done["returncode"], stdout, stderr)

    @property
    def agent(self) -> "Agent":
        if not self._agent:
            raise MachineError(f"{self.name} is not running")
        return self._agent

    def console(self) -> str:
        """What came over the serial console: the kernel's, systemd's and qemu's own words."""
        return (self._work / "console").read_text(errors="replace")

    def interact(self) -> None:
        """Boot on the caller's terminal, logged in as root, until the machine is powered off.

        Ctrl-A x ends it at once.
        """
        subprocess.run([*self._qemu_argv(""), "-serial", "mon:stdio"], check=True)

    def _wait_for_boot(self) -> None:
        try:
            self.agent.wait_for_boot(BOOT_SECONDS)
        except TimeoutError:
            raise MachineError(f"{self.name} did not boot:\n{self.console()}") from None
        self.wait_until_up()

    def _qemu_argv(self, kernel_options: str) -> list[str]:
        return [
            "qemu-system-x86_64",
            *("-accel", "tcg,thread=multi"),
            *("-cpu", "max"),
            *("-smp", str(CPUS)),
            *("-m", str(MEMORY_MIB)),
            *("-kernel", str(self._image.kernel)),
            *("-initrd", str(self._image.initrd)),
            *("-append", f"root=/dev/vda rw console=ttyS0 {kernel_options}"),
            *("-drive", f"file={self._disk},if=virtio,format=qcow2"),
            *("-device", "virtio-rng-pci"),
            *("-device", "virtio-serial-pci"),
            *("-nic", "none"),
            *("-display", "none"),
        ]


class Agent:
    """The host's end of the virtio port: requests out, replies in, each to who asked."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._boots: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def request(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        data: bytes = b"",
        timeout: float = ANSWER_SECONDS,
    ) -> Future[dict[str, Any]]:
        reply: Future[dict[str, Any]] = Future()
        with self._lock:
            number = next(self._ids)
            self._waiting[number] = reply
            request = {
                "id": number,
                "argv": list(argv),
                "env": dict(env or {}),
                "input": base64.b64encode(data).decode(),
                "timeout": timeout,
            }
            self._connection.sendall(json.dumps(request).encode() + b"\n")
        return reply

    def wait_for_boot(self, timeout: float) -> str:
        """The boot id of the next boot that the agent told of."""
        try:
            return self._boots.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None

    def join(self) -> None:
        """Wait for the end of a connection whose other end is gone."""
        self._thread.join()

    def _listen(self) -> None:
        with self._connection, self._connection.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                if "hello" in message:
                    self._give_up("the machine was restarted")
                    self._boots.put(message["hello"])
                elif reply := self._waiting.pop(message["id"], None):
                    reply.set_result(message)
        self._give_up("the machine went away")

    def _give_up(self, why: str) -> None:
        with self._lock:
            forsaken, self._waiting = self._waiting, {}
        for reply in forsaken.values():
            reply.set_exception(MachineError(why))
