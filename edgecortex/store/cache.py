"""`PersistentKVCache`: KV blocks on disk, named by their tokens (PQ4, arXiv 2603.04428)."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from edgecortex.errors import StoreError
from edgecortex.store import files
from edgecortex.store.entry import (
    KINDS,
    VERSION,
    Arrays,
    Chain,
    DamagedError,
    Entry,
    decode,
    encode,
    file_name_of,
    window_of,
)
from edgecortex.store.found import Checked, Stats
from edgecortex.store.index import Index, Key
from edgecortex.store.sessions import Session, Sessions
from edgecortex.tokens import common_prefix_len

NUM_READERS, MANY = 2, 48  # for fewer files than this threads take longer to start than to read
_NOT_THE_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # errors that will pass
_MISNAMED = "it holds other tokens than its name says"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Match:
    """What the store has of a prompt: the first `num_tokens` tokens, in these entries. The tail
    may go on in another way after them. Of `num_known` tokens it has the blocks, but maybe not the
    windows that one has to begin with there."""

    num_tokens: int = 0
    num_known: int = 0
    blocks: Sequence[Entry] = ()
    windows: Sequence[Entry] = ()
    tail: Entry | None = None

    @property
    def entries(self) -> list[Entry]:
        return [*self.blocks, *self.windows, *([self.tail] if self.tail else [])]


class PersistentKVCache:
    """Entries in a folder that several processes may share. Every method may be called from any
    thread.

    A file is written under another name, synced and moved to its place, so it is whole or not
    there; its checksum is verified whenever it is read, and a damaged one is put into
    quarantine. When the store passes `max_bytes`, what was not used for longest goes, never
    something that another entry builds on or that a session pins.

    Raises:
        StoreError: a newer version wrote the folder, or it cannot be written.
    """

    def __init__(self, folder: Path, max_bytes: int | None = None) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self.blocks, self.temporary = folder / "blocks", folder / "temporary"
        self.quarantine = folder / "quarantine"
        with self._reporting("use"):
            files.make_folder(folder)
            self._check_version()
            for path in (self.blocks, self.temporary, self.quarantine):
                files.make_folder(path)
            self.index = Index(folder / "index.sqlite", self._scan)
            self.sessions = Sessions(folder, self.index)
            self._write_version()
        self._readers = ThreadPoolExecutor(NUM_READERS, "edgecortex-read")

    def close(self) -> None:
        self._readers.shutdown()
        self.index.close()

    def tidy(self) -> None:
        """Makes the index agree with files and sessions, and clears up after processes that died.

        Raises:
            StoreError: the store cannot be read or written.
        """
        with self._reporting("use"):
            files.remove_leftovers(self.temporary)
            self._add_files(self.index.atomically(self._forget_missing))
            self.sessions.pin_all()
            self.sessions.unpin_lost()

    # Finding and reading.

    def match(self, chain: Chain, token_ids: Sequence[int], num_windows: int) -> Match:
        """The longest stored prefix of these tokens.

        Args:
            num_windows: how many of the newest blocks layers with a sliding window need.
        """
        wanted = chain.blocks(token_ids)
        known = self.index.known([entry.id for entry in wanted])
        num_blocks = sum(1 for _ in takewhile(lambda e: (e.id, "block") in known, wanted))
        num_known = chain.stop(num_blocks)
        while not all((e.id, "window") in known for e in _newest(wanted, num_blocks, num_windows)):
            num_blocks -= 1
        blocks = wanted[:num_blocks]
        parent, start = blocks[-1].id if blocks else chain.root, chain.stop(num_blocks)
        tail, length = self._tail(chain, parent, token_ids, start)
        windows = [window_of(entry) for entry in _newest(wanted, num_blocks, num_windows)]
        return Match(start + length, num_known, blocks, windows, tail)

    def read_ahead(self, entries: Sequence[Entry]) -> None:
        """Has the system begin to read these files, without waiting for it."""
        paths = [self.path_of(entry) for entry in entries]

        def ahead() -> None:
            for path in paths:
                files.read_ahead(path)

        self._readers.submit(ahead)

    def read(self, entries: Sequence[Entry], take: Callable[[int, Arrays], None]) -> None:
        """Reads and verifies entries and hands each one's arrays to `take(index, arrays)`, from
        several threads if they are many. The arrays are views that `take` must copy out of.

        Raises:
            DamagedError: a file was missing, damaged, or not what `take` expects (ValueError or
                KeyError); it is in quarantine and forgotten now.
        """

        def one(i: int) -> None:
            with self._quarantining(entries[i]):
                found, arrays = decode(files.read_into_buffer(self.path_of(entries[i])))
                if found != entries[i]:
                    raise DamagedError(_MISNAMED)
                take(i, arrays)

        spread = self._readers.map if len(entries) >= MANY else map
        for _ in spread(one, range(len(entries))):
            pass

    def touch(self, entries: Iterable[Entry]) -> None:
        """Notes that these were used now."""
        self.index.touch((entry.id, entry.kind) for entry in entries)

    def path_of(self, entry: Entry) -> Path:
        return self.blocks / entry.file_name

    # Writing.

    def put(self, entries: Iterable[tuple[Entry, Callable[[], Arrays]]]) -> int:
        """Stores entries that are not there yet; on return they are durable.

        Returns: the bytes written.

        Raises:
            StoreError: the disk is full, or cannot be written. What was there before still is.
        """
        wanted = dict(entries)
        written: dict[Entry, Path] = {}
        num_written, missing = 0, list(wanted)
        with self._reporting("write"), files.removing(written.values()):
            while missing:
                for entry in missing:
                    if files.size(self.path_of(entry)) is None:
                        data = encode(entry, wanted[entry]())
                        written[entry] = files.write_temporary(self.temporary, data)
                        num_written += len(data)
                missing = self.index.atomically(lambda: self._settle(wanted, written))
            files.sync_folder(self.blocks)  # what others have written may not be durable yet
        self.shrink()
        return num_written

    def shrink(self, max_bytes: int | None = None) -> int:
        """Lets go of the least recently used until the store fits; returns the bytes freed."""
        limit = self.max_bytes if max_bytes is None else max_bytes
        if limit is None:
            return 0
        with self._reporting("write"):
            return self.index.atomically(lambda: self._evict(limit))

    # Upkeep.

    def stats(self) -> Stats:
        """Counts and sizes."""
        with self._reporting("use"):
            num_quarantined = len(os.listdir(self.quarantine))
        nbytes, num_pinned = self.index.nbytes(), self.index.num_pinned()
        totals = self.index.totals()
        return Stats(str(self.folder), nbytes, self.max_bytes, num_pinned, num_quarantined, totals)

    def verify(self, progress: Progress = lambda done, total: None) -> Checked:
        """Reads every file and puts the damaged ones into quarantine."""
        with self._reporting("use"):
            keys = sorted(self._there())
        sizes: dict[Key, int] = {}
        damaged: dict[Key, Exception] = {}
        for i, key in enumerate(keys):
            progress(i, len(keys))
            try:
                sizes[key] = self._checked(self._path(*key))[1]
            except FileNotFoundError:
                continue
            except (DamagedError, OSError) as error:
                damaged[key] = error
        progress(len(keys), len(keys))
        for key, reason in damaged.items():  # not before: a new index would do it, and not tell
            self._set_aside(self._path(*key), key, reason)
        self.tidy()
        names = [self._path(*key).name for key in damaged]
        return Checked(len(sizes) + len(damaged), sum(sizes.values()), names)

    def verify_session(self, name: str) -> dict[str, Any]:
        """Reads and checks what a session's KV is stored in; damaged files go into quarantine.

        Returns: `num_tokens` of the session, `num_kv_tokens` that were stored, `num_stored` that
        still are from the beginning on, and an `error` if there is no reading it at all, or not
        all of what was injected into it.
        """
        try:
            session = self.sessions.load(name)
        except StoreError as error:
            return {"num_tokens": 0, "num_kv_tokens": 0, "num_stored": 0, "error": str(error)}
        damaged = [entry for entry in session.entries() if not self._is_whole(entry)]
        ids = session.token_ids[: session.num_kv_tokens]
        found = self.match(session.chain, ids, session.num_windows)
        return {
            "num_tokens": len(session.token_ids),
            "num_kv_tokens": session.num_kv_tokens,
            "num_stored": found.num_tokens,
            "error": _lost_thoughts(damaged, session),
        }

    def clear(self) -> int:
        """Removes every block that no session pins; returns the bytes freed."""
        freed = self.shrink(0)
        with self._reporting("write"):
            for path in self.quarantine.iterdir():
                freed += path.stat().st_size
                path.unlink(missing_ok=True)
        return freed

    # Inside.

    def _is_whole(self, entry: Entry) -> bool:
        """Whether it can be read; a file that cannot is in quarantine then."""
        try:
            self.read([entry], lambda i, arrays: None)
        except DamagedError:
            return False
        return True

    def _tail(
        self, chain: Chain, parent: str, token_ids: Sequence[int], start: int
    ) -> tuple[Entry | None, int]:
        """The stored tail that has most of its beginning in common with what comes from `start`
        on, and how much that is."""
        stored = [
            (common_prefix_len(ids, token_ids[start : start + most]), ids, id, under)
            for under, most in chain.tail_parents(parent, start, len(token_ids))
            for id, ids in self.index.tails(under)
        ]
        length, ids, id, under = max(stored, default=(0, (), "", ""))
        # By the index's name for it: where the two disagree it is damaged, and reading finds out.
        return (Entry(id, "tail", under, chain.root, ids) if length else None), length

    def _settle(self, wanted: Iterable[Entry], written: Mapping[Entry, Path]) -> list[Entry]:
        """Moves written files to their places and notes all that is wanted; or gives what has
        been removed by others meanwhile. Evicting is atomic too, so what was noted is there."""
        sizes: dict[Entry, int] = {}
        for entry in wanted:
            place = self.path_of(entry)
            size = files.size(written.get(entry, place)) or files.size(place)
            if size is not None:
                sizes[entry] = size
        if missing := [entry for entry in wanted if entry not in sizes]:
            return missing
        self.index.add(sizes.items())
        for entry, path in written.items():
            with contextlib.suppress(FileNotFoundError):  # moved already: this is the second time
                os.replace(path, self.path_of(entry))
        return []

    def _evict(self, limit: int) -> int:
        gone = self.index.evict(self.index.nbytes() - limit)
        for (id, kind), _ in gone:
            self._path(id, kind).unlink(missing_ok=True)
        return sum(size for _, size in gone)

    def _forget_missing(self) -> list[Key]:
        """Removes from the index what is gone or has another size; gives what it does not know."""
        known = self.index.sizes()
        there = {key: files.size(self._path(*key)) for key in self._there()}
        self.index.remove(key for key, size in known.items() if there.get(key) != size)
        return [key for key, size in there.items() if known.get(key) != size]

    def _path(self, id: str, kind: str) -> Path:
        return self.blocks / file_name_of(id, kind)

    def _there(self) -> Iterable[Key]:
        for name in os.listdir(self.blocks):
            id, _, rest = name.partition(".")
            kind = rest.removesuffix(".safetensors")
            if kind in KINDS:
                yield id, kind

    def _scan(self) -> None:
        """Fills a new index."""
        with self._reporting("use"):
            self._add_files(self._there())
            self.sessions.pin_all()

    def _add_files(self, keys: Iterable[Key]) -> None:
        """Notes files that the index does not know, by what they say of themselves."""
        found = []
        for id, kind in keys:
            path = self._path(id, kind)
            try:
                found.append(self._checked(path))
            except FileNotFoundError:
                continue
            except (DamagedError, OSError) as error:
                self._set_aside(path, (id, kind), error)
        self.index.atomically(
            lambda: self.index.add((e, n) for e, n in found if files.size(self.path_of(e)) == n)
        )

    def _checked(self, path: Path) -> tuple[Entry, int]:
        entry, _ = decode(data := files.read_into_buffer(path))
        if entry.file_name != path.name:
            raise DamagedError(_MISNAMED)
        return entry, len(data)

    @contextlib.contextmanager
    def _quarantining(self, entry: Entry) -> Iterator[None]:
        try:
            yield
        except (DamagedError, OSError, ValueError, KeyError) as error:
            self._set_aside(self.path_of(entry), (entry.id, entry.kind), error)
            raise DamagedError(f"{entry.file_name} cannot be used: {error}") from error

    def _set_aside(self, path: Path, key: Key, error: Exception) -> None:
        """Takes a damaged file out of use, for whoever wants to look at it."""
        if getattr(error, "errno", None) not in _NOT_THE_FILES:
            with contextlib.suppress(OSError):
                os.replace(path, self.quarantine / path.name)
        self.index.remove([key])

    @contextlib.contextmanager
    def _reporting(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._cannot(action, error) from error

    def _write_version(self) -> None:
        """Last of all in a new store, and synced with its folders."""
        if not (path := self.folder / "version").exists():
            files.replace_durably(path, f"{VERSION}\n".encode(), self.temporary)
            files.sync_folder(self.folder.parent)

    def _check_version(self) -> None:
        try:
            found = (self.folder / "version").read_bytes().decode(errors="replace").strip()
        except FileNotFoundError:
            return
        if found != str(VERSION):
            raise StoreError(
                f"the store {self.folder} was written by another version of EdgeCortex: expected "
                f"format {VERSION}, got {found[:20]!r}; upgrade, choose another folder with "
                "EDGECORTEX_STORE, or go on with --no-cache"
            )

    def _cannot(self, action: str, error: OSError) -> StoreError:
        return StoreError(
            f"cannot {action} the store {self.folder}: {error.strerror}; make room or give it "
            "permissions, choose another folder with EDGECORTEX_STORE, or go on with --no-cache"
        )


def _lost_thoughts(damaged: Iterable[Entry], session: Session) -> str | None:
    if not (num_lost := sum(entry.kind == "thought" for entry in damaged)):
        return None
    return (
        f"{num_lost} of the {len(session.thoughts)} thoughts injected into it cannot be read; "
        "it goes on without, and what came after is read again"
    )


def _newest(blocks: Sequence[Entry], num_blocks: int, count: int) -> Sequence[Entry]:
    return blocks[max(0, num_blocks - count) : num_blocks]
