# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the documentation shows of others' packages, as files of a package that can be installed."""

from __future__ import annotations

import re
from pathlib import Path

ADAPTERS = Path(__file__).parents[1] / "docs/adapters.md"


def block(language: str, word: str) -> str:
    """The one block of docs/adapters.md in this language that has the word."""
    fences = re.findall(rf"^```{language}\n(.*?)^```$", ADAPTERS.read_text(), re.M | re.S)
    (found,) = [one for one in fences if word in one]
    return str(found)


def log_module() -> str:
    """copies.py, with the log of docs/adapters.md."""
    return block("py", "class Copies:")


def log_entry_points() -> str:
    """entry_points.txt, from what is said there for pyproject.toml."""
    table = block("toml", "bgtaskd.logs")
    group = re.search(r'entry-points\."([^"]+)"', table)
    point = re.search(r'^(\w+) = "([^"]+)"', table, re.M)
    assert group
    assert point
    return f"[{group[1]}]\n{point[1]} = {point[2]}\n"
