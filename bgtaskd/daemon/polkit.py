# SPDX-License-Identifier: LGPL-2.1-or-later
"""One question to polkit: may this D-Bus caller manage other people's tasks? Anything but a yes is a no."""

from __future__ import annotations

from typing import Final

from dbus_next import Message, MessageType, Variant
from dbus_next.aio import MessageBus

ACTION: Final = "org.bgtaskd1.manage"
ALLOW_INTERACTION: Final = 1


async def may_manage(bus: MessageBus, sender: str, interactive: bool) -> bool:
    """Ask, by the caller's unique name: that cannot be reused while we wait."""
    reply = await bus.call(
        Message(
            destination="org.freedesktop.PolicyKit1",
            path="/org/freedesktop/PolicyKit1/Authority",
            interface="org.freedesktop.PolicyKit1.Authority",
            member="CheckAuthorization",
            signature="(sa{sv})sa{ss}us",
            body=[
                ["system-bus-name", {"name": Variant("s", sender)}],
                ACTION,
                {},
                ALLOW_INTERACTION if interactive else 0,
                "",
            ],
        )
    )
    if reply is None or reply.message_type is not MessageType.METHOD_RETURN:
        return False
    return reply.body[0][0] is True
