# SPDX-License-Identifier: LGPL-2.1-or-later
"""org.bgtaskd.Worker.varlink says of named tasks' sockets what is so."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from bgtaskd.client.runner import FAILED, METHOD, answer_of, request
from bgtaskd.errors import CallFailed, InvalidSpec
from bgtaskd.protocol.codec import MESSAGE_MAX, MalformedMessage
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


def test_what_is_too_much_is_refused_before_it_is_sent() -> None:
    """The task would hang up while it is being sent, and that looks as if nobody had read it: send it again."""
    room = MESSAGE_MAX - len(request(""))
    assert len(request("x" * room)) == MESSAGE_MAX
    with pytest.raises(InvalidSpec, match="at most 1048576 bytes"):
        request("x" * (room + 1))


def test_what_the_task_cannot_read_was_a_wrong_payload() -> None:
    reply = json.loads(serving.malformed(MalformedMessage("nested deeper")).rstrip(b"\0"))
    with pytest.raises(InvalidSpec, match="payload: nested deeper"):
        answer_of(reply)
