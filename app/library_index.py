"""The SQLite index of the gallery: its tables, one version after another, and what its errors mean in plain words."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from models.errors import UserError

INDEX_NAME = "library.sqlite"
BUSY_SECONDS = 30.0

# What each version added to the one before; a gallery of an older version is brought up to date when it is opened.
_SCHEMAS = (
    """
CREATE TABLE entries (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    medium TEXT NOT NULL,
    file TEXT NOT NULL,             -- relative to the library's folder
    title TEXT NOT NULL,
    created TEXT NOT NULL,          -- ISO 8601, UTC
    content_hash TEXT NOT NULL,
    provenance TEXT NOT NULL,       -- JSON
    size_bytes INTEGER NOT NULL,
    words TEXT NOT NULL             -- what a search looks in, case-folded
);
CREATE INDEX entries_by_file ON entries (file);
CREATE INDEX entries_by_content ON entries (content_hash);
CREATE TABLE pending (file TEXT PRIMARY KEY, since REAL NOT NULL);
""",
    """
CREATE TABLE runs (                 -- those that came to their end
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    recipe TEXT NOT NULL,           -- digest of what its artifacts are made from
    entries TEXT NOT NULL           -- ids of everything that it made
);
CREATE INDEX runs_by_recipe ON runs (recipe);
""",
    """
CREATE TABLE inputs (file TEXT PRIMARY KEY, content_hash TEXT NOT NULL, used REAL NOT NULL);
""",
)
_VERSION = len(_SCHEMAS)


def connect(path: Path) -> sqlite3.Connection:
    """Open an index, new or of an older version. Raises :class:`UserError` for one of a newer version."""
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for schema in _SCHEMAS[version:]:
        for statement in filter(str.strip, schema.split(";")):
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {max(version, _VERSION)}")
    connection.execute("COMMIT")
    if version > _VERSION:
        raise UserError("This gallery belongs to a newer version of Synesthete.", "Update, or choose another folder.")


def explained(error: sqlite3.Error, folder: Path) -> UserError | None:
    """What a person can do about ``error``; None if it is a defect of ours."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        hint = f"Move it elsewhere and start again: the gallery is then empty, and your files stay in '{folder}/files'."
        return UserError(f"The gallery's index '{folder / INDEX_NAME}' is damaged.", hint)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return UserError(f"Nothing can be written in the folder '{folder}'.", "Choose a folder that you may write to.")
    if code == sqlite3.SQLITE_FULL:
        return UserError(f"There is no space left in '{folder}'.", "Free some space first.")
    if code == sqlite3.SQLITE_IOERR:
        return UserError(f"The disk of '{folder}' cannot be read or written.", "Check the disk and its free space.")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return UserError(f"Another program is using the gallery in '{folder}'.", "Close it, or try again later.")
    return None
