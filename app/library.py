"""The gallery: an SQLite index over content-addressed files, safe against kill -9 and a second process.

A file is announced in the table ``pending`` before it exists and struck off in the transaction that adds its entry.
So what a killed process leaves behind is known by name, :meth:`Library.sweep` removes just that (and old temporary
files), and whole files that the index knows nothing of, say because it was lost, are never touched. What was attached
is announced in ``inputs``, and goes a day after its last use unless something in the gallery was made from it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from app.library_index import INDEX_NAME, connect, explained
from models.errors import UserError
from pipelines.artifact import digest, sidecar_path
from pipelines.atomic import TEMPORARY_SUFFIX, plain_folder_errors, write_atomically
from pipelines.media import Artifact, Provenance, Video, known_media, load_artifact

SWEEP_AGE_SECONDS = 3600.0
INPUT_AGE_SECONDS = 86_400.0  # a talk may still use what nothing was made from
MAX_TITLE = 200

_COLUMNS = "id, medium, file, title, created, content_hash, provenance, size_bytes"


@dataclass(frozen=True)
class Entry:
    """One artifact in the gallery. ``content_hash`` is that of what its file gave when it was added."""

    id: str
    medium: str
    path: Path
    title: str
    created: datetime
    content_hash: str
    provenance: Provenance
    size_bytes: int

    @property
    def missing(self) -> bool:
        """Whether somebody deleted the file behind the gallery's back."""
        return not self.path.is_file()


class Library:
    """The artifacts in ``folder``. Threads and processes may share it.

    Every method raises :class:`UserError` where the folder is read-only or full, or the index is damaged or in use.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._lock = threading.RLock()
        with plain_folder_errors(self.folder / INDEX_NAME):
            self.folder.mkdir(parents=True, exist_ok=True)
        with self._plain_errors():
            self._connection = connect(self.folder / INDEX_NAME)
        self.sweep()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def add(self, artifact: Artifact, title: str) -> Entry:
        """Store ``artifact``, which must have its provenance. A clip's file has not exactly the frames that were in
        memory: what counts from then on is what :meth:`load` gives, and the entry has that one's content hash."""
        if artifact.provenance is None:
            raise ValueError("an artifact without provenance cannot be in the library")
        suffix = artifact.kept_as
        data = artifact.encode(suffix)
        content_hash = artifact.decode(data, suffix).content_hash()
        name = digest(content_hash, artifact.provenance.to_json())
        file = f"files/{name[:2]}/{name}{suffix}"
        entry = Entry(
            id=secrets.token_hex(8),
            medium=artifact.medium,
            path=self.folder / file,
            title=_clean_title(title),
            created=datetime.now(UTC),
            content_hash=content_hash,
            provenance=artifact.provenance,
            size_bytes=len(data),
        )
        with self._transaction() as connection:
            _announce(connection, file)
        with self._transaction() as connection:
            # The write lock keeps another process from removing the same content between file and entry.
            if not _is_whole(entry.path):
                with plain_folder_errors(entry.path):
                    entry.path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(sidecar_path(entry.path), artifact.sidecar(data))
                write_atomically(entry.path, data)
            _insert(connection, entry, file)
            connection.execute("DELETE FROM pending WHERE file = ?", (file,))
        return entry

    def entries(
        self, limit: int = 60, before: str | None = None, search: str | None = None, medium: str | None = None
    ) -> list[Entry]:
        """At most ``limit`` entries, newest first; those older than the entry ``before``.

        ``search``: words that all occur in the title or the prompt, in any case.
        """
        conditions, values = ["1"], []
        if before is not None:
            self.get(before)
            conditions.append("position < (SELECT position FROM entries WHERE id = ?)")
            values.append(before)
        if medium is not None:
            conditions.append("medium = ?")
            values.append(medium)
        for word in (search or "").casefold().split():
            conditions.append("instr(words, ?)")
            values.append(word)
        query = f"SELECT {_COLUMNS} FROM entries WHERE {' AND '.join(conditions)} ORDER BY position DESC LIMIT ?"
        return [self._entry(row) for row in self._fetch(query, *values, limit)]

    def get(self, id: str) -> Entry:
        """Raises :class:`UserError` for an unknown id."""
        rows = self._fetch(f"SELECT {_COLUMNS} FROM entries WHERE id = ?", id)
        if not rows:
            raise UserError("This is not in the gallery any more.", "Reload the gallery.")
        return self._entry(rows[0])

    def load(self, id: str) -> Artifact:
        """Raises :class:`UserError` for an unknown id, and for a file that was deleted or damaged by hand."""
        entry = self.get(id)
        if entry.missing:
            raise UserError(f"The file of '{entry.title}' was deleted.", "Remove it here too, or make it again.")
        return load_artifact(entry.path).with_provenance(entry.provenance)

    def by_content(self, content_hash: str) -> Entry | None:
        """The newest entry with this :attr:`Entry.content_hash`."""
        query = f"SELECT {_COLUMNS} FROM entries WHERE content_hash = ? ORDER BY position DESC LIMIT 1"
        rows = self._fetch(query, content_hash)
        return self._entry(rows[0]) if rows else None

    def note_run(self, entries: Sequence[Entry]) -> None:
        """Remember that ``entries`` are everything that one run made, for :meth:`made_by`."""
        recipes = {_recipe(entry.provenance) for entry in entries}
        if len(recipes) != 1:
            return  # memory ran out half-way, and the rest was made in a lower precision: no run will be like it
        with self._transaction() as connection:
            ids = " ".join(entry.id for entry in entries)
            connection.execute("INSERT INTO runs (recipe, entries) VALUES (?, ?)", (recipes.pop(), ids))

    def made_by(self, provenance: Provenance) -> list[Entry]:
        """Everything that the newest run of this provenance, whatever its ``index`` and ``badge``, made, in order.

        Empty if there was none, or something of it is gone or was changed by hand.
        """
        query = "SELECT entries FROM runs WHERE recipe = ? ORDER BY position DESC LIMIT 1"
        rows = self._fetch(query, _recipe(provenance))
        ids = rows[0][0].split() if rows else []
        marks = ", ".join("?" * len(ids))
        found = self._fetch(f"SELECT {_COLUMNS} FROM entries WHERE id IN ({marks}) ORDER BY position", *ids)
        entries = [self._entry(row) for row in found]
        return entries if len(entries) == len(ids) and all(_is_whole(entry.path) for entry in entries) else []

    def load_by_hash(self, content_hash: str) -> Artifact:
        """The artifact with just this content hash: the newest entry's, else the input that was kept.

        Clips that were kept before version 3 of the index are what their files give, which is not quite what they were.
        Raises as :meth:`load`, and where there is none or its file holds something else by now.
        """
        entry = self.by_content(content_hash)
        kept = self.folder.glob(f"inputs/{content_hash[:2]}/{content_hash}.*")
        for artifact in [self.load(entry.id)] if entry else map(_input_of, kept):
            if artifact.content_hash() == content_hash or artifact.medium == Video.medium:
                return artifact
        raise UserError("What this was made from is not in the gallery any more.", "Attach it again.")

    def keep_input(self, artifact: Artifact) -> Artifact:
        """Keep what somebody attached, so that what was made from it can be made again. It is no entry of its own.

        The file that it came from is kept as it is. Returns what :meth:`load_by_hash` gives from then on: the artifact
        itself, but of a clip that came from no file what is left of it in one. What is an entry already is not kept
        twice: whoever removes that wants it gone.
        """
        if self.by_content(artifact.content_hash()):
            return artifact
        kept = artifact
        suffix, data = artifact.source or (artifact.kept_as, artifact.encode(artifact.kept_as))
        if not artifact.source:
            given = artifact.decode(data, suffix)
            kept = artifact if given.content_hash() == artifact.content_hash() else given
        content_hash = kept.content_hash()
        file = f"inputs/{content_hash[:2]}/{content_hash}.{kept.medium}{suffix}"
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO inputs VALUES (?, ?, ?)", (file, content_hash, time.time()))
        path = self.folder / file
        if not path.is_file():
            with plain_folder_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
        return kept

    def remove(self, id: str) -> None:
        """Forget the entry, and delete its file unless another entry has the same. Raises as :meth:`get`."""
        self.get(id)
        with self._transaction() as connection:
            rows = connection.execute("DELETE FROM entries WHERE id = ? RETURNING file", (id,)).fetchall()
            connection.execute("DELETE FROM runs WHERE instr(entries, ?)", (id,))
            for (file,) in rows:
                _announce(connection, file)
        for (file,) in rows:
            self._settle(file)
        self._drop_inputs()

    def count(self) -> int:
        return int(self._fetch("SELECT count(*) FROM entries")[0][0])

    def sweep(self, older_than: float = SWEEP_AGE_SECONDS) -> None:
        """Delete what processes killed more than ``older_than`` seconds ago left half done. Runs at opening."""
        limit = time.time() - older_than
        for (file,) in self._fetch("SELECT file FROM pending WHERE since < ?", limit):
            self._settle(file)
        self._drop_inputs()
        with plain_folder_errors(self.folder / INDEX_NAME):
            for place in ("files", "inputs"):
                for temporary in self.folder.glob(f"{place}/*/.*{TEMPORARY_SUFFIX}"):
                    if _age(temporary) > older_than:
                        temporary.unlink(missing_ok=True)

    def _drop_inputs(self) -> None:
        """Delete what was attached, was not used for a day, and nothing in the gallery was made from."""
        unused = """SELECT file FROM inputs WHERE used < ? AND content_hash NOT IN
            (SELECT value FROM entries, json_each(entries.provenance, '$.parents'))"""
        with self._transaction() as connection:  # whoever uses one again comes before, or writes it anew
            for (file,) in connection.execute(unused, (time.time() - INPUT_AGE_SECONDS,)).fetchall():
                with plain_folder_errors(self.folder / file):
                    (self.folder / file).unlink(missing_ok=True)
                connection.execute("DELETE FROM inputs WHERE file = ?", (file,))

    def _settle(self, file: str) -> None:
        """Delete ``file`` unless an entry has it, then strike it off the pending ones."""
        with self._transaction() as connection:
            if not connection.execute("SELECT 1 FROM entries WHERE file = ?", (file,)).fetchone():
                path = self.folder / file
                with plain_folder_errors(path):
                    path.unlink(missing_ok=True)
                    sidecar_path(path).unlink(missing_ok=True)
            connection.execute("DELETE FROM pending WHERE file = ?", (file,))

    def _entry(self, row: tuple[str, str, str, str, str, str, str, int]) -> Entry:
        id, medium, file, title, created, content_hash, provenance, size_bytes = row
        return Entry(
            id=id,
            medium=medium,
            path=self.folder / file,
            title=title,
            created=datetime.fromisoformat(created),
            content_hash=content_hash,
            provenance=Provenance.from_json(provenance),
            size_bytes=size_bytes,
        )

    def _fetch(self, query: str, *values: str | int | float) -> list[tuple]:
        with self._lock, self._plain_errors():
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """The write lock of all processes, and one commit, or none if anything is raised."""
        with self._lock, self._plain_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            plain = explained(error, self.folder)
            if plain is None:
                raise
            raise plain from error


def _announce(connection: sqlite3.Connection, file: str) -> None:
    connection.execute("INSERT OR REPLACE INTO pending VALUES (?, ?)", (file, time.time()))


def _insert(connection: sqlite3.Connection, entry: Entry, file: str) -> None:
    texts = [str(given["text"]) for given in entry.provenance.inputs if "text" in given]
    words = " ".join([entry.title, *texts]).casefold()
    created = entry.created.isoformat()
    provenance = entry.provenance.to_json()
    values = (entry.id, entry.medium, file, entry.title, created, entry.content_hash, provenance, entry.size_bytes)
    connection.execute(f"INSERT INTO entries ({_COLUMNS}, words) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*values, words))


def _is_whole(path: Path) -> bool:
    """Whether the file is as it was written, by what its sidecar says."""
    try:
        record = json.loads(sidecar_path(path).read_bytes())
        return bool(record["file_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest())
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _recipe(provenance: Provenance) -> str:
    """What the provenances of a run's artifacts have in common, and is known before the run."""
    return digest(provenance.model_copy(update={"index": 0, "badge": ""}).to_json())


def _input_of(path: Path) -> Artifact:
    """Before version 3 of the index no medium stood in an input's name."""
    said = path.name.split(".")[1]
    return load_artifact(path, said if said in {medium.medium for medium in known_media()} else None)


def _age(path: Path) -> float:
    """Seconds since ``path`` was written; 0 if another process has just renamed or deleted it."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _clean_title(title: str) -> str:
    """One line of characters that a database and a page can show."""
    line = " ".join(title.replace("\0", " ").split())
    return line.encode("utf-8", "replace").decode()[:MAX_TITLE]
