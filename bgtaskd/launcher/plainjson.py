# SPDX-License-Identifier: LGPL-2.1-or-later
"""JSON out of plain values, without the json package: it would bring re and enum into every supervisor."""

from __future__ import annotations

from _json import encode_basestring_ascii

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def dumps(value: Any) -> str:
    """What json.dumps() gives, for None, bool, int, finite float, str, and lists and dicts of these."""
    if isinstance(value, str):
        return encode_basestring_ascii(value)
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, list):
        return f"[{', '.join([dumps(one) for one in value])}]"
    return f"{{{members(value)}}}"


def members(values: dict[str, Any]) -> str:
    """An object's inside, to be joined with others."""
    return ", ".join(
        [f"{encode_basestring_ascii(key)}: {dumps(one)}" for key, one in values.items()]
    )
