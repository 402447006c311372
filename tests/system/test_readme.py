# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every command in the README does what it says, in the order in which a reader would type them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.houses.container import Container

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str, str]]:
    """(language, qualifier, text) of each fenced block."""
    return [(lang, word or "", text) for lang, word, text in BLOCK.findall(README.read_text())]


def test_the_readme_has_commands() -> None:
    languages = [lang for lang, _, _ in blocks()]
    assert languages.count("sh") >= 4
    assert "python" in languages


def test_every_block_runs(fresh_machine: Container) -> None:
    for language, word, text in blocks():
        if language == "text":
            continue  # what a terminal showed
        if word == "debian13" and fresh_machine.release < 13:
            continue
        user = None if word == "root" else "alice"
        if language == "sh":
            done = fresh_machine.run(
                ["bash", "-euo", "pipefail", "-c", text], user=user, check=False, timeout=120
            )
        elif language == "python":
            done = fresh_machine.run(["python3", "-"], user=user, input=text, check=False)
        else:
            pytest.fail(f"README: a block of {language!r} that no test runs")
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
