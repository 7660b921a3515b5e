"""Damaged files of a store: what is harmed, what is not, and how it heals."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgecortex.store.cache import PersistentKVCache
from edgecortex.store.entry import DamagedError, Entry
from tests.store.blocks import (
    CHAIN,
    check_agreement,
    check_reads,
    entries_of,
    keys,
    on_disk,
    opened,
    stored,
    tokens,
)

IDS = tokens(1, 40)
ENTRIES = entries_of(IDS)  # four blocks and a tail
OTHERS = entries_of(tokens(2, 30))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PersistentKVCache]:
    with opened(tmp_path / "store") as found:
        found.put(stored([*ENTRIES, *OTHERS]))
        yield found


def write(store: PersistentKVCache, entry: Entry, data: bytes) -> None:
    store.path_of(entry).write_bytes(data)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]


def damages(data: bytes) -> list[bytes]:
    """Some damaged versions of a file: flipped, truncated, prolonged, replaced."""
    places = range(0, len(data), 61)
    flips = [flipped(data, at) for at in places]
    cuts = [data[:at] for at in places]
    return [*flips, *cuts, data[:-1], data + b"\0", b"5" * 100, b"\1\0\0\0\0\0\0\x005", bytes(50)]


def check_harm(store: PersistentKVCache, index: int) -> None:
    """Just entry `index` is unusable: it is in quarantine, and only its chain is shorter."""
    assert os.listdir(store.quarantine) == [ENTRIES[index].file_name]
    match = store.match(CHAIN, IDS, 0)
    assert match.entries == ENTRIES[:index]
    check_reads(store, match.entries)
    assert store.match(CHAIN, tokens(2, 30), 0).entries == OTHERS
    check_reads(store, OTHERS)
    check_agreement(store)


def check_healing(store: PersistentKVCache) -> None:
    """What was damaged can be put again."""
    assert store.put(stored(ENTRIES)) > 0
    assert store.match(CHAIN, IDS, 0).entries == ENTRIES
    check_reads(store, ENTRIES)
    for path in store.quarantine.iterdir():
        path.unlink()


@pytest.mark.parametrize("index", [0, 2, 4])
def test_damage_is_found_by_reading_harms_nothing_else_and_heals(
    store: PersistentKVCache, index: int
) -> None:
    for data in damages(store.path_of(ENTRIES[index]).read_bytes()):
        write(store, ENTRIES[index], data)
        with pytest.raises(DamagedError, match=ENTRIES[index].file_name):
            store.read(ENTRIES, lambda i, arrays: None)
        check_harm(store, index)
        check_healing(store)


@pytest.mark.parametrize("index", [0, 2, 4])
def test_damage_is_found_and_told_by_verify(store: PersistentKVCache, index: int) -> None:
    for data in damages(store.path_of(ENTRIES[index]).read_bytes()):
        write(store, ENTRIES[index], data)
        found = store.verify()
        assert found.damaged == [ENTRIES[index].file_name]
        assert found.num_entries == len(ENTRIES) + len(OTHERS)
        check_harm(store, index)
        check_healing(store)
    assert store.verify().damaged == []


@pytest.mark.parametrize("index", [0, 2, 4])
def test_damage_is_told_by_verify_when_the_index_is_lost_too(
    store: PersistentKVCache, index: int
) -> None:
    data = store.path_of(ENTRIES[index]).read_bytes()
    write(store, ENTRIES[index], flipped(data, len(data) - 1))
    store.index.close()
    store.index.path.unlink()
    assert store.verify().damaged == [ENTRIES[index].file_name]
    check_harm(store, index)


def test_a_damaged_tail_is_not_taken_into_a_new_index(store: PersistentKVCache) -> None:
    """By the wrong tokens in it, it would be looked for in vain under another name."""
    tail, ids = ENTRIES[-1], np.array(ENTRIES[-1].token_ids, "<i4").tobytes()
    data = store.path_of(tail).read_bytes()
    at = data.index(ids)
    write(store, tail, flipped(data, at + len(ids) - 4))
    store.index.close()
    store.index.path.unlink()
    assert store.match(CHAIN, IDS, 0).tail is None
    check_harm(store, len(ENTRIES) - 1)


def test_a_block_under_the_name_of_another_is_damage(store: PersistentKVCache) -> None:
    write(store, ENTRIES[1], store.path_of(OTHERS[1]).read_bytes())
    with pytest.raises(DamagedError, match="other tokens than its name"):
        store.read(ENTRIES[1:2], lambda i, arrays: None)
    check_harm(store, 1)
    check_healing(store)
    write(store, ENTRIES[1], store.path_of(OTHERS[1]).read_bytes())
    assert store.verify().damaged == [ENTRIES[1].file_name]
    check_harm(store, 1)


def test_a_file_that_is_gone_makes_the_match_shorter_and_heals(store: PersistentKVCache) -> None:
    store.path_of(ENTRIES[2]).unlink()
    with pytest.raises(DamagedError):
        store.read(ENTRIES, lambda i, arrays: None)
    assert store.match(CHAIN, IDS, 0).entries == ENTRIES[:2]
    check_agreement(store)
    check_healing(store)


def test_all_damaged_at_once_are_out_of_the_way_after_as_many_matches(
    store: PersistentKVCache,
) -> None:
    for entry in ENTRIES:
        write(store, entry, b"")
    for _ in ENTRIES:
        if match := store.match(CHAIN, IDS, 0).entries:
            with pytest.raises(DamagedError):
                store.read(match, lambda i, arrays: None)
    assert store.match(CHAIN, IDS, 0).entries == []
    check_reads(store, OTHERS)


def test_arrays_that_the_reader_cannot_use_are_damage(store: PersistentKVCache) -> None:
    def refuse(i: int, arrays: object) -> None:
        raise ValueError("expected another shape")

    with pytest.raises(DamagedError, match="expected another shape"):
        store.read(ENTRIES[3:4], refuse)
    check_harm(store, 3)


def test_what_cannot_be_opened_for_want_of_descriptors_is_not_damage(
    store: PersistentKVCache,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        with pytest.raises(DamagedError, match="Too many open files"):
            store.read(ENTRIES[:1], lambda i, arrays: None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert os.listdir(store.quarantine) == []
    assert store.match(CHAIN, IDS, 0).entries == []
    store.tidy()
    assert store.match(CHAIN, IDS, 0).entries == ENTRIES
    check_reads(store, ENTRIES)


def test_a_folder_that_holds_other_things_too_is_left_with_them(store: PersistentKVCache) -> None:
    names = ["notes.txt", ".DS_Store", "x.other.safetensors"]
    for folder in (store.blocks, store.temporary):
        for name in [*names, "99999999999999999999-x", "-"]:
            (folder / name).write_text("mine")
    before = {path.name for path in store.blocks.iterdir()}
    store.tidy()
    assert store.verify().damaged == []
    assert {path.name for path in store.blocks.iterdir()} == before
    assert len(os.listdir(store.temporary)) == 5
    assert set(store.index.sizes()) == set(keys([*ENTRIES, *OTHERS]))


def test_clearing_removes_what_is_in_quarantine(store: PersistentKVCache) -> None:
    size = len(store.path_of(ENTRIES[0]).read_bytes())
    write(store, ENTRIES[0], bytes(size))
    assert store.verify().damaged == [ENTRIES[0].file_name]
    assert store.stats().num_quarantined == 1
    nbytes = sum(on_disk(store).values()) + size
    assert store.clear() == nbytes
    assert (store.stats().num_quarantined, store.stats().nbytes, on_disk(store)) == (0, 0, {})
