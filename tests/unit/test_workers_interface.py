# SPDX-License-Identifier: LGPL-2.1-or-later
"""org.bgtaskd.Worker.varlink says of named tasks' sockets what is so."""

from __future__ import annotations

import json
from importlib.resources import files

from bgtaskd.client.runner import FAILED, METHOD
from bgtaskd.errors import CallFailed
from bgtaskd.protocol.codec import MalformedMessage
from bgtaskd.protocol.idl import parse
from bgtaskd.task import serving


def test_the_interface_is_what_is_served_and_called() -> None:
    text = (files("bgtaskd.protocol") / "org.bgtaskd.Worker.varlink").read_text("utf-8")
    interface = parse(text)
    assert list(interface.methods) == ["Call"]
    assert METHOD == serving.METHOD == f"{interface.name}.Call"
    replies = [serving.call_failed(ValueError("x")), serving.malformed(MalformedMessage("y"))]
    for reply, name in zip(replies, ("CallFailed", "MalformedMessage"), strict=True):
        said = json.loads(reply.rstrip(b"\0"))
        assert said["error"] == f"{interface.name}.{name}"
        assert set(said["parameters"]) == set(interface.errors[name].fields)
    assert f"{interface.name}.CallFailed" == FAILED
    assert tuple(interface.errors["CallFailed"].fields) == CallFailed.fields
