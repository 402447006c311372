# SPDX-License-Identifier: LGPL-2.1-or-later
"""Our interface file, and the one that every Varlink service has."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from bgtaskd.protocol.idl import Interface, parse

SERVICE_TEXT = """\
# What every Varlink service offers.
interface org.varlink.service

# What this service is, and its interfaces.
method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)

# The text of one interface.
method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
error PermissionDenied ()
error ExpectedMore ()
"""


@cache
def bgtaskd_interface() -> Interface:
    """org.bgtaskd."""
    return parse((files("bgtaskd.protocol") / "org.bgtaskd.varlink").read_text("utf-8"))


@cache
def service_interface() -> Interface:
    """org.varlink.service."""
    return parse(SERVICE_TEXT)
