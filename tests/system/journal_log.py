# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run in a container: the supervisors' way to the journal, and the suite for every log."""

import json
import subprocess
import tempfile
from pathlib import Path

from bgtaskd.logs.capture import Capture
from bgtaskd.logs.conformance import LogConformance
from bgtaskd.logs.interface import Entry, Log
from bgtaskd.logs.journal import Journal, encode
from bgtaskd.logs.outputfile import NoFile


class ToJournal:
    """Each attempt's lines, with the fields that say whose they are."""

    def __init__(self) -> None:
        self.captures: dict[Entry, Capture] = {}

    def begin(self, entry: Entry, offset: int) -> None:
        fields = {b"BGTASK_ID": entry.task_id, b"BGTASK_ATTEMPT": entry.attempt}
        prefix = encode([(name, b"%d" % value) for name, value in fields.items()])
        self.captures[entry] = Capture(NoFile(), Journal, prefix, 1 << 30)

    def write(self, entry: Entry, data: bytes, offset: int) -> None:
        self.captures[entry].take(1, data)

    def end(self, entry: Entry) -> None:
        self.captures.pop(entry).finish()

    def close(self) -> None:
        while self.captures:
            self.captures.popitem()[1].finish()


class JournalConformance(LogConformance):
    lines = True
    first_id = 7_000_000

    def open_log(self, directory: Path) -> Log:
        return ToJournal()

    def arrived(self, directory: Path, entry: Entry) -> bytes:
        subprocess.run(["journalctl", "--sync"], check=True)
        argv = ["journalctl", "--all", "-o", "json", f"BGTASK_ID={entry.task_id}"]
        found = subprocess.run(
            [*argv, f"BGTASK_ATTEMPT={entry.attempt}"], check=True, capture_output=True
        )
        lines = [json.loads(line)["MESSAGE"] for line in found.stdout.splitlines()]
        return b"".join(
            (one.encode() if isinstance(one, str) else bytes(one)) + b"\n" for one in lines
        )


if __name__ == "__main__":
    names = [one for one in dir(JournalConformance) if one.startswith("test_")]
    for name in names:
        with tempfile.TemporaryDirectory() as directory:
            getattr(JournalConformance(), name)(Path(directory))
    print("passed:", *names)
