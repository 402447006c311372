# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asks polkit whether somebody on the bus may manage other people's tasks.

Only callers on D-Bus are asked about: their unique name is a subject that nobody else can take over, whereas
a process id can be (by the time polkit looks, it may be another process). Whatever goes wrong means no.
"""

from __future__ import annotations

import logging
from enum import Enum
from typing import Final

from dbus_next import Variant

from bgtaskd.daemon.bus_connection import BusError, Connection

logger = logging.getLogger(__name__)

MANAGE: Final = "org.bgtaskd1.manage"

# A password has to be typed, and found first.
INTERACTIVE_TIMEOUT: Final = 300.0
TIMEOUT: Final = 10.0

_ALLOW_USER_INTERACTION: Final = 1
_ABSENT: Final = frozenset(
    {
        "org.freedesktop.DBus.Error.ServiceUnknown",
        "org.freedesktop.DBus.Error.NameHasNoOwner",
        "org.freedesktop.DBus.Error.Spawn.ServiceNotFound",
    }
)


class Answer(Enum):
    """What polkit says."""

    YES = "yes"
    NO = "no"
    WOULD_ASK = "would ask"
    """No, but a password would change that, and the caller did not want to be asked."""


async def may_manage(
    connection: Connection, caller: str, interactive: bool, details: dict[str, str]
) -> Answer:
    """Whether the connection with the unique name ``caller`` may manage other people's tasks.

    interactive: whether the user may be asked for a password now. details: what rules may look at.
    Never raises.
    """
    try:
        [[authorized, challenge, _]] = await connection.ask(
            "org.freedesktop.PolicyKit1",
            "/org/freedesktop/PolicyKit1/Authority",
            "org.freedesktop.PolicyKit1.Authority",
            "CheckAuthorization",
            "(sa{sv})sa{ss}us",
            [
                ["system-bus-name", {"name": Variant("s", caller)}],
                MANAGE,
                details,
                _ALLOW_USER_INTERACTION if interactive else 0,
                "",
            ],
            patience=INTERACTIVE_TIMEOUT if interactive else TIMEOUT,
        )
    except BusError as error:
        if error.name not in _ABSENT:
            logger.warning("polkit does not answer whether %s may: %s", MANAGE, error)
        return Answer.NO
    except (ValueError, TypeError) as error:
        logger.warning("polkit answers something strange to whether %s may: %r", MANAGE, error)
        return Answer.NO
    if authorized is True:
        return Answer.YES
    return Answer.WOULD_ASK if challenge is True else Answer.NO
