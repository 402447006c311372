# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every example in the README and in docs/ does what it says, in the order in which a reader would type them.

Fenced blocks: ``sh`` is run as alice, ``sh root`` as root, ``sh debian13`` on Debian 13 only; ``python`` is
run as a script of alice's; ``python NAME.py`` is only saved as NAME.py in her home, for the blocks that follow.
Blocks in another language (``text``, ``yaml``, …) are shown, not run.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.houses.container import Container

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = ("sh", "python")
HOME = "/home/alice"


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """(language, qualifier, text) of each fenced block that is run."""
    found = [(lang, word or "", text) for lang, word, text in BLOCK.findall(page.read_text())]
    return [one for one in found if one[0] in RUN]


# The README first: it names the ids of a machine on which nothing has run yet.
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if blocks(page)),
]


def test_the_readme_has_commands() -> None:
    languages = [lang for lang, _, _ in blocks(PAGES[0])]
    assert languages.count("sh") >= 4
    assert "python" in languages


def test_no_block_is_overlooked() -> None:
    """What a typing mistake after the fence would do, and nobody would notice."""
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text()
        assert len(re.findall(r"^```\w", text, re.MULTILINE)) == len(BLOCK.findall(text)), page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_runs(machine: Container, page: Path) -> None:
    for language, word, text in blocks(page):
        if word == "debian13" and machine.release < 13:
            continue
        user = "root" if word == "root" else "alice"
        if language == "python":
            name = word or "example.py"
            machine.write(f"{HOME}/{name}", text)
            if word:
                continue
            argv = ["python3", name]
        else:
            argv = ["bash", "-euo", "pipefail", "-c", text]
        cwd = "/root" if word == "root" else HOME
        done = machine.run(argv, user=user, check=False, timeout=120, cwd=cwd)
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
