"""Sessions whose KV or pins get lost while others use the store, and what is durable when."""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgecortex.errors import StoreError
from edgecortex.store import files, portable
from edgecortex.store.cache import PersistentKVCache
from edgecortex.store.entry import thought
from edgecortex.store.sessions import Session, _digest
from tests.store.blocks import (
    CHAIN,
    arrays_of,
    check_reads,
    entries_of,
    keys,
    on_disk,
    opened,
    pins,
    stored,
    tokens,
)
from tests.store.writer import session_of

THOUGHT = {"id": "0" * 31 + "1", "at": 20, "start": 0, "num_tokens": 2}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PersistentKVCache]:
    with opened(tmp_path / "store") as found:
        yield found


def session(name: str = "bob", **changes: Any) -> Session:
    """Three blocks, a window and a tail."""
    ids = tokens(1, 32)
    values = {"token_ids": ids, "num_kv_tokens": 31, "num_windows": 1, "created": 1.5, **changes}
    return replace(session_of(1, 1, name), **values)


def kept(store: PersistentKVCache, made: Session) -> Session:
    store.put(stored(made.entries()))
    store.sessions.write(made)
    return made


def lose_pins(store: PersistentKVCache) -> None:
    """As when the log of the index is lost with the last of what was written."""
    with contextlib.closing(sqlite3.connect(store.index.path)) as db, db:
        db.execute("DELETE FROM pins")


# Pins.


def test_pins_that_the_index_has_lost_come_back(store: PersistentKVCache) -> None:
    made = kept(store, session())
    lose_pins(store)
    store.tidy()
    assert pins(store, "bob") == set(keys(made.entries()))
    assert store.shrink(0) == 0
    check_reads(store, made.entries())


def test_pins_of_a_save_that_did_not_end_go(store: PersistentKVCache) -> None:
    entries = session().entries()
    store.index.pin("bob", keys(entries))
    store.put(stored(entries))
    store.tidy()
    assert pins(store, "bob") == set()
    assert store.shrink(0) > 0


def test_pins_of_a_save_that_goes_on_stay(store: PersistentKVCache) -> None:
    made = session()
    store.index.pin("bob", keys(made.entries()))
    with opened(store.folder) as other:

        def tidy_and_make() -> Any:
            other.tidy()  # while one file of it is written, and the others are not yet
            assert pins(store, "bob") == set(keys(made.entries()))
            return arrays_of(made.entries()[1])

        first, second, *others = stored(made.entries())
        store.put([first, (second[0], tidy_and_make), *others])
        with store.sessions.locked("bob"):
            other.tidy()
    assert store.shrink(0) == 0
    store.sessions.write(made)


def test_a_longer_tail_is_held_that_a_session_needs_the_beginning_of(
    store: PersistentKVCache,
) -> None:
    """Its context had gone on, in a way that the session has not."""
    made = session(num_kv_tokens=29)
    longer = entries_of(made.token_ids[:31], num_windows=1)
    store.put(stored(longer))
    store.sessions.write(made)
    store.tidy()
    assert pins(store, "bob") == set(keys(longer))
    store.shrink(0)
    assert store.verify_session("bob")["num_stored"] == 29


def test_a_block_stays_while_a_tail_builds_on_it_that_saw_something_foreign(
    tmp_path: Path,
) -> None:
    chain = replace(CHAIN, marks=((31, "foreign"),))
    entries = entries_of(tokens(1, 32), chain=chain)
    assert [entry.kind for entry in entries] == ["block"] * 3 + ["tail"]
    with opened(tmp_path) as store:
        store.put(stored(entries))
    for _ in range(2):  # by the index, and then by one that is made anew of the files
        with opened(tmp_path) as store:
            store.touch(entries[:3])
            store.touch(entries[3:])
            store.shrink(store.index.nbytes() - 1)
            assert set(on_disk(store)) == set(keys(entries[:3]))
            store.put(stored(entries[3:]))
            assert store.match(chain, tokens(1, 32), 0).num_tokens == 32
        for path in tmp_path.glob("index.sqlite*"):
            path.unlink()


# Saving.


@pytest.mark.parametrize("index", range(6))
def test_a_session_whose_kv_is_gone_is_kept_without_it(
    store: PersistentKVCache, index: int
) -> None:
    made = session(thoughts=[THOUGHT])
    assert len(made.entries()) == 6
    store.put(stored(made.entries()))
    store.path_of(made.entries()[index]).unlink()
    store.sessions.write(made)
    assert store.sessions.load("bob") == replace(made, num_kv_tokens=0)
    kept(store, made)
    check_reads(store, made.entries())


def test_what_goes_while_a_session_is_written_is_noticed(
    store: PersistentKVCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another process, which takes its pins for those of one that died."""
    made, write = session(), files.write_temporary
    store.put(stored(made.entries()))
    with opened(store.folder) as other:

        def clear_and_write(*args: Any) -> Path:
            monkeypatch.setattr(files, "write_temporary", write)
            other.tidy()
            assert other.shrink(0) > 0
            return write(*args)

        monkeypatch.setattr(files, "write_temporary", clear_and_write)
        store.sessions.write(made)
    assert store.sessions.load("bob") == replace(made, num_kv_tokens=0)


def test_what_is_found_to_be_gone_is_not_counted_on_again(store: PersistentKVCache) -> None:
    made = session()
    store.put(stored(made.entries()))
    store.path_of(made.entries()[1]).unlink()
    store.sessions.write(made)
    assert store.match(CHAIN, made.token_ids, 0).num_tokens == 12
    less = replace(made, num_kv_tokens=12, num_windows=0)
    store.sessions.write(less)
    assert store.sessions.load("bob") == less


def test_a_session_that_has_lost_kv_can_still_be_copied(store: PersistentKVCache) -> None:
    made = kept(store, session())
    store.path_of(made.entries()[1]).unlink()
    store.sessions.copy("bob", "carol")
    assert store.sessions.load("carol").token_ids == made.token_ids


# Verifying.


@pytest.mark.parametrize("is_there", [True, False])
def test_a_thought_that_cannot_be_read_is_told(store: PersistentKVCache, is_there: bool) -> None:
    made = kept(store, session(thoughts=[THOUGHT]))
    assert store.verify_session("bob")["error"] is None
    path = store.path_of(thought(THOUGHT["id"], made.root))
    if is_there:
        path.write_bytes(b"damage")
    else:
        path.unlink()
    found = store.verify_session("bob")
    assert found["num_stored"] == found["num_kv_tokens"] == 31
    assert "1 of the 1 thoughts injected into it cannot be read" in found["error"]


def test_a_damaged_block_is_told_by_the_number_of_tokens(store: PersistentKVCache) -> None:
    made = kept(store, session())
    store.path_of(made.entries()[1]).write_bytes(b"damage")
    found = store.verify_session("bob")
    assert (found["num_stored"], found["error"]) == (0, None)  # without a window there is no end


# Names.


@pytest.mark.parametrize("new", ["carol", "Bob"])
def test_another_name_keeps_all_else(store: PersistentKVCache, new: str) -> None:
    made = kept(store, session())
    with store.sessions.locked("bob", new):
        store.sessions.rename("bob", new)
    assert store.sessions.names() == [new]
    assert store.sessions.load(new) == replace(made, name=new)
    assert (pins(store, "bob"), pins(store, new)) == (set(), set(keys(made.entries())))
    store.tidy()
    assert store.shrink(0) == 0
    assert os.listdir(store.temporary) == []


def test_a_name_that_is_taken_is_not_given(store: PersistentKVCache) -> None:
    made = [kept(store, session(name)) for name in ("bob", "carol")]
    for new in ("carol", "Carol", "bob"):
        with pytest.raises(StoreError, match="already; choose another name"):
            store.sessions.rename("bob", new)
    with pytest.raises(StoreError, match="cannot name a session"):
        store.sessions.rename("bob", "../bob")
    with pytest.raises(StoreError, match="no session 'dave'"):
        store.sessions.rename("dave", "erin")
    assert [store.sessions.load(each.name) for each in made] == made


# Manifests.


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block", 0),
        ("block", -64),
        ("num_sinks", -1),
        ("num_windows", -1),
        ("num_kv_tokens", -1),
        ("num_kv_tokens", 33),
        ("token_ids", [1 << 31]),
        ("token_ids", [-1]),
        ("created", float("nan")),
        ("updated", 1e300),
    ],
)
def test_a_manifest_with_a_value_out_of_its_range_is_an_error_that_says_so(
    store: PersistentKVCache, key: str, value: Any
) -> None:
    values = json.loads(session().to_json())
    del values["digest"]
    values |= {"num_kv_tokens": 0, key: value}
    data = json.dumps({"digest": _digest(values), **values})
    (store.sessions.folder / "bob.json").write_text(data)
    name = key.replace("_", "[_ ]")
    with pytest.raises(StoreError, match=rf"{name} must be .*, got .*session rm bob"):
        store.sessions.load("bob")
    assert "must be" in store.sessions.summary("bob")["error"]
    store.tidy()


def test_a_block_under_the_name_of_another_is_not_exported(
    store: PersistentKVCache, tmp_path: Path
) -> None:
    made = kept(store, session())
    first, second = (store.path_of(entry) for entry in made.entries()[:2])
    second.write_bytes(first.read_bytes())
    assert portable.export(store, "bob", tmp_path / "file").num_missing == 1


# What is on the medium when.


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is synced and moved, by inodes."""
    found: list[tuple[str, int]] = []
    sync, move = files.sync, os.replace

    def noted_sync(fd: int) -> None:
        found.append(("sync", os.fstat(fd).st_ino))
        sync(fd)

    def noted_move(old: Path, new: Path) -> None:
        found.append(("move", old.stat().st_ino))
        move(old, new)

    monkeypatch.setattr(files, "sync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_move)
    return found


def check_durable(steps: list[tuple[str, int]], path: Path) -> None:
    """A file was synced, then moved to its place, and then its folder was synced."""
    file, folder = path.stat().st_ino, path.parent.stat().st_ino
    moved = steps.index(("move", file))
    assert ("sync", file) in steps[:moved]
    assert ("sync", folder) in steps[moved:]


def test_what_put_has_stored_is_durable(
    store: PersistentKVCache, steps: list[tuple[str, int]]
) -> None:
    entries = session().entries()
    store.put(stored(entries))
    assert len(on_disk(store)) == len(entries)
    for entry in entries:
        check_durable(steps, store.path_of(entry))


def test_what_another_process_has_moved_is_durable_too(
    store: PersistentKVCache, steps: list[tuple[str, int]]
) -> None:
    """Its folder may not be synced yet."""
    entries = session().entries()
    store.put(stored(entries))
    steps.clear()
    assert store.put(stored(entries)) == 0
    assert steps == [("sync", store.blocks.stat().st_ino)]


def test_a_manifest_is_durable(store: PersistentKVCache, steps: list[tuple[str, int]]) -> None:
    kept(store, session())
    check_durable(steps, store.sessions.folder / "bob.json")
    kept(store, session(updated=3.5))
    check_durable(steps, store.sessions.folder / "bob.json")
