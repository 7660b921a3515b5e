"""What the store holds, in SQLite: sizes, parents, last use, and what sessions pin.

The files are the truth; this can be lost and made anew.
"""

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
    token_ids BLOB, PRIMARY KEY (id, kind)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_parent ON entries (parent);
CREATE TABLE IF NOT EXISTS pins (
    session TEXT, id TEXT, kind TEXT, PRIMARY KEY (session, id, kind)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_pin ON pins (id, kind);
"""
# What nothing else builds on, and no session holds.
_LEAVES = """
SELECT id, kind, size FROM entries AS e
WHERE NOT EXISTS (SELECT 1 FROM entries AS c WHERE c.parent = e.id)
AND NOT EXISTS (SELECT 1 FROM pins AS p WHERE p.id = e.id AND p.kind = e.kind)
ORDER BY used, id LIMIT 64
"""
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

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def add(self, entries: Iterable[tuple[Entry, int]]) -> None:
        """Notes entries and the sizes of their files in bytes."""
        now = time.time()
        rows = [
            (e.id, e.kind, e.parent, e.root, len(e.token_ids), size, now, _blob(e))
            for e, size in entries
        ]
        self._run(
            lambda db: db.executemany(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows
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

    def keys(self) -> set[Key]:
        return set(self._rows("SELECT id, kind FROM entries"))

    def tails(self, parent: str) -> list[tuple[str, tuple[int, ...]]]:
        """The ids and tokens of the tails of one parent."""
        query = "SELECT id, token_ids FROM entries WHERE parent = ? AND kind = 'tail'"
        found = self._rows(query, [parent])
        return [(id, tuple(np.frombuffer(blob, "<i4").tolist())) for id, blob in found]

    def leaves(self) -> list[tuple[str, str, int]]:
        """Some entries that may go, least recently used first, as (id, kind, size)."""
        return self._rows(_LEAVES)

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

    def clear(self) -> None:
        self._run(lambda db: db.executescript("DELETE FROM entries; DELETE FROM pins;"))

    # SQLite.

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple]:
        return self._run(lambda db: db.execute(query, values).fetchall())

    def _run(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """Does it in a transaction; once more on a new index if this one is damaged."""
        with self._lock:
            try:
                return self._once(action)
            except sqlite3.OperationalError as error:
                raise self._unusable(error) from error
            except sqlite3.DatabaseError:
                self._discard()
                try:
                    return self._once(action)
                except sqlite3.Error as error:
                    raise self._unusable(error) from error

    def _once(self, action: Callable[[sqlite3.Connection], T]) -> T:
        db = self._db or self._open()
        with db:
            return action(db)

    def _open(self) -> sqlite3.Connection:
        is_new = not self.path.exists()
        self._db = sqlite3.connect(self.path, timeout=_TIMEOUT_S, check_same_thread=False)
        if is_new:
            self.path.chmod(0o600)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(_TABLES)
        if is_new:
            self._fill()
        return self._db

    def _discard(self) -> None:
        self.close()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)

    def _unusable(self, error: Exception) -> StoreError:
        return StoreError(
            f"the index {self.path} cannot be used: {error}; check the disk and its permissions, "
            "or go on with --no-cache"
        )


def _blob(entry: Entry) -> bytes:
    """The tokens of a tail, by which it is looked for; blocks are found by their ids."""
    return np.array(entry.token_ids, "<i4").tobytes() if entry.kind == "tail" else b""
