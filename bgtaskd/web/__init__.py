# SPDX-License-Identifier: LGPL-2.1-or-later
"""A web app's side of tasks of kind http: is this request one of ours, and how does its route report?

Everything here needs the standard library only, and is loaded when it is first used.
"""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from bgtaskd.web.middleware import AsyncBackground as AsyncBackground
    from bgtaskd.web.middleware import Background as Background
    from bgtaskd.web.nonces import DirectoryNonces as DirectoryNonces
    from bgtaskd.web.nonces import MemoryNonces as MemoryNonces
    from bgtaskd.web.verification import NotVerified as NotVerified
    from bgtaskd.web.verification import RequestStatus as RequestStatus
    from bgtaskd.web.verification import verify as verify
    from bgtaskd.web.verification import verify_async as verify_async

_HOMES = {
    "verify": "bgtaskd.web.verification",
    "verify_async": "bgtaskd.web.verification",
    "NotVerified": "bgtaskd.web.verification",
    "RequestStatus": "bgtaskd.web.verification",
    "Background": "bgtaskd.web.middleware",
    "AsyncBackground": "bgtaskd.web.middleware",
    "MemoryNonces": "bgtaskd.web.nonces",
    "DirectoryNonces": "bgtaskd.web.nonces",
}
__all__ = [*_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'bgtaskd.web' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)
