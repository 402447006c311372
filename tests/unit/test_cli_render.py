# SPDX-License-Identifier: LGPL-2.1-or-later
"""Text from tasks may hold anything; what is shown of it is harmless, and fits."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from bgtaskd.cli.render import escaped, fitted, progress_bar, size, span, table, width


@given(st.text())
def test_nothing_that_steers_a_terminal_is_left(text: str) -> None:
    assert all(unicodedata.category(one) not in ("Cc", "Cf", "Cs") for one in escaped(text))


@given(st.text(), st.integers(1, 60))
def test_a_field_is_as_wide_as_told(text: str, columns: int) -> None:
    assert width(fitted(escaped(text), columns)) == columns


@given(st.lists(st.lists(st.text(), min_size=3, max_size=3), max_size=5), st.integers(40, 120))
def test_a_table_keeps_to_the_terminal(rows: list[list[str]], columns: int) -> None:
    safe = [
        [escaped(cell)[:10] if n != 1 else escaped(cell) for n, cell in enumerate(row)]
        for row in rows
    ]
    assert all(width(line) <= columns for line in table(["A", "B", "C"], safe, 1, columns))


@given(st.none() | st.floats(0, 100), st.integers(0, 80))
def test_a_bar_is_as_wide_as_told(percent: float | None, columns: int) -> None:
    assert len(progress_bar(percent, columns)) == columns


def test_sizes_and_spans_read_as_systemds() -> None:
    assert (size(None), size(512), size(12_897_485)) == ("-", "512B", "12.3M")
    assert (span(None), span(200_000_000), span(1500)) == ("-", "3min 20s", "2ms")
