# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a class or function is named, so that a new process finds it; and how that process does."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import Any

from bgtaskd.errors import InvalidTarget, StartedWhileLoading

MAIN = "__mp_main__"
"""What a script is called in the task: not __main__, so that what it does when it is run is not done again.
By this name multiprocessing loads it in its own new processes, so what is pickled here is found there."""

_loading = False


def target_of(thing: Any, name: str, module: str) -> str:
    """The target of a class or function: "module:name", or "/path/script.py:name" for one of __main__.

    Raises InvalidTarget for what a new process could not find by that name.
    """
    if _loading:
        raise StartedWhileLoading(name)
    if "<lambda>" in name:
        raise InvalidTarget(name, "it is a lambda, which has no name; write it with def")
    if "<locals>" in name:
        outer = name.partition(".<locals>")[0]
        reason = (
            f"it is made inside of {outer}, so a new process cannot find it by its name;"
            " move it to the top level of its module, and hand over what it needs as settings"
        )
        raise InvalidTarget(name, reason)
    home = sys.modules.get(module)
    found: Any = home
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not thing:
        what = "nothing" if found is None else "something else"
        raise InvalidTarget(name, f"by this name there is {what} in module {module}")
    if module == "__main__":
        return f"{_main(name, home)}:{name}"
    if module == MAIN:
        return f"{getattr(home, '__file__', '')}:{name}"  # a task that starts another of its script
    if not _is_importable(module):
        reason = f"its module {module} cannot be imported by that name in a new process"
        raise InvalidTarget(name, f"{reason} (it is in nothing that sys.path names)")
    return f"{module}:{name}"


def _main(name: str, main: Any) -> str:
    spec = getattr(main, "__spec__", None)
    if spec is not None:  # python -m package.module
        return str(spec.name)
    path: str | None = getattr(main, "__file__", None)
    if path is None or not os.path.isfile(path):
        reason = "it was typed in, not read from a file (or the file is gone); put it into a module"
        raise InvalidTarget(name, reason)
    return os.path.abspath(path)


def _is_importable(module: str) -> bool:
    """Whether an import would find it, were it not loaded already."""
    prefix, path = "", None
    for part in module.split("."):
        prefix += part
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = None if find is None else find(prefix, path, None)
            if spec is not None:
                break
        else:
            return False
        path = spec.submodule_search_locations
        prefix += "."
    return True


def import_path() -> list[str]:
    """This process's sys.path, absolute."""
    return [os.path.abspath(one) for one in sys.path]


def interpreter() -> str:
    """This process's Python. Raises InvalidTarget where it is not to be found: inside another program."""
    if os.path.basename(sys.executable).startswith(("python", "pypy")):
        return sys.executable
    # Inside an application server (uWSGI, mod_wsgi) sys.executable is the server, or nothing.
    for name in (f"python{sys.version_info[0]}.{sys.version_info[1]}", "python3", "python"):
        path = os.path.join(sys.prefix, "bin", name)
        if os.access(path, os.X_OK):
            return path
    raise InvalidTarget("the task", f"no interpreter under {sys.prefix}; say python='/path/to/it'")


def load(target: str) -> Any:
    """What a target names. Raises what its module raises, and InvalidTarget."""
    module, _, name = target.rpartition(":")
    found = load_module(module)
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise InvalidTarget(name, f"there is no such name in {module}") from None
    return found


def load_module(module: str) -> Any:
    """A module, or a script by its path. Raises what it raises."""
    global _loading
    _loading = True
    try:
        return _load_script(module) if module.startswith("/") else importlib.import_module(module)
    finally:
        _loading = False


def _load_script(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(MAIN, path)
    if spec is None or spec.loader is None:
        raise InvalidTarget(path, "this is not a Python script (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MAIN] = module
    spec.loader.exec_module(module)
    module.__spec__ = None  # as a script's is: multiprocessing goes by its path then
    sys.modules["__main__"] = module  # what was pickled in the script is found
    return module
