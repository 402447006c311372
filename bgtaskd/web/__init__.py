# SPDX-License-Identifier: LGPL-2.1-or-later
"""A web app's side: its routes as tasks of kind http, and what its pages show of tasks.

Everything here needs the standard library only, and is loaded when it is first used. The app to mount is
``bgtaskd.web.wsgi.Page``, ``bgtaskd.web.asgi.Page`` or ``bgtaskd.web.django.path``.
"""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from bgtaskd.web.middleware import AsyncBackground as AsyncBackground
    from bgtaskd.web.middleware import Background as Background
    from bgtaskd.web.nonces import DirectoryNonces as DirectoryNonces
    from bgtaskd.web.nonces import MemoryNonces as MemoryNonces
    from bgtaskd.web.page import tags as tags
    from bgtaskd.web.references import InvalidReference as InvalidReference
    from bgtaskd.web.references import read_reference as read_reference
    from bgtaskd.web.references import reference as reference
    from bgtaskd.web.verification import NotVerified as NotVerified
    from bgtaskd.web.verification import RequestStatus as RequestStatus
    from bgtaskd.web.verification import verify as verify
    from bgtaskd.web.verification import verify_async as verify_async
    from bgtaskd.web.views import acceptable_wait as acceptable_wait

_HOMES = {
    "verify": "bgtaskd.web.verification",
    "verify_async": "bgtaskd.web.verification",
    "NotVerified": "bgtaskd.web.verification",
    "RequestStatus": "bgtaskd.web.verification",
    "Background": "bgtaskd.web.middleware",
    "AsyncBackground": "bgtaskd.web.middleware",
    "MemoryNonces": "bgtaskd.web.nonces",
    "DirectoryNonces": "bgtaskd.web.nonces",
    "reference": "bgtaskd.web.references",
    "read_reference": "bgtaskd.web.references",
    "InvalidReference": "bgtaskd.web.references",
    "tags": "bgtaskd.web.page",
    "acceptable_wait": "bgtaskd.web.views",
}
__all__ = [*_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'bgtaskd.web' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)
