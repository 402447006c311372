# SPDX-License-Identifier: LGPL-2.1-or-later

"""What every Log must do, as a suite for pytest: ours pass it, and yours should.

    from bgtaskd.logs.conformance import LogConformance

    class TestMine(LogConformance):
        def open_log(self, directory):
            return MyLog(directory)

        def arrived(self, directory, entry):
            return (directory / str(entry.task_id)).read_bytes()

Register it under the entry point group "bgtaskd.logs": a callable that makes one of a directory.
"""

from __future__ import annotations

from pathlib import Path

from bgtaskd.logs.interface import Entry, Log
from bgtaskd.units import scope_name

LARGE = 3 << 20


def entry(task_id: int, attempt: int = 1) -> Entry:
    """An attempt."""
    return Entry(task_id, attempt, "job", "default", "alice", 1000, scope_name(task_id, attempt))


class LogConformance:
    """Derive a test class from this. Each test has a directory of its own, and tasks that no other has."""

    lines = False
    """True: it keeps lines; whether the last one was ended is not to be seen in it."""
    one_life = False
    """True: what one process has begun no other goes on with. The daemon's logs must not be such."""
    first_id = 1000
    """The tasks are numbered from here on."""

    def open_log(self, directory: Path) -> Log:
        """Open the log that is kept in the directory, empty at first."""
        raise NotImplementedError

    def arrived(self, directory: Path, entry: Entry) -> bytes:
        """All that the log has of an attempt; the log was closed before. Empty where it has nothing."""
        raise NotImplementedError

    def check(self, directory: Path, one: Entry, expected: bytes) -> None:
        """The log has this of the attempt, and nothing else."""
        found = self.arrived(directory, one)
        if self.lines:
            found, expected = found.removesuffix(b"\n"), expected.removesuffix(b"\n")
        if found != expected:
            raise AssertionError(f"{found[:200]!r} is not {expected[:200]!r}")

    def tell(self, log: Log, one: Entry, *pieces: bytes) -> None:
        """A whole attempt."""
        log.begin(one, 0)
        offset = 0
        for piece in pieces:
            log.write(one, piece, offset)
            offset += len(piece)
        log.end(one)

    def test_what_is_written_arrives_in_order(self, tmp_path: Path) -> None:
        """What is written arrives in order."""
        one, pieces = entry(self.first_id), [b"%d\n" % number for number in range(500)]
        log = self.open_log(tmp_path)
        self.tell(log, one, *pieces)
        log.close()
        self.check(tmp_path, one, b"".join(pieces))

    def test_pieces_need_not_be_lines(self, tmp_path: Path) -> None:
        """Pieces need not be lines."""
        one = entry(self.first_id + 1)
        log = self.open_log(tmp_path)
        self.tell(log, one, b"ab", b"c\nd", b"e\n", b"\xc3", b"\xa4\n")
        log.close()
        self.check(tmp_path, one, b"abc\nde\n\xc3\xa4\n")

    def test_no_byte_is_special(self, tmp_path: Path) -> None:
        """Nor is a last line that does not end."""
        one = entry(self.first_id + 2)
        log = self.open_log(tmp_path)
        self.tell(log, one, b"a\0b\n", b"\xff\xfe\x1b[1m\r\n", b"no end")
        log.close()
        self.check(tmp_path, one, b"a\0b\n\xff\xfe\x1b[1m\r\nno end")

    def test_tasks_and_attempts_do_not_mix(self, tmp_path: Path) -> None:
        """Tasks and attempts do not mix."""
        all_ = [entry(self.first_id + 3), entry(self.first_id + 4), entry(self.first_id + 4, 2)]
        texts = [b"first", b"second", b"second, again"]
        log = self.open_log(tmp_path)
        for one in all_:
            log.begin(one, 0)
        for part in range(3):
            for one, text in zip(all_, texts, strict=True):
                log.write(one, text + b"\n", part * (len(text) + 1))
        for one in all_:
            log.end(one)
        log.close()
        for one, text in zip(all_, texts, strict=True):
            self.check(tmp_path, one, (text + b"\n") * 3)

    def test_a_large_piece_arrives(self, tmp_path: Path) -> None:
        """A large piece arrives."""
        one = entry(self.first_id + 5)
        large = b"".join(b"%09999d\n" % number for number in range(LARGE // 10_000))
        log = self.open_log(tmp_path)
        self.tell(log, one, large)
        log.close()
        self.check(tmp_path, one, large)

    def test_an_end_without_output(self, tmp_path: Path) -> None:
        """An end without output."""
        one = entry(self.first_id + 6)
        log = self.open_log(tmp_path)
        self.tell(log, one)
        log.close()
        self.check(tmp_path, one, b"")

    def test_the_next_daemon_goes_on(self, tmp_path: Path) -> None:
        """An attempt that is under way when the log is closed goes on when it is opened again."""
        if self.one_life:
            return
        one = entry(self.first_id + 7)
        log = self.open_log(tmp_path)
        log.begin(one, 0)
        log.write(one, b"before\n", 0)
        log.close()
        log = self.open_log(tmp_path)
        log.begin(one, 7)
        log.write(one, b"after\n", 7)
        log.end(one)
        log.close()
        self.check(tmp_path, one, b"before\nafter\n")

    def test_what_is_told_again_is_no_error(self, tmp_path: Path) -> None:
        """The daemon was killed after a write, and after an end: nothing goes; something may be there twice."""
        if self.one_life:
            return
        one = entry(self.first_id + 8)
        log = self.open_log(tmp_path)
        log.begin(one, 0)
        log.write(one, b"first\n", 0)
        log.write(one, b"second\n", 6)
        log.end(one)
        log.close()
        log = self.open_log(tmp_path)
        log.begin(one, 6)
        log.write(one, b"second\n", 6)
        log.end(one)
        log.close()
        found = self.arrived(tmp_path, one)
        if found.removesuffix(b"\n") not in (b"first\nsecond", b"first\nsecond\nsecond"):
            raise AssertionError(f"{found!r} has not all, or not in order")

    def test_a_leap_is_no_error(self, tmp_path: Path) -> None:
        """More was printed than is kept: what was between is not there, what follows is."""
        one = entry(self.first_id + 9)
        log = self.open_log(tmp_path)
        log.begin(one, 0)
        log.write(one, b"head\n", 0)
        log.write(one, b"tail\n", 1_000_005)
        log.end(one)
        log.close()
        found = self.arrived(tmp_path, one)
        if not (found.startswith(b"head\n") and found.removesuffix(b"\n").endswith(b"tail")):
            raise AssertionError(f"{found[:100]!r} has not both")
