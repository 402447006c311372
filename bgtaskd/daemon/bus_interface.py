# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the D-Bus door looks like: its properties, and its introspection data. No I/O.

The introspection data is made from the tables, so the two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dbus_next import Variant

from bgtaskd.daemon.bus_methods import METHODS, Named
from bgtaskd.daemon.bus_signals import INTERFACE, PATH, SIGNALS
from bgtaskd.daemon.bus_values import text

# Property: signature, and what PropertiesChanged says of it: "const": it never changes while the daemon
# runs; "false": it changes too often for signals (as NJobs of org.freedesktop.systemd1.Manager).
PROPERTIES: Final[Mapping[str, tuple[str, str]]] = {
    "Version": ("s", "const"),
    "Launcher": ("s", "const"),
    "NTasks": ("t", "false"),
    "NRunning": ("t", "false"),
}


def property_values(status: Mapping[str, Any]) -> dict[str, Variant]:
    """All properties, from what the operation Status returned."""
    tasks: Mapping[str, int] = status["tasks"]
    running = tasks.get("running", 0) + tasks.get("paused", 0)
    waiting = tasks.get("queued", 0) + tasks.get("delayed", 0)
    values: dict[str, Any] = {
        "Version": text(status["version"]),
        "Launcher": text(status["launcher"]),
        "NTasks": running + waiting,
        "NRunning": running,
    }
    return {name: Variant(PROPERTIES[name][0], value) for name, value in values.items()}


def _arguments(arguments: Named, direction: str) -> str:
    how = f' direction="{direction}"' if direction else ""
    return "".join(
        f'   <arg type="{signature}" name="{name}"{how}/>\n' for name, signature in arguments
    )


def _manager() -> str:
    parts = [f' <interface name="{INTERFACE}">\n']
    for method in METHODS.values():
        arguments = _arguments(method.takes, "in") + _arguments(method.gives, "out")
        parts.append(f'  <method name="{method.name}">\n{arguments}  </method>\n')
    for name, (named, _) in SIGNALS.items():
        parts.append(f'  <signal name="{name}">\n{_arguments(named, "")}  </signal>\n')
    for name, (signature, changes) in PROPERTIES.items():
        annotation = (
            f'   <annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal"'
            f' value="{changes}"/>\n'
        )
        opening = f'  <property name="{name}" type="{signature}" access="read">\n'
        parts.append(f"{opening}{annotation}  </property>\n")
    parts.append(" </interface>\n")
    return "".join(parts)


_DOCTYPE: Final = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    '"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)
_STANDARD: Final = """\
 <interface name="org.freedesktop.DBus.Peer">
  <method name="Ping"/>
  <method name="GetMachineId">
   <arg type="s" name="machine_uuid" direction="out"/>
  </method>
 </interface>
 <interface name="org.freedesktop.DBus.Introspectable">
  <method name="Introspect">
   <arg type="s" name="xml_data" direction="out"/>
  </method>
 </interface>
 <interface name="org.freedesktop.DBus.Properties">
  <method name="Get">
   <arg type="s" name="interface_name" direction="in"/>
   <arg type="s" name="property_name" direction="in"/>
   <arg type="v" name="value" direction="out"/>
  </method>
  <method name="GetAll">
   <arg type="s" name="interface_name" direction="in"/>
   <arg type="a{sv}" name="props" direction="out"/>
  </method>
  <method name="Set">
   <arg type="s" name="interface_name" direction="in"/>
   <arg type="s" name="property_name" direction="in"/>
   <arg type="v" name="value" direction="in"/>
  </method>
  <signal name="PropertiesChanged">
   <arg type="s" name="interface_name"/>
   <arg type="a{sv}" name="changed_properties"/>
   <arg type="as" name="invalidated_properties"/>
  </signal>
 </interface>
"""


def introspection(path: str) -> str | None:
    """The introspection data of an object; None where there is none."""
    if path == PATH:
        return f"{_DOCTYPE}<node>\n{_STANDARD}{_manager()}</node>\n"
    ancestors = {"/": "org"}
    steps = PATH.split("/")[1:]
    for depth in range(1, len(steps)):
        ancestors["/" + "/".join(steps[:depth])] = steps[depth]
    child = ancestors.get(path)
    return None if child is None else f'{_DOCTYPE}<node>\n <node name="{child}"/>\n</node>\n'
