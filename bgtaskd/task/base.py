# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a developer writes: a class with execute(), or a function with @background."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Generic, ParamSpec, TypeVar

from bgtaskd.client.blocking import Client
from bgtaskd.client.path import SYSTEM
from bgtaskd.task import target as targets
from bgtaskd.task.own import OwnStatus
from bgtaskd.task.status import TaskStatus, shared_client

Parameters = ParamSpec("Parameters")
Value = TypeVar("Value")
PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")


class BackgroundTask:
    """Work that is to be done outside of this process. Write :meth:`execute`, call :meth:`initiate`.

    ``options``: of every task of this class, those of Client.start (queue, timeout, retries, properties, …);
    ``preload``, the modules that are loaded once for many tasks, or True for the one of the class.
    In the task, ``self.settings`` are the settings, ``self.secrets`` the secrets, and ``self.status`` is what
    execute() gets.
    """

    options: ClassVar[Mapping[str, Any]] = {}
    settings: Any = None
    secrets: Mapping[str, str] = MappingProxyType({})
    status: OwnStatus

    def execute(self, status: OwnStatus) -> Any:
        """The work, in a process of its own. What it returns (any JSON) is the task's ``result_value``."""
        raise NotImplementedError(f"{type(self).__qualname__} needs an execute(self, status)")

    @classmethod
    def get_secrets(cls) -> Mapping[str, str]:
        """What the task must know and nobody else, asked in the caller's process by :meth:`initiate`.

        It travels over sockets and a descriptor alone, and is ``self.secrets`` in the task.
        """
        return {}

    @classmethod
    def initiate(
        cls, settings: Any = None, *, client: Client | None = None, **options: Any
    ) -> TaskStatus:
        """Have execute() run in the background: with this interpreter, import path and directory, as this user.

        Returns once the task is on the disk. ``settings``: any JSON. ``options``: those of Client.start,
        and ``python``, another interpreter. Raises InvalidTarget, and what Client.start does.
        """
        return start(cls, cls.__qualname__, settings, {**cls.options, **options}, client)


class BackgroundFunction(Generic[Parameters, Value]):
    """A function that can be run in the background; called, it runs here and now."""

    def __init__(self, function: Callable[Parameters, Value], options: Mapping[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.options = options

    def __call__(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Value:
        """Run it here and now."""
        return self.function(*args, **kwargs)

    def initiate(self, **settings: Any) -> TaskStatus:
        """Have ``function(status, **settings)`` run in the background: see BackgroundTask.initiate.

        Raises TypeError where the function does not take these settings.
        """
        return Prepared(self, {}).initiate(**settings)

    def using(self, **options: Any) -> Prepared:
        """The same with other options: ``reticulate.using(queue="slow", timeout=60).initiate(n=3)``."""
        return Prepared(self, options)


class Prepared:
    """A function, and the options with which it is to be run."""

    def __init__(self, function: BackgroundFunction[Any, Any], options: Mapping[str, Any]) -> None:
        self._function = function
        self._options = {**function.options, **options}

    def initiate(self, **settings: Any) -> TaskStatus:
        """See BackgroundFunction.initiate."""
        import inspect

        inspect.signature(self._function.function).bind(None, **settings)
        options = dict(self._options)
        client = options.pop("client", None)
        name = self._function.function.__qualname__
        return start(self._function, name, settings, options, client)


def background(function: Any = None, /, **options: Any) -> Any:
    """Make a function a background task: ``@background``, or ``@background(queue="slow", timeout=60)``.

    The function gets the task's status first, then its settings by name. ``options``: those of Client.start.
    """
    if function is None:
        return functools.partial(BackgroundFunction, options=options)
    return BackgroundFunction(function, options)


def start(
    thing: Any, name: str, settings: Any, options: dict[str, Any], client: Client | None
) -> TaskStatus:
    """Start a task of kind python."""
    target = targets.target_of(thing, name, thing.__module__)
    python = options.pop("python", None) or targets.interpreter()
    if "cwd" not in options and options.get("user") is None:
        options["cwd"] = _cwd()  # somebody else starts in their own home
    if isinstance(thing, type) and issubclass(thing, BackgroundTask):
        options.setdefault("secrets", thing.get_secrets() or None)
    one = client or shared_client()
    if one.path != SYSTEM:
        options["env"] = {"BGTASKD_SOCKET": one.path, **(options.get("env") or {})}
    if options.get("preload") is True:
        options["preload"] = [_importable(thing, name)]
    options = {"name": name, **options, "kind": "python", "target": target, "settings": settings}
    task_id = one.start([python, PROGRAM], import_path=targets.import_path(), **options)
    return TaskStatus(task_id, client=one)


def run(thing: Any, status: OwnStatus) -> Any:
    """In the task: do the work; its value."""
    from bgtaskd.errors import InvalidTarget

    if isinstance(thing, BackgroundFunction):
        return thing.function(status, **(status.settings or {}))
    if not (isinstance(thing, type) and issubclass(thing, BackgroundTask)):
        name = getattr(thing, "__qualname__", repr(thing))
        raise InvalidTarget(name, "it is neither a BackgroundTask nor a function with @background")
    task = thing()
    task.status, task.settings, task.secrets = status, status.settings, status.secrets
    return task.execute(status)


def _importable(thing: Any, name: str) -> str:
    from bgtaskd.errors import InvalidTarget

    module: str = thing.__module__
    if module in ("__main__", targets.MAIN):
        raise InvalidTarget(name, "a script cannot be preloaded; put the task into a module")
    return module


def _cwd() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None
