# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which signed requests have been here already, so that none is taken twice."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from typing import Final, Protocol

COUNT_MAX: Final = 1_000_000
SWEEP_SECONDS: Final = 60.0


class Nonces(Protocol):
    """Remembers nonces."""

    def take(self, nonce: str, seconds: float) -> bool:
        """Whether it is new; then it is remembered, for so long. ``nonce``: 32 hex digits."""


class MemoryNonces:
    """In this process: enough where one process serves the app."""

    def __init__(self) -> None:
        self._until: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, nonce: str, seconds: float) -> bool:
        """See Nonces. Once there is no more room, all are refused: then rather none than one twice."""
        now = time.monotonic()
        with self._lock:
            while self._until and next(iter(self._until.values())) <= now:
                self._until.popitem(last=False)
            if nonce in self._until or len(self._until) >= COUNT_MAX:
                return False
            # In order of coming: one may be remembered a little longer than it must.
            self._until[nonce] = now + seconds
            return True


class DirectoryNonces:
    """In a directory, which the app's processes share: ``DirectoryNonces("/run/shop/nonces")``.

    It must be there, and be theirs alone to write in.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._swept = 0.0

    def take(self, nonce: str, seconds: float) -> bool:
        """See Nonces. Raises OSError where the directory cannot be written."""
        self._sweep(seconds)
        path = os.path.join(self._path, nonce)
        try:
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return False
        os.close(fd)
        return True

    def _sweep(self, seconds: float) -> None:
        """Now and then, forget what is older than any signature that is taken."""
        now = time.time()
        if abs(now - self._swept) < SWEEP_SECONDS:
            return
        self._swept = now
        with os.scandir(self._path) as found:
            for one in found:
                try:
                    if one.stat(follow_symlinks=False).st_mtime < now - seconds:
                        os.unlink(one.path)
                except FileNotFoundError:
                    pass  # another process was faster
