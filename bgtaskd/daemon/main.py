# SPDX-License-Identifier: LGPL-2.1-or-later
"""bgtaskd: the brain. Puts the parts together, and speaks with systemd about itself."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sdnotify

import bgtaskd
from bgtaskd.apps import App, load_apps
from bgtaskd.check import check
from bgtaskd.config import CONF_D, PATH, Config, ConfigErrors, load_config
from bgtaskd.daemon import retention
from bgtaskd.daemon.api import Api
from bgtaskd.daemon.engine import Engine
from bgtaskd.daemon.launcher_link import LauncherError, LauncherLink
from bgtaskd.daemon.logfeed import LogFeeds
from bgtaskd.daemon.payloads import Payloads
from bgtaskd.daemon.policy import Policy
from bgtaskd.daemon.requests import Requests
from bgtaskd.daemon.secrets import Secrets
from bgtaskd.daemon.supervisors import Supervisors
from bgtaskd.daemon.workers import Workers
from bgtaskd.launcher.proc import boot_id
from bgtaskd.protocol.server import Limits, Server
from bgtaskd.schedules import load_schedules
from bgtaskd.storage.interface import Storage, StorageError
from bgtaskd.storage.payloads import open_payloads
from bgtaskd.storage.registry import open_backend
from bgtaskd.workers import load_workers

if TYPE_CHECKING:
    from bgtaskd.daemon.bus import Bus

log = logging.getLogger("bgtaskd")

FIRST_FD = 3
BAD_CONFIG_SECONDS = 2.0


@dataclass(frozen=True)
class Places:
    """Where things are, in this way of running."""

    mode: str
    state: Path
    run: Path
    database: Path
    control: Path
    config: str
    conf_d: str

    @property
    def schedules(self) -> str:
        """Beside conf.d."""
        return str(Path(self.conf_d).parent / "schedules.d")

    @property
    def workers(self) -> str:
        """Beside conf.d."""
        return str(Path(self.conf_d).parent / "tasks.d")

    @property
    def apps(self) -> str:
        """Beside conf.d."""
        return str(Path(self.conf_d).parent / "apps.d")

    def requests(self) -> Requests:
        """How tasks of kind http are run; no app yet."""
        if self.mode == "scope":
            return Requests()
        program = Path(bgtaskd.__file__).parent / "httptask" / "__main__.py"
        return Requests(argv=(sys.executable, "-I", str(program)), socket=str(self.control))


def main() -> None:
    """Entry point of bgtaskd."""
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format=_Format.pick(), stream=sys.stderr)
    places = _places(arguments)
    try:
        config = load_config(places.config, places.conf_d)
    except ConfigErrors as errors:
        for one in errors.errors:
            sys.stderr.write(f"<3>bgtaskd: {one}\n")
        if "LISTEN_FDS" in os.environ:
            # Whoever waits at our sockets has us started again, until the mistake is mended: not too often.
            time.sleep(BAD_CONFIG_SECONDS)
        sys.exit(os.EX_CONFIG)
    try:
        asyncio.run(Daemon(places, config).run())
    except (StorageError, OSError) as error:
        sys.stderr.write(f"bgtaskd: cannot start: {error}\n")
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bgtaskd", description="Runs background tasks, each in a scope of its own."
    )
    parser.add_argument(
        "--launcher", choices=("scope", "process"), default="scope", help="how tasks are launched"
    )
    parser.add_argument(
        "--user", action="store_true", help="serve one user, through systemd --user"
    )
    parser.add_argument(
        "--state", type=Path, help="where everything is kept (default: /var/lib/bgtaskd)"
    )
    parser.add_argument("--socket", type=Path, help="where to listen, unless systemd does")
    parser.add_argument("--config", help=f"the configuration (default: {PATH})")
    parser.add_argument("--version", action="version", version=f"bgtaskd {bgtaskd.__version__}")
    return parser


def _places(arguments: argparse.Namespace) -> Places:
    if arguments.launcher == "process":
        state = (arguments.state or Path.home() / ".local/state/bgtaskd").absolute()
        run, database, mode = state / "run", state / "state.db", "process"
        config, conf_d = str(state / "bgtaskd.yaml"), str(state / "conf.d")
    elif arguments.user:
        state = (
            arguments.state
            or Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local/state")) / "bgtaskd"
        )
        run, database, mode = (
            Path(os.environ["XDG_RUNTIME_DIR"]) / "bgtaskd",
            state / "state.db",
            "user",
        )
        home = Path(os.environ.get("XDG_CONFIG_HOME", Path.home() / ".config")) / "bgtaskd"
        config, conf_d = str(home / "bgtaskd.yaml"), str(home / "conf.d")
    else:
        state = arguments.state or Path("/var/lib/bgtaskd")
        run, database, mode = Path("/run/bgtaskd"), state / "state/state.db", "scope"
        config, conf_d = PATH, CONF_D
    control = arguments.socket or run / "control.sock"
    return Places(mode, state, run, database, control, arguments.config or config, conf_d)


class _Format:
    """Priorities for the journal, where the journal reads stderr; plain text elsewhere."""

    @staticmethod
    def pick() -> str:
        if "JOURNAL_STREAM" not in os.environ:
            return "bgtaskd: %(levelname)s: %(message)s"
        for level, priority in (
            (logging.DEBUG, 7),
            (logging.INFO, 6),
            (logging.WARNING, 4),
            (logging.ERROR, 3),
            (logging.CRITICAL, 2),
        ):
            logging.addLevelName(level, f"<{priority}>")
        return "%(levelname)s%(message)s"


class Daemon:
    """All parts, for one run."""

    def __init__(self, places: Places, config: Config) -> None:
        self._places = places
        self._config = config
        self._notifier = sdnotify.SystemdNotifier()
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []
        self._bus: Bus | None = None
        self._taking_workers = asyncio.Lock()
        self._launcher_process: subprocess.Popen[bytes] | None = None

    async def run(self) -> None:
        """Start up, serve, and stop in good order."""
        places = self._places
        sockets = _sockets(places)
        storage, aside = self._open_storage()
        link = LauncherLink(str(places.run / "launcher.sock"), self._launcher_connected)
        secrets = Secrets(str(places.run / "secrets"))
        self._engine = Engine(self._config, storage, link, secrets, boot_id(), places.requests())
        payloads = Payloads(open_payloads(places.database.with_name("payloads.db")))
        self._payloads = payloads
        self._workers = Workers(self._engine, payloads, str(places.run / "workers.sock"))
        self._supervisors = Supervisors(self._engine, str(places.state / "exits"), os.getuid())
        self._api = Api(
            self._engine,
            self._supervisors,
            self._policy(),
            places.mode,
            payloads,
            self._workers,
        )
        self._api.tasks_dir = str(places.state / "tasks")
        logs = places.database.with_name("logs")
        self._logs = LogFeeds(self._engine, logs, self._api.tasks_dir)
        self._supervisors.on_output = self._logs.grew
        self._api.reload = self._reload
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._engine.job(self._reload()))
        if places.mode == "process":
            self._start_launcher()
        self._background(link.run())
        if aside is not None:
            await self._after_corruption(link, storage, aside)
        await self._supervisors.serve(sockets["supervisors"])
        self._engine.load(storage.unended())
        self._logs.start()
        self._workers.load()
        await loop.create_unix_server(self._workers.link, sock=sockets["workers"])
        self._supervisors.recover()
        limits = Limits(self._config.connections_per_user, self._config.requests_per_user)
        self._server = Server(self._api.handlers(), limits)
        await self._server.serve(sockets["control"])
        self._tasks_server = Server(self._api.handlers_for_tasks(), limits)
        if "tasks" in sockets:
            await self._tasks_server.serve(sockets["tasks"])
        await self._start_bus()
        self._background(retention.run(self._engine))
        self._background(self._watchdog())
        self._engine.schedule()
        gc.freeze()
        self._notifier.notify(f"READY=1\nSTATUS=Serving {len(self._config.queues)} queues")
        await self._stopping.wait()
        await self._stop(storage)

    def _policy(self) -> Policy:
        """By the configuration, and the apps, which are read anew. A file with a mistake counts as before."""
        apps, errors = load_apps(self._places.apps)
        for error in errors:
            log.error("%s", error)
        wrong = {Path(error.path).stem for error in errors}
        kept = {name: app for name, app in self._engine.requests.apps.items() if name in wrong}
        known: dict[str, App] = {**kept, **apps}
        self._engine.requests.apps = known
        own_uid = None if self._places.mode == "scope" else os.getuid()
        return Policy(self._config.policy, own_uid=own_uid, apps=known)

    def _background(self, work: Any) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work))

    def _open_storage(self) -> tuple[Storage, Path | None]:
        return open_backend(self._config.storage, self._places.database)

    async def _after_corruption(self, link: LauncherLink, storage: Storage, aside: Path) -> None:
        log.critical("The database was corrupt. It is kept as %s; a fresh one was made.", aside)
        highest = (await link.insist("highest"))["id"]
        storage.raise_next_task_id(highest + 1)
        self._engine.next_id = storage.next_task_id()

    def _launcher_connected(self) -> None:
        self._limit_queues()
        self._engine.job(self._take_schedules())
        self._engine.job(self._take_workers())

    async def _take_workers(self) -> None:
        files, errors = load_workers(self._places.workers)
        for error in errors:
            log.error("%s", error)
        wrong = {Path(error.path).stem for error in errors}
        known = {one.file.name: one.file for one in self._workers.all() if one.file.name in wrong}
        async with self._taking_workers:
            await self._workers.configure({**known, **files})

    async def _take_schedules(self) -> None:
        files, errors = load_schedules(self._places.schedules)
        for error in errors:
            log.error("%s", error)
        try:
            await self._api.schedules.take_files(files)
        except StorageError as error:
            log.error("Schedules cannot be kept: %s", error)
        await self._api.schedules.arm_all()

    def _limit_queues(self) -> None:
        for queue, properties in self._engine.queue_limits():
            self._engine.job(self._limit(queue, properties))

    async def _limit(self, queue: str, properties: dict[str, str]) -> None:
        try:
            await self._engine.launcher.insist("slice", queue=queue, properties=properties)
        except LauncherError as error:
            log.warning("Queue %s: its limits could not be set: %s", queue, error)

    def _start_launcher(self) -> None:
        places = self._places
        argv = [sys.executable, "-m", "bgtaskd.launcher.main", "--mode=process"]
        argv += [f"--state={places.state}", f"--run={places.run}", "--until-stdin-ends"]
        argv.append(f"--workers={places.workers}")
        root = str(Path(bgtaskd.__file__).parent.parent)
        env = {
            key: value
            for key, value in os.environ.items()
            if key not in ("NOTIFY_SOCKET", "LISTEN_FDS")
        }
        path = os.pathsep.join(filter(None, (root, env.get("PYTHONPATH"))))
        self._launcher_process = subprocess.Popen(
            argv, env={**env, "PYTHONPATH": path}, stdin=subprocess.PIPE
        )

    async def _start_bus(self) -> None:
        if self._places.mode == "process":
            return
        from bgtaskd.daemon.bus import Bus

        self._bus = bus = Bus(self._api, user=self._places.mode == "user")
        self._engine.subscribe(bus.announce)
        self._engine.signal_subscribers.append(
            lambda task, message: bus.announce(
                "signaled", task, {"name": message.name, "payload": message.payload}
            )
        )
        await bus.start()

    async def _reload(self) -> list[str]:
        """Take all files over, but for those with mistakes; these."""
        if self._take_config():
            await self._take_schedules()
            await self._take_workers()
            self._engine.schedule()
        return [str(one) for one in check(self._places.config, self._places.conf_d)[1]]

    def _take_config(self) -> bool:
        usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._notifier.notify(f"RELOADING=1\nMONOTONIC_USEC={usec}")
        try:
            config = load_config(self._places.config, self._places.conf_d)
        except ConfigErrors as errors:
            for one in errors.errors:
                log.error("%s", one)
            self._notifier.notify(
                "READY=1\nSTATUS=Kept the old configuration: the new one has mistakes"
            )
            return False
        self._config = config
        self._engine.configure(config)
        self._logs.configure()
        self._api.policy = self._policy()
        limits = Limits(config.connections_per_user, config.requests_per_user)
        self._server.limits = self._tasks_server.limits = limits
        self._limit_queues()
        log.info("Reloaded the configuration")
        self._notifier.notify(f"READY=1\nSTATUS=Serving {len(config.queues)} queues")
        return True

    async def _watchdog(self) -> None:
        usec = int(os.environ.get("WATCHDOG_USEC", "0"))
        while usec:
            self._notifier.notify("WATCHDOG=1")
            await asyncio.sleep(usec / 2e6)

    async def _stop(self, storage: Storage) -> None:
        self._notifier.notify("STOPPING=1")
        await self._server.close()
        await self._tasks_server.close()
        if self._bus is not None:
            await self._bus.stop()
        await self._logs.stop()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._engine.save(), 5)
            await asyncio.wait_for(self._engine.writer.drain(), 5)
            await asyncio.wait_for(self._payloads.writer.drain(), 5)
        for task in self._tasks:
            task.cancel()
        if self._launcher_process is not None:
            self._launcher_process.terminate()
        self._engine.writer.close()
        self._payloads.writer.close()
        storage.close()


def _sockets(places: Places) -> dict[str, socket.socket]:
    """The listening sockets: systemd's, by name, or our own. The tasks' own is always systemd's: elsewhere
    they run as the daemon's user."""
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    given = {}
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        for number, name in enumerate(names[: int(os.environ.get("LISTEN_FDS", "0"))]):
            given[name] = socket.socket(fileno=FIRST_FD + number)
            os.set_inheritable(FIRST_FD + number, False)
    for name, path in (
        ("control", places.control),
        ("supervisors", places.run / "supervisors.sock"),
        ("workers", places.run / "workers.sock"),
    ):
        if name not in given:
            given[name] = _listen(path)
    for sock in given.values():
        sock.setblocking(False)
    return given


def _listen(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    probe = socket.socket(socket.AF_UNIX)
    try:
        probe.connect(str(path))
    except OSError:
        path.unlink(missing_ok=True)
    else:
        raise OSError(f"another bgtaskd serves {path} already")
    finally:
        probe.close()
    sock = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        sock.bind(str(path))
    finally:
        os.umask(before)
    sock.listen(4096)
    return sock


if __name__ == "__main__":
    main()
