# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whatever is written, in whatever pieces: the head, the tail, and a line for what went."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from bgtaskd.logs.outputfile import OutputFile
from bgtaskd.logs.outputreader import OutputReader

CAP = 400


def written(pieces: list[bytes]) -> tuple[Path, OutputFile]:
    root = tempfile.mkdtemp()
    output = OutputFile(os.open(root, os.O_RDONLY), 1, 1, CAP)
    for piece in pieces:
        output.write(piece)
    output.close()
    return Path(root), output


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=300), max_size=12))
def test_head_and_tail_are_what_was_written(pieces: list[bytes]) -> None:
    root, output = written(pieces)
    everything = b"".join(pieces)
    assert output.total == len(everything)
    reader = OutputReader(str(root), 1, 1, CAP)
    data, offset, dropped = b"", 0, 0
    while (chunk := reader.read(offset, 50)).data:
        assert everything[chunk.offset : chunk.next_offset] == chunk.data
        dropped += chunk.offset - offset
        data += chunk.data
        offset = chunk.next_offset
    assert offset == len(everything)
    assert dropped == output.dropped
    assert len(data) + dropped == len(everything)
    if pieces:
        size = (root / "1" / "output").stat().st_size
        assert size <= max(CAP, len(everything) if not dropped else 0) + 40
        assert everything.startswith(data[: CAP // 4])
        assert everything.endswith(data[-(CAP // 4) :])


def test_a_short_output_is_there_to_the_byte() -> None:
    root, _ = written([b"a\n", b"\xff"])
    assert (root / "1" / "output").read_bytes() == b"a\n\xff"
    assert OutputReader(str(root), 1, 1, CAP).read(-1, 10).data == b"\xff"


def test_a_long_one_says_how_much_went() -> None:
    root, output = written([b"x" * 100] * 50)
    assert f"[bgtaskd: {output.dropped} bytes dropped]" in (root / "1" / "output").read_text()
