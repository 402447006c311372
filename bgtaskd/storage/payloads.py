# SPDX-License-Identifier: LGPL-2.1-or-later
"""Payloads of named tasks in SQLite, in a file of their own: they come and go by the thousand a second."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from bgtaskd.storage.sqlite import (
    StorageCorrupt,
    connect,
    move_aside,
    storable,
    transaction,
    translated,
)

log = logging.getLogger(__name__)
WAITING, GIVEN, ASIDE = 0, 1, 2
SCHEMA: Final = """
    CREATE TABLE payload (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        worker TEXT NOT NULL,
        uid INTEGER NOT NULL,
        body TEXT NOT NULL,
        created INTEGER NOT NULL,
        state INTEGER NOT NULL,
        tries INTEGER NOT NULL,
        holder INTEGER,
        reason TEXT
    );
    CREATE INDEX payload_state ON payload (worker, state, id);
"""
VERSION: Final = 1
REASON_MAX: Final = 4096


def open_payloads(path: Path) -> PayloadStore:
    """Open the store; a corrupt one is moved aside, loudly. Raises StorageError where neither can be done."""
    try:
        store = PayloadStore(path)
        store.counts()
    except StorageCorrupt:
        aside = move_aside(path)
        log.critical("The payloads' database was corrupt. It is kept as %s.", aside)
        return PayloadStore(path)
    return store


class Payload(NamedTuple):
    """One payload. ``body``: JSON; ``tries``: how many times it was given to a process."""

    id: int
    uid: int
    body: str
    tries: int
    created: int


class Aside(NamedTuple):
    """A payload that was given up, and why. Times in microseconds since the epoch."""

    id: int
    worker: str
    uid: int
    body: str
    tries: int
    created: int
    reason: str


@dataclass(frozen=True, slots=True)
class Add:
    """New payloads of a worker; ``holder``: they go to this process (its task's id) at once."""

    worker: str
    payloads: Sequence[Payload]
    holder: int | None = None


@dataclass(frozen=True, slots=True)
class Give:
    """These go to a process (its task's id) now: one try more."""

    holder: int
    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class PutBack:
    """These wait again. ``untried``: the process never began with them, so the try does not count."""

    ids: Sequence[int]
    untried: bool


@dataclass(frozen=True, slots=True)
class Remove:
    """These are done, or dropped."""

    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class SetAside:
    """These are given up, and why."""

    reasons: Sequence[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Forgive:
    """These were set aside, and wait again as if new."""

    ids: Sequence[int]


Operation = Add | Give | PutBack | Remove | SetAside | Forgive


class PayloadStore:
    """Writing and reading use a connection each. The writing half is called from one thread."""

    def __init__(self, path: Path) -> None:
        """Raises StorageError."""
        with translated():
            self._writer = connect(path)
            if self._writer.execute("PRAGMA user_version").fetchone()[0] == 0:
                self._writer.executescript(
                    f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;"
                )
            self._reader = connect(path)

    def apply(self, operations: Sequence[Any]) -> None:
        """All of the operations, in order, in one transaction, durable on return. Raises StorageError."""
        with translated(), transaction(self._writer):
            for operation in operations:
                _APPLY[type(operation)](self._writer, operation)

    def next_id(self) -> int:
        """The lowest id that was never used. Read once, at start."""
        with translated():
            query = "SELECT seq FROM sqlite_sequence WHERE name = 'payload'"
            row = self._reader.execute(query).fetchone()
        return int(row[0]) + 1 if row else 1

    def counts(self) -> dict[tuple[str, int], int]:
        """How many there are, by worker and state."""
        with translated():
            rows = self._reader.execute(
                "SELECT worker, state, count(*) FROM payload GROUP BY worker, state"
            ).fetchall()
        return {(worker, state): number for worker, state, number in rows}

    def waiting(self, worker: str, after: int, limit: int) -> list[Payload]:
        """Those that wait, oldest first, numbered above ``after``."""
        with translated():
            rows = self._reader.execute(
                "SELECT id, uid, body, tries, created FROM payload"
                " WHERE worker = ? AND state = ? AND id > ? ORDER BY id LIMIT ?",
                (worker, WAITING, after, limit),
            ).fetchall()
        return [Payload(*row) for row in rows]

    def given(self) -> list[tuple[str, int, Payload]]:
        """Those that processes have: the worker, the process's task, and the payload."""
        with translated():
            rows = self._reader.execute(
                "SELECT worker, holder, id, uid, body, tries, created FROM payload"
                " WHERE state = ? ORDER BY id",
                (GIVEN,),
            ).fetchall()
        return [(row[0], row[1], Payload(*row[2:])) for row in rows]

    def aside(self, worker: str | None, before: int | None, limit: int) -> list[Aside]:
        """Those that were given up, newest first."""
        with translated():
            rows = self._reader.execute(
                "SELECT id, worker, uid, body, tries, created, reason FROM payload"
                " WHERE state = ? AND (? IS NULL OR worker = ?) AND (? IS NULL OR id < ?)"
                " ORDER BY id DESC LIMIT ?",
                (ASIDE, worker, worker, before, before, limit),
            ).fetchall()
        return [Aside(*row) for row in rows]

    def find_aside(self, ids: Sequence[int]) -> list[Aside]:
        """Those of these that were given up."""
        out: list[Aside] = []
        for number in ids:
            with translated():
                row = self._reader.execute(
                    "SELECT id, worker, uid, body, tries, created, reason FROM payload"
                    " WHERE id = ? AND state = ?",
                    (number, ASIDE),
                ).fetchone()
            if row is not None:
                out.append(Aside(*row))
        return out

    def oldest_aside(self, worker: str, keep: int) -> list[int]:
        """All that were given up but so many, the newest."""
        with translated():
            rows = self._reader.execute(
                "SELECT id FROM payload WHERE worker = ? AND state = ? ORDER BY id DESC LIMIT 1000 OFFSET ?",
                (worker, ASIDE, keep),
            ).fetchall()
        return [row[0] for row in rows]

    def close(self) -> None:
        """Close. Nothing is lost without it."""
        self._reader.close()
        self._writer.close()


def _add(connection: sqlite3.Connection, operation: Add) -> None:
    state = WAITING if operation.holder is None else GIVEN
    connection.executemany(
        "INSERT INTO payload VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
        [
            (
                one.id,
                operation.worker,
                one.uid,
                one.body,
                one.created,
                state,
                one.tries,
                operation.holder,
            )
            for one in operation.payloads
        ],
    )


def _give(connection: sqlite3.Connection, operation: Give) -> None:
    connection.executemany(
        "UPDATE payload SET state = ?, holder = ?, tries = tries + 1 WHERE id = ?",
        [(GIVEN, operation.holder, one) for one in operation.ids],
    )


def _put_back(connection: sqlite3.Connection, operation: PutBack) -> None:
    connection.executemany(
        "UPDATE payload SET state = ?, holder = NULL, tries = tries - ? WHERE id = ?",
        [(WAITING, int(operation.untried), one) for one in operation.ids],
    )


def _remove(connection: sqlite3.Connection, operation: Remove) -> None:
    connection.executemany("DELETE FROM payload WHERE id = ?", [(one,) for one in operation.ids])


def _set_aside(connection: sqlite3.Connection, operation: SetAside) -> None:
    connection.executemany(
        "UPDATE payload SET state = ?, holder = NULL, reason = ? WHERE id = ?",
        [(ASIDE, storable(why[:REASON_MAX]), one) for one, why in operation.reasons],
    )


def _forgive(connection: sqlite3.Connection, operation: Forgive) -> None:
    connection.executemany(
        "UPDATE payload SET state = ?, tries = 0, reason = NULL WHERE id = ? AND state = ?",
        [(WAITING, one, ASIDE) for one in operation.ids],
    )


_APPLY: Final[dict[type, Callable[[sqlite3.Connection, Any], None]]] = {
    Add: _add,
    Give: _give,
    PutBack: _put_back,
    Remove: _remove,
    SetAside: _set_aside,
    Forgive: _forgive,
}
