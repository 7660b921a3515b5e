"""Small blocks for the tests of the store, and what must hold of any store."""

import contextlib
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from edgecortex.store.cache import PersistentKVCache
from edgecortex.store.entry import Arrays, Chain, Entry, window_of

CHAIN = Chain.of("a model", {"num_sinks": 4, "block": 8})
Stored = tuple[Entry, Callable[[], Arrays]]


def arrays_of(entry: Entry, scale: int = 1) -> dict[str, np.ndarray]:
    """Some numbers that follow from what the entry is; `scale` times 160 bytes of floats."""
    rng = np.random.default_rng(zlib.crc32(entry.file_name.encode()))
    return {
        "0.k0": rng.integers(0, 1 << 32, (2, 3), np.uint32),
        "0.k1": rng.standard_normal((2, 1, 5)).astype(np.float16),
        "0.row_k": rng.standard_normal((scale, 40)).astype(np.float32),
    }


def stored(entries: Sequence[Entry], scale: int = 1) -> list[Stored]:
    """Entries as `put` takes them."""
    return [(entry, partial(arrays_of, entry, scale)) for entry in entries]


def entries_of(
    token_ids: Sequence[int], num_windows: int = 0, tail: bool = True, chain: Chain = CHAIN
) -> list[Entry]:
    """All that is stored of a context."""
    blocks = chain.blocks(token_ids)
    windows = [window_of(block) for block in blocks[max(0, len(blocks) - num_windows) :]]
    rest = token_ids[chain.stop(len(blocks)) :]
    parent = blocks[-1].id if blocks else chain.root
    tails = [chain.tail(parent, rest, chain.stop(len(blocks)))] if tail and rest else []
    return [*blocks, *(windows if num_windows else []), *tails]


def keys(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    return [(entry.id, entry.kind) for entry in entries]


def tokens(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 50_000, count).tolist()


@contextlib.contextmanager
def opened(folder: Path, max_bytes: int | None = None) -> Iterator[PersistentKVCache]:
    store = PersistentKVCache(folder, max_bytes)
    try:
        yield store
    finally:
        store.close()


def on_disk(store: PersistentKVCache) -> dict[tuple[str, str], int]:
    """The files of the store and their sizes, as the system sees them."""
    found = {}
    for path in store.blocks.iterdir():
        id, kind, _ = path.name.split(".")
        found[id, kind] = path.stat().st_size
    return found


def check_agreement(store: PersistentKVCache) -> None:
    """The index knows just the files that there are, and their sizes."""
    assert store.index.sizes() == on_disk(store)
    assert store.index.nbytes() == sum(on_disk(store).values())


def check_reads(store: PersistentKVCache, entries: Sequence[Entry], scale: int = 1) -> None:
    """Everything reads back as it was put."""
    seen = {}

    def take(i: int, arrays: Arrays) -> None:
        seen[entries[i].file_name] = {name: np.array(x) for name, x in arrays.items()}

    store.read(entries, take)
    assert sorted(seen) == sorted(entry.file_name for entry in entries)
    for entry in entries:
        check_equal(seen[entry.file_name], arrays_of(entry, scale))


def check_equal(found: Arrays, expected: Arrays) -> None:
    assert sorted(found) == sorted(expected)
    for name, x in expected.items():
        assert (found[name].dtype, found[name].shape) == (x.dtype, x.shape)
        assert found[name].tobytes() == x.tobytes()


def pins(store: PersistentKVCache, session: str) -> set[tuple[str, str]]:
    """What a session pins, out of the index's file."""
    with contextlib.closing(sqlite3.connect(store.folder / "index.sqlite")) as db:
        rows = db.execute("SELECT id, kind FROM pins WHERE session = ?", [session])
        return set(rows.fetchall())
