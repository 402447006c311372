# SPDX-License-Identifier: LGPL-2.1-or-later
"""Markup that cannot be forgotten to be escaped: what is no Html is text. Pure."""

from __future__ import annotations

import html
from typing import Any, Final

from bgtaskd.web.page import Html

VOID: Final = frozenset({"input", "link", "meta", "br"})


def el(tag: str, *children: Any, **attributes: Any) -> Html:
    """An element. Children: Html, text, or lists of them; None is left out.

    Attributes: ``class_`` and ``data_x`` are class and data-x; True is the name alone, None and False nothing.
    """
    named = ""
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        named += f" {name.rstrip('_').replace('_', '-')}"
        if value is not True:
            named += f'="{html.escape(str(value))}"'
    if tag in VOID:
        return Html(f"<{tag}{named}>")
    return Html(f"<{tag}{named}>{text(*children)}</{tag}>")


def text(*children: Any) -> Html:
    """Children one after the other."""
    out: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, (list, tuple)):
            out.append(text(*child))
        else:
            out.append(child if isinstance(child, Html) else html.escape(str(child)))
    return Html("".join(out))
