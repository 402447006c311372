# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tasks in SQLite: write-ahead log, every transaction on the disk before it counts (synchronous=FULL)."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from bgtaskd.model import RESIDENT, Result, State, StopReason, Task, TaskSpec
from bgtaskd.storage.interface import (
    LATELY_MAX,
    ClearMessages,
    Ended,
    Message,
    Operation,
    PutConfig,
    PutFlag,
    PutMessage,
    PutSchedule,
    PutSpec,
    PutTask,
    Query,
    RemoveSchedule,
    RemoveTask,
    RowRefused,
    StorageError,
    StorageFull,
)

# One entry a version of the schema: what makes it out of the one before. Never edit one that was released.
MIGRATIONS: Final = (
    """
    CREATE TABLE task (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        owner_uid INTEGER NOT NULL,
        uid INTEGER NOT NULL,
        user TEXT NOT NULL,
        name TEXT NOT NULL,
        queue TEXT NOT NULL,
        merge_key TEXT,
        spec TEXT NOT NULL,
        state TEXT NOT NULL,
        result TEXT,
        stop_reason TEXT,
        attempt INTEGER NOT NULL,
        retries_used INTEGER NOT NULL,
        created INTEGER NOT NULL,
        updated INTEGER NOT NULL,
        started INTEGER,
        ended INTEGER,
        not_before INTEGER,
        exit_status INTEGER,
        signal TEXT,
        percent REAL,
        total INTEGER,
        finished INTEGER,
        message TEXT,
        value TEXT,
        error TEXT,
        cpu_usec INTEGER,
        memory_peak INTEGER,
        io_read_bytes INTEGER,
        io_write_bytes INTEGER,
        boot_id TEXT,
        pid INTEGER
    );
    CREATE INDEX task_unended ON task (id) WHERE state NOT IN ('finished', 'failed', 'stopped');
    CREATE INDEX task_owner ON task (owner_uid, id);
    CREATE INDEX task_state ON task (state, id);
    CREATE INDEX task_ended ON task (ended) WHERE ended IS NOT NULL;
    CREATE TABLE count (state TEXT PRIMARY KEY, tasks INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TRIGGER task_added AFTER INSERT ON task BEGIN
        INSERT INTO count VALUES (new.state, 1) ON CONFLICT DO UPDATE SET tasks = tasks + 1;
    END;
    CREATE TRIGGER task_removed AFTER DELETE ON task BEGIN
        UPDATE count SET tasks = tasks - 1 WHERE state = old.state;
    END;
    CREATE TRIGGER task_moved AFTER UPDATE OF state ON task WHEN old.state IS NOT new.state BEGIN
        UPDATE count SET tasks = tasks - 1 WHERE state = old.state;
        INSERT INTO count VALUES (new.state, 1) ON CONFLICT DO UPDATE SET tasks = tasks + 1;
    END;
    CREATE TABLE message (
        task_id INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        name TEXT NOT NULL,
        payload TEXT NOT NULL,
        created INTEGER NOT NULL,
        PRIMARY KEY (task_id, seq)
    ) WITHOUT ROWID;
    CREATE TABLE message_seq (task_id INTEGER PRIMARY KEY, seq INTEGER NOT NULL);
    CREATE TABLE config (task_id INTEGER PRIMARY KEY, config TEXT NOT NULL);
    CREATE TABLE flag (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    """,
    # How a task that reports its own end says why it failed (JSON).
    "ALTER TABLE task ADD COLUMN failure TEXT;",
    # Tasks that belong together ("group" is a word of SQL's).
    """
    ALTER TABLE task ADD COLUMN grp TEXT;
    CREATE INDEX task_group ON task (grp, id) WHERE grp IS NOT NULL;
    """,
    "CREATE TABLE schedule (name TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;",
    # Some kinds are listed only when they are asked for.
    """
    ALTER TABLE task ADD COLUMN kind TEXT NOT NULL DEFAULT 'command';
    UPDATE task SET kind = json_extract(spec, '$.kind') WHERE json_extract(spec, '$.kind') <> 'command';
    """,
    # They do not count either.
    """
    DROP TRIGGER task_added;
    DROP TRIGGER task_removed;
    DROP TRIGGER task_moved;
    CREATE TRIGGER task_added AFTER INSERT ON task WHEN new.kind NOT IN ('template', 'worker') BEGIN
        INSERT INTO count VALUES (new.state, 1) ON CONFLICT DO UPDATE SET tasks = tasks + 1;
    END;
    CREATE TRIGGER task_removed AFTER DELETE ON task WHEN old.kind NOT IN ('template', 'worker') BEGIN
        UPDATE count SET tasks = tasks - 1 WHERE state = old.state;
    END;
    CREATE TRIGGER task_moved AFTER UPDATE OF state ON task
    WHEN old.state IS NOT new.state AND new.kind NOT IN ('template', 'worker') BEGIN
        UPDATE count SET tasks = tasks - 1 WHERE state = old.state;
        INSERT INTO count VALUES (new.state, 1) ON CONFLICT DO UPDATE SET tasks = tasks + 1;
    END;
    DELETE FROM count;
    INSERT INTO count SELECT state, count(*) FROM task WHERE kind NOT IN ('template', 'worker') GROUP BY state;
    """,
)

FIXED: Final = "id owner_uid uid user name queue merge_key grp kind spec created".split()
CHANGING: Final = (
    "state result stop_reason attempt retries_used updated started ended not_before exit_status signal "
    "percent total finished message value error failure cpu_usec memory_peak io_read_bytes io_write_bytes "
    "boot_id pid"
).split()
COLUMNS: Final = (*FIXED, *CHANGING)
INSERT: Final = f"INSERT INTO task ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608
UPDATE: Final = f"UPDATE task SET {', '.join(f'{one} = ?' for one in CHANGING)} WHERE id = ?"  # noqa: S608
SELECT: Final = f"SELECT {', '.join(COLUMNS)} FROM task"  # noqa: S608
_OURS: Final = ", ".join(f"'{kind}'" for kind in sorted(RESIDENT))
_ENDED: Final = f"""
    SELECT name, result, ended - started, cpu_usec, memory_peak FROM task
    WHERE state IN ('finished', 'failed', 'stopped') AND kind NOT IN ({_OURS})
"""  # noqa: S608
ENDED_OF_ALL: Final = f"SELECT * FROM ({_ENDED} ORDER BY id DESC LIMIT ?) WHERE name GLOB ?"  # noqa: S608
ENDED_OF_ONE: Final = (
    f"SELECT * FROM ({_ENDED} AND owner_uid = ? ORDER BY id DESC LIMIT ?) WHERE name GLOB ?"  # noqa: S608
)
FULL_CODES: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


class SqliteStorage:
    """A Storage in one file. Writing and reading use a connection each, so a read never waits for a write."""

    def __init__(self, path: Path) -> None:
        with translated():
            self._writer = connect(path)
            _migrate(self._writer)
            self._reader = connect(path)

    def apply(self, operations: Sequence[Operation]) -> None:
        """See Storage."""
        with translated(), transaction(self._writer):
            for operation in operations:
                _APPLY[type(operation)](self._writer, operation)

    def next_task_id(self) -> int:
        """See Storage."""
        with translated():
            row = self._reader.execute(
                "SELECT seq FROM sqlite_sequence WHERE name = 'task'"
            ).fetchone()
            return int(row[0]) + 1 if row else 1

    def raise_next_task_id(self, task_id: int) -> None:
        """Give out no id below this one any more (others have been seen in use)."""
        with translated(), transaction(self._writer):
            self._writer.execute("DELETE FROM sqlite_sequence WHERE name = 'task'")
            self._writer.execute("INSERT INTO sqlite_sequence VALUES ('task', ?)", (task_id - 1,))

    def unended(self) -> Sequence[Task]:
        """See Storage."""
        return self._tasks("WHERE state NOT IN ('finished', 'failed', 'stopped') ORDER BY id", ())

    def get(self, task_id: int) -> Task | None:
        """See Storage."""
        found = self._tasks("WHERE id = ?", (task_id,))
        return found[0] if found else None

    def list(self, query: Query) -> Sequence[Task]:
        """See Storage."""
        where: list[str] = []
        values: list[Any] = []
        for column, value in (
            ("queue = ?", query.queue),
            ("name GLOB ?", query.name_glob),
            ("grp = ?", query.group),
            ("user = ?", query.user),
            ("owner_uid = ?", None if query.or_apps else query.owner_uid),
            ("id < ?", query.before),
        ):
            if value is not None:
                where.append(column)
                values.append(storable(value) if isinstance(value, str) else value)
        if query.or_apps and query.owner_uid is not None:
            apps = ", ".join("?" * len(query.or_apps))
            asked = f"kind = 'http' AND json_extract(spec, '$.http.app') IN ({apps})"
            where.append(f"(owner_uid = ? OR ({asked}))")
            values += [query.owner_uid, *query.or_apps]
        states = None if query.states is None else [one.value for one in query.states]
        for column, some in (("state", states), ("kind", query.kinds)):
            if some is not None:
                where.append(f"{column} IN ({', '.join('?' * len(some))})")
                values.extend(some)
        clause = f"WHERE {' AND '.join(where)} " if where else ""
        return self._tasks(f"{clause}ORDER BY id DESC LIMIT ?", (*values, query.limit))

    def lately_ended(self, owner_uid: int | None, name_glob: str | None) -> Sequence[Ended]:
        """See Storage."""
        glob = storable(name_glob) or "*"
        with translated():
            if owner_uid is None:
                rows = self._reader.execute(ENDED_OF_ALL, (LATELY_MAX, glob)).fetchall()
            else:
                values = (owner_uid, LATELY_MAX, glob)
                rows = self._reader.execute(ENDED_OF_ONE, values).fetchall()
        return [Ended(*row) for row in rows]

    def counts(self) -> dict[State, int]:
        """See Storage."""
        with translated():
            rows = self._reader.execute("SELECT state, tasks FROM count").fetchall()
        return {State(state): tasks for state, tasks in rows}

    def messages(self, task_id: int, after: int = 0) -> Sequence[Message]:
        """See Storage."""
        with translated():
            rows = self._reader.execute(
                "SELECT seq, name, payload, created FROM message WHERE task_id = ? AND seq > ?"
                " ORDER BY seq",
                (task_id, after),
            ).fetchall()
        return [
            Message(task_id, seq, name, json.loads(payload), at) for seq, name, payload, at in rows
        ]

    def last_message_seq(self, task_id: int) -> int:
        """See Storage."""
        with translated():
            row = self._reader.execute(
                "SELECT seq FROM message_seq WHERE task_id = ?", (task_id,)
            ).fetchone()
        return int(row[0]) if row else 0

    def config(self, task_id: int) -> Any:
        """See Storage."""
        with translated():
            row = self._reader.execute(
                "SELECT config FROM config WHERE task_id = ?", (task_id,)
            ).fetchone()
        return json.loads(row[0]) if row else None

    def schedules(self) -> dict[str, dict[str, Any]]:
        """See Storage."""
        with translated():
            rows = self._reader.execute("SELECT name, body FROM schedule").fetchall()
            return {name: json.loads(body) for name, body in rows}

    def flags(self) -> dict[str, str]:
        """See Storage."""
        with translated():
            return dict(self._reader.execute("SELECT name, value FROM flag").fetchall())

    def ended_before(
        self, success: int | None, any_result: int | None, limit: int
    ) -> Sequence[int]:
        """See Storage."""
        with translated():
            rows = self._reader.execute(
                "SELECT id FROM task WHERE ended IS NOT NULL AND state IN ('finished', 'failed', 'stopped')"
                " AND ((result = 'success' AND ended < ?) OR ended < ?) ORDER BY ended LIMIT ?",
                (success or 0, any_result or 0, limit),
            ).fetchall()
        return [row[0] for row in rows]

    def vacuum(self, pages: int = 1000) -> None:
        """Give freed pages back to the file system, so many at the most."""
        with translated():
            self._writer.execute(f"PRAGMA incremental_vacuum({int(pages)})").fetchall()

    def close(self) -> None:
        """See Storage."""
        self._reader.close()
        self._writer.close()

    def _tasks(self, clause: str, values: Sequence[Any]) -> Sequence[Task]:
        with translated():
            rows = self._reader.execute(f"{SELECT} {clause}", values).fetchall()
        return [_task(row) for row in rows]


def open_storage(path: Path) -> tuple[SqliteStorage, Path | None]:
    """Open the database; one that is corrupt is moved aside, and a fresh one made.

    Returns the storage, and where the corrupt one lies now. Raises StorageError where neither can be done.
    """
    try:
        storage = SqliteStorage(path)
        storage.unended()
        storage.counts()
    except StorageCorrupt:
        aside = move_aside(path)
        return SqliteStorage(path), aside
    return storage, None


def move_aside(path: Path) -> Path:
    """A corrupt database out of the way; where it lies now."""
    aside = path.with_name(f"{path.name}.corrupt-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside


class StorageCorrupt(StorageError):
    """The file is not a database, or a damaged one."""


def connect(path: Path) -> sqlite3.Connection:
    """A connection with our settings."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise StorageError(
            f"the database is of a newer bgtaskd (schema {version}, this one knows {len(MIGRATIONS)})"
        )
    for number in range(version, len(MIGRATIONS)):
        connection.executescript(
            f"BEGIN IMMEDIATE; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;"
        )


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """What SQLite raises, as StorageError."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in FULL_CODES:
            raise StorageFull(f"the database cannot be written: {error}") from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise StorageCorrupt(str(error)) from error
        raise StorageError(str(error)) from error
    except (UnicodeEncodeError, OverflowError) as error:
        raise RowRefused(f"this cannot be stored: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StorageCorrupt(f"a row makes no sense: {error}") from error


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """One transaction: all of it, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def storable(text: str | None) -> str | None:
    """Text without lone surrogates: SQLite keeps UTF-8, and no caller's string may fail a commit."""
    return None if text is None else text.encode("utf-8", "replace").decode()


def _changing(task: Task) -> list[Any]:
    return [
        task.state.value,
        None if task.result is None else task.result.value,
        None if task.stop_reason is None else task.stop_reason.value,
        task.attempt,
        task.retries_used,
        task.updated,
        task.started,
        task.ended,
        task.not_before,
        task.exit_status,
        task.signal,
        task.percent,
        task.total,
        task.finished,
        storable(task.message),
        None if task.value is None else json.dumps(task.value),
        storable(task.error),
        None if task.failure is None else json.dumps(dict(task.failure)),
        task.cpu_usec,
        task.memory_peak,
        task.io_read_bytes,
        task.io_write_bytes,
        task.boot_id,
        task.pid,
    ]


def _put_task(connection: sqlite3.Connection, operation: PutTask) -> None:
    task = operation.task
    changing = _changing(task)
    if connection.execute(UPDATE, (*changing, task.id)).rowcount:
        return
    spec = task.spec
    fixed = (task.id, task.owner_uid, task.uid, storable(task.user))
    connection.execute(INSERT, (*fixed, *_specified(spec), task.created, *changing))


def _specified(spec: TaskSpec) -> tuple[Any, ...]:
    return (
        storable(spec.name),
        spec.queue,
        storable(spec.merge_key),
        storable(spec.group),
        spec.kind,
        json.dumps(spec.to_json()),
    )


def _put_spec(connection: sqlite3.Connection, operation: PutSpec) -> None:
    connection.execute(
        "UPDATE task SET name = ?, queue = ?, merge_key = ?, grp = ?, kind = ?, spec = ? WHERE id = ?",
        (*_specified(operation.task.spec), operation.task.id),
    )


def _remove_task(connection: sqlite3.Connection, operation: RemoveTask) -> None:
    for statement in (
        "DELETE FROM task WHERE id = ?",
        "DELETE FROM message WHERE task_id = ?",
        "DELETE FROM message_seq WHERE task_id = ?",
        "DELETE FROM config WHERE task_id = ?",
    ):
        connection.execute(statement, (operation.task_id,))


def _put_message(connection: sqlite3.Connection, operation: PutMessage) -> None:
    one = operation.message
    payload = json.dumps(one.payload)
    connection.execute(
        "INSERT INTO message VALUES (?, ?, ?, ?, ?)",
        (one.task_id, one.seq, storable(one.name), payload, one.created),
    )
    connection.execute("INSERT OR REPLACE INTO message_seq VALUES (?, ?)", (one.task_id, one.seq))


def _clear_messages(connection: sqlite3.Connection, operation: ClearMessages) -> None:
    if operation.seqs is None:
        connection.execute("DELETE FROM message WHERE task_id = ?", (operation.task_id,))
    else:
        connection.executemany(
            "DELETE FROM message WHERE task_id = ? AND seq = ?",
            [(operation.task_id, seq) for seq in operation.seqs],
        )


def _put_config(connection: sqlite3.Connection, operation: PutConfig) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO config VALUES (?, ?)",
        (operation.task_id, json.dumps(operation.config)),
    )


def _put_flag(connection: sqlite3.Connection, operation: PutFlag) -> None:
    if operation.value is None:
        connection.execute("DELETE FROM flag WHERE name = ?", (operation.name,))
    else:
        connection.execute(
            "INSERT OR REPLACE INTO flag VALUES (?, ?)", (operation.name, operation.value)
        )


def _put_schedule(connection: sqlite3.Connection, operation: PutSchedule) -> None:
    row = (operation.name, json.dumps(operation.body))
    connection.execute("INSERT OR REPLACE INTO schedule VALUES (?, ?)", row)


def _remove_schedule(connection: sqlite3.Connection, operation: RemoveSchedule) -> None:
    connection.execute("DELETE FROM schedule WHERE name = ?", (operation.name,))


_APPLY: Final[dict[type, Callable[[sqlite3.Connection, Any], None]]] = {
    PutTask: _put_task,
    PutSpec: _put_spec,
    RemoveTask: _remove_task,
    PutMessage: _put_message,
    ClearMessages: _clear_messages,
    PutConfig: _put_config,
    PutFlag: _put_flag,
    PutSchedule: _put_schedule,
    RemoveSchedule: _remove_schedule,
}


def _task(row: Sequence[Any]) -> Task:
    values = dict(zip(COLUMNS, row, strict=True))
    spec = TaskSpec.from_json(json.loads(values.pop("spec")))
    for name in ("name", "queue", "merge_key", "grp", "kind"):
        del values[name]
    values["state"] = State(values["state"])
    values["result"] = None if values["result"] is None else Result(values["result"])
    values["stop_reason"] = (
        None if values["stop_reason"] is None else StopReason(values["stop_reason"])
    )
    for name in ("value", "failure"):
        values[name] = None if values[name] is None else json.loads(values[name])
    return Task(spec=spec, **values)
