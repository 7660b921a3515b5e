"""An index that is lost or damaged, before a store is opened and while it is."""

import contextlib
import os
import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgecortex.errors import StoreError
from edgecortex.store.cache import PersistentKVCache
from tests.store.blocks import (
    CHAIN,
    check_agreement,
    check_reads,
    entries_of,
    keys,
    on_disk,
    opened,
    pins,
    stored,
    tokens,
)

IDS = tokens(1, 303)
ENTRIES = entries_of(IDS, num_windows=2)
MORE = entries_of(tokens(2, 40))


def delete(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def delete_main(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    os.truncate(path, 0)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def garble(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(path.stat().st_size))


def garble_all_but_the_header(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:100] + random.Random(2).randbytes(len(data) - 100))


def garble_log(path: Path) -> None:
    log = Path(f"{path}-wal")
    log.write_bytes(random.Random(3).randbytes(log.stat().st_size if log.exists() else 5000))


def use_other_schema(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
        db.execute("CREATE TABLE entries (something TEXT)")


HARMS = [
    delete,
    delete_main,
    empty,
    halve,
    garble,
    garble_all_but_the_header,
    garble_log,
    use_other_schema,
]
Harm = Callable[[Path], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with opened(tmp_path / "store") as store:
        store.put(stored(ENTRIES))
    return tmp_path / "store"


@contextlib.contextmanager
def harmed(folder: Path, harm: Harm, while_open: bool) -> Iterator[PersistentKVCache]:
    with opened(folder) as store:
        if while_open:
            assert store.index.known([ENTRIES[0].id])
        harm(store.index.path)
        yield store


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_index_is_made_anew_when_the_store_is_opened(folder: Path, harm: Harm) -> None:
    with harmed(folder, harm, while_open=False) as store:
        match = store.match(CHAIN, IDS, 2)
        assert match.num_tokens == len(IDS)
        check_reads(store, match.entries)
        check_agreement(store)
        assert len(on_disk(store)) == len(ENTRIES)
        store.put(stored(MORE))
        check_agreement(store)


@pytest.mark.parametrize("harm", HARMS)
def test_an_index_that_is_harmed_while_open_harms_no_block(folder: Path, harm: Harm) -> None:
    with harmed(folder, harm, while_open=True) as store:
        for _ in range(2):  # it may take one use to notice
            with contextlib.suppress(StoreError):
                store.put(stored(MORE))
                store.match(CHAIN, IDS, 2)
                store.tidy()
    with opened(folder) as store:
        store.put(stored(MORE))
        store.tidy()
        check_agreement(store)
        match = store.match(CHAIN, IDS, 2)
        assert match.num_tokens == len(IDS)
        check_reads(store, [*match.entries, *MORE])
        assert store.verify().damaged == []


@pytest.mark.parametrize("harm", [delete, delete_main, use_other_schema])
def test_an_index_that_is_replaced_while_open_is_made_anew_at_once(
    folder: Path, harm: Harm
) -> None:
    with harmed(folder, harm, while_open=True) as store, opened(folder) as other:
        check_agreement(store)
        store.index.pin("s", keys(ENTRIES))
        assert other.shrink(0) == 0  # it sees the pins: both use one index
        check_agreement(other)


def test_what_is_pinned_after_the_loss_stays(folder: Path) -> None:
    with harmed(folder, garble, while_open=False) as store:
        store.index.pin("s", keys(ENTRIES[:3]))
        assert store.shrink(0) > 0
        assert set(on_disk(store)) == set(keys(ENTRIES[:3])) == pins(store, "s")
        check_agreement(store)


def test_an_index_whose_filling_was_cut_off_is_filled(folder: Path) -> None:
    with opened(folder) as store:
        store.index.remove(keys(ENTRIES))
    with contextlib.closing(sqlite3.connect(folder / "index.sqlite")) as db:
        db.execute("PRAGMA user_version = 0")  # set once it is full
    with opened(folder) as store:
        assert store.match(CHAIN, IDS, 2).num_tokens == len(IDS)


def test_tidying_takes_files_in_and_forgets_those_that_are_gone(folder: Path) -> None:
    with opened(folder) as store:
        store.index.remove(keys(ENTRIES[:5]))
        store.path_of(ENTRIES[7]).unlink()
        store.tidy()
        check_agreement(store)
        assert set(store.index.sizes()) == set(keys(ENTRIES)) - set(keys(ENTRIES[7:8]))


def test_an_index_that_is_a_folder_is_an_error_that_says_so(folder: Path) -> None:
    delete(folder / "index.sqlite")
    (folder / "index.sqlite").mkdir()
    with opened(folder) as store:
        with pytest.raises(StoreError, match=r"index.sqlite cannot be used: .*--no-cache"):
            store.match(CHAIN, IDS, 2)
        (folder / "index.sqlite").rmdir()
        assert store.match(CHAIN, IDS, 2).num_tokens == len(IDS)


def test_a_tail_whose_tokens_the_index_has_wrong_is_found_out(folder: Path) -> None:
    """Else a reader would match and fail to read it for ever."""
    tail = ENTRIES[-1]
    with opened(folder) as store:
        with contextlib.closing(sqlite3.connect(store.index.path)) as db, db:
            wrong = np.array([*tail.token_ids[:-1], 0], "<i4").tobytes()
            db.execute("UPDATE entries SET token_ids = ? WHERE kind = 'tail'", [wrong])
        found = store.match(CHAIN, IDS, 2).tail
        assert found is not None
        with pytest.raises(StoreError):
            store.read([found], lambda i, arrays: None)
        assert store.match(CHAIN, IDS, 2).tail is None
