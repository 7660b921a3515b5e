"""What the store holds, in SQLite: sizes, parents, last use, and what sessions pin.

The files are the truth; this can be lost and made anew.
"""

import contextlib
import heapq
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from edgecortex.errors import StoreError
from edgecortex.store.entry import Entry

T = TypeVar("T")

_TABLES = """
CREATE TABLE IF NOT EXISTS entries (
    id TEXT, kind TEXT, parent TEXT, root TEXT, num_tokens INTEGER, size INTEGER, used REAL,
    token_ids BLOB, below TEXT, PRIMARY KEY (id, kind)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_parent ON entries (parent);
CREATE INDEX IF NOT EXISTS by_below ON entries (below);
CREATE TABLE IF NOT EXISTS pins (
    session TEXT, id TEXT, kind TEXT, PRIMARY KEY (session, id, kind)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_pin ON pins (id, kind);
"""
# What nothing else builds on, and no session holds. Windows share their block's id, so what has
# it below builds on the block alone.
_LEAVES = """
SELECT used, id, kind, size, below FROM entries AS e
WHERE (kind <> 'block' OR NOT EXISTS (SELECT 1 FROM entries AS c WHERE c.below = e.id))
AND NOT EXISTS (SELECT 1 FROM pins AS p WHERE p.id = e.id AND p.kind = e.kind)
"""
_SCHEMA = 2  # as `user_version`, once all files are noted
_TIMEOUT_S = 20  # to wait for another process

Key = tuple[str, str]  # id, kind


@dataclass(frozen=True)
class Totals:
    """Counts of files and bytes of one kind."""

    kind: str
    num_entries: int
    num_tokens: int
    nbytes: int


class Index:
    """One connection for all threads of this process.

    Where there is none, or what is there is damaged, a new one is made and `fill` called.
    Everything raises `StoreError` where SQLite cannot read or write.
    """

    def __init__(self, path: Path, fill: Callable[[], None]) -> None:
        self.path, self._fill = path, fill
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def add(self, entries: Iterable[tuple[Entry, int]]) -> None:
        """Notes entries and the sizes of their files in bytes."""
        now = time.time()
        rows = [
            (e.id, e.kind, e.parent, e.root, len(e.token_ids), size, now, _blob(e), _below(e))
            for e, size in entries
        ]
        self._run(
            lambda db: db.executemany(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows
            )
        )

    def remove(self, keys: Iterable[Key]) -> None:
        rows = list(keys)
        self._run(lambda db: db.executemany("DELETE FROM entries WHERE id = ? AND kind = ?", rows))

    def touch(self, keys: Iterable[Key]) -> None:
        """Notes that these were used now."""
        rows = [(time.time(), *key) for key in keys]
        self._run(
            lambda db: db.executemany("UPDATE entries SET used = ? WHERE id = ? AND kind = ?", rows)
        )

    def known(self, ids: Sequence[str]) -> set[Key]:
        """Which of these ids are there, as (id, kind)."""
        found: set[Key] = set()
        for i in range(0, len(ids), 500):
            some = list(ids[i : i + 500])
            marks = ",".join("?" * len(some))
            query = f"SELECT id, kind FROM entries WHERE id IN ({marks})"
            found.update(self._rows(query, some))
        return found

    def sizes(self) -> dict[Key, int]:
        """All entries, and the sizes of their files in bytes."""
        found = self._rows("SELECT id, kind, size FROM entries")
        return {(id, kind): size for id, kind, size in found}

    def tails(self, parent: str) -> list[tuple[str, tuple[int, ...]]]:
        """The ids and tokens of the tails of one parent."""
        query = "SELECT id, token_ids FROM entries WHERE parent = ? AND kind = 'tail'"
        found = self._rows(query, [parent])
        return [(id, tuple(np.frombuffer(blob, "<i4").tolist())) for id, blob in found]

    def evict(self, nbytes: int) -> list[tuple[Key, int]]:
        """Removes what was not used for longest, until so many bytes are free; gives what
        went and the sizes. Nothing goes that another entry builds on, or that a session pins."""
        return self.atomically(lambda: self._evict(nbytes))

    def _evict(self, nbytes: int) -> list[tuple[Key, int]]:
        gone: list[tuple[Key, int]] = []
        leaves = self._rows(_LEAVES)
        heapq.heapify(leaves)
        while nbytes > 0 and leaves:
            _, id, kind, size, below = heapq.heappop(leaves)
            self.remove([(id, kind)])
            gone.append(((id, kind), size))
            nbytes -= size
            for bared in self._rows(f"{_LEAVES} AND id = ? AND kind = 'block'", [below]):
                heapq.heappush(leaves, bared)
        return gone

    def nbytes(self) -> int:
        return int(self._rows("SELECT COALESCE(SUM(size), 0) FROM entries")[0][0])

    def size_of(self, keys: Iterable[Key]) -> int:
        """Bytes of these entries, as far as they are there."""
        query = "SELECT size FROM entries WHERE id = ? AND kind = ?"
        return self._run(
            lambda db: sum(row[0] for key in keys for row in db.execute(query, key).fetchall())
        )

    def totals(self) -> list[Totals]:
        query = (
            "SELECT kind, COUNT(*), SUM(num_tokens), SUM(size) FROM entries "
            "GROUP BY kind ORDER BY kind"
        )
        return [Totals(*row) for row in self._rows(query)]

    def pin(self, session: str, keys: Iterable[Key], only: bool = False) -> None:
        """Keeps entries for a session; with `only`, no others any more."""
        rows = [(session, *key) for key in keys]

        def replace(db: sqlite3.Connection) -> None:
            if only:
                db.execute("DELETE FROM pins WHERE session = ?", [session])
            db.executemany("INSERT OR IGNORE INTO pins VALUES (?, ?, ?)", rows)

        self._run(replace)

    def pinned(self) -> set[str]:
        """The sessions that pin anything."""
        return {row[0] for row in self._rows("SELECT DISTINCT session FROM pins")}

    def num_pinned(self) -> int:
        return int(self._rows("SELECT COUNT(DISTINCT id || kind) FROM pins")[0][0])

    def atomically(self, job: Callable[[], T]) -> T:
        """Does a job in which no other process changes the index. All of what it changes there
        is kept, or nothing; it is done twice if the index turns out to be damaged."""
        return self._run(lambda db: job())

    # SQLite.

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple]:
        return self._run(lambda db: db.execute(query, values).fetchall(), "BEGIN")

    def _run(self, action: Callable[[sqlite3.Connection], T], begin: str = "BEGIN IMMEDIATE") -> T:
        """Does it in a transaction; once more on a new index if this one is damaged."""
        with self._lock:
            if self._db is not None and self._db.in_transaction:
                return action(self._db)
            try:
                return self._once(action, begin)
            except sqlite3.Error as error:
                if type(error) is not sqlite3.DatabaseError:  # subclasses tell of other things
                    raise self._unusable(error) from error
            try:
                self._discard()
                return self._once(action, begin)
            except sqlite3.Error as error:
                raise self._unusable(error) from error

    def _once(self, action: Callable[[sqlite3.Connection], T], begin: str) -> T:
        db = self._current()
        db.execute(begin)
        try:
            result = action(db)
            db.execute("COMMIT")
            return result
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # SQLite may have done it already
                db.execute("ROLLBACK")
            raise

    def _current(self) -> sqlite3.Connection:
        """The connection, to the file that is there now: another process may have made it anew."""
        if self._db is not None and self._file != _identity(self.path):
            self.close()
        return self._db or self._open()

    def _open(self) -> sqlite3.Connection:
        self._make_file()
        self._file = _identity(self.path)
        self._db = sqlite3.connect(
            self.path, timeout=_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare(self._db)
        except BaseException:
            if self._db is not None:
                self._db.close()
            self._db = None
            raise
        return self._db

    def _make_file(self) -> None:
        """First of all, as one that SQLite makes may be read by others. A file that is there is
        not opened: to close it would drop the locks that this process may have on it."""
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return
        except OSError as error:
            raise self._unusable(error) from error

    def _prepare(self, db: sqlite3.Connection) -> None:
        _use_wal(db)
        db.execute("PRAGMA synchronous = NORMAL")
        (found,) = db.execute("PRAGMA user_version").fetchone()
        if found not in (0, _SCHEMA):
            raise sqlite3.DatabaseError(f"expected schema {_SCHEMA}, got {found}")
        if found != _SCHEMA:
            _make_tables(db)
            self._fill()
            db.execute(f"PRAGMA user_version = {_SCHEMA}")

    def _discard(self) -> None:
        """Removes the damaged files, unless another process did so first."""
        is_ours = self._file == _identity(self.path)
        self.close()
        if is_ours:
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(OSError):  # then what is there is found damaged again
                    Path(f"{self.path}{suffix}").unlink(missing_ok=True)

    def _unusable(self, error: Exception) -> StoreError:
        return StoreError(
            f"the index {self.path} cannot be used: {error}; check the disk and its permissions, "
            "or go on with --no-cache"
        )


def _use_wal(db: sqlite3.Connection) -> None:
    """Where several processes do this to a new file at once, SQLite does not wait by itself."""
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _make_tables(db: sqlite3.Connection) -> None:
    """
    Raises:
        sqlite3.DatabaseError: there are others, which an older version has begun to make.
    """
    try:
        db.executescript(_TABLES)
    except sqlite3.OperationalError as error:
        if "no such column" in str(error):
            raise sqlite3.DatabaseError(f"expected schema {_SCHEMA}: {error}") from error
        raise


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _below(entry: Entry) -> str:
    return entry.below or entry.parent


def _blob(entry: Entry) -> bytes:
    """The tokens of a tail, by which it is looked for; blocks are found by their ids."""
    return np.array(entry.token_ids, "<i4").tobytes() if entry.kind == "tail" else b""
