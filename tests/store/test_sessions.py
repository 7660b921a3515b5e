"""Saved agents: manifests, names, locks, pins, and files to be taken elsewhere."""

import json
import multiprocessing
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from edgecortex.errors import StoreError
from edgecortex.store import portable
from edgecortex.store.cache import PersistentKVCache
from edgecortex.store.entry import Chain
from edgecortex.store.sessions import Session, check_name

CHAIN = Chain("root", 4, 64)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PersistentKVCache]:
    found = PersistentKVCache(tmp_path / "store")
    yield found
    found.close()


def session(name: str = "bob", seed: int = 0, length: int = 200, **changes: Any) -> Session:
    ids = np.random.default_rng(seed).integers(0, 999, length).tolist()
    told = [{"role": "user", "content": "Größe?"}, {"role": "assistant", "content": "日本"}]
    made = Session(
        name=name,
        model="m",
        fingerprint="f",
        kv_format="kv4",
        root=CHAIN.root,
        num_sinks=4,
        block=64,
        num_windows=1,
        num_kv_tokens=length - 1,
        system=None,
        messages=told,
        token_ids=ids,
        rendered="Größe?日本",
        created=1.5,
        updated=2.5,
    )
    return replace(made, **changes)


def kept(store: PersistentKVCache, made: Session) -> Session:
    """Stores a session with something for each of its entries."""
    store.put((e, lambda: {"x": np.ones((4, 100), np.float32)}) for e in made.entries())
    store.sessions.write(made)
    return made


def stored(store: PersistentKVCache, name: str) -> int:
    return int(store.verify_session(name)["num_stored"])


def test_what_is_written_is_read(store: PersistentKVCache) -> None:
    made = kept(store, session())
    assert store.sessions.load("bob") == made
    assert [e.kind for e in made.entries()] == ["block"] * 3 + ["window", "tail"]
    assert stored(store, "bob") == 199
    mode = stat.S_IMODE((store.sessions.folder / "bob.json").stat().st_mode)
    assert mode == 0o600


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".x", "a/b", "../x", "a\\b", "a b", "ü", "x" * 65, "-x", "a\n", None, 3]
)
def test_a_name_that_could_leave_the_folder_is_none(name: Any, store: PersistentKVCache) -> None:
    with pytest.raises(StoreError, match="cannot name a session"):
        check_name(name)
    with pytest.raises(StoreError):
        store.sessions.load(name)
    kept(store, session())
    with pytest.raises(StoreError):
        store.sessions.copy("bob", name)
    assert store.sessions.names() == ["bob"]


def test_names_differ_in_more_than_case(store: PersistentKVCache) -> None:
    kept(store, session("Bob"))
    with pytest.raises(StoreError, match="there is a session 'Bob'"):
        store.sessions.write(session("bob"))
    with pytest.raises(StoreError, match="already"):
        store.sessions.copy("Bob", "BOB")


def test_every_flipped_byte_of_a_manifest_is_noticed(store: PersistentKVCache) -> None:
    made = session(length=6)
    data = made.to_json()
    assert Session.from_json(data) == made
    for i in range(len(data)):
        changed = bytearray(data)
        changed[i] ^= 1
        try:
            assert Session.from_json(bytes(changed)) == made  # white space, or an escape
        except StoreError:
            continue
    for i in range(len(data)):
        with pytest.raises(StoreError):
            Session.from_json(data[:i])


@pytest.mark.parametrize(
    ("key", "value"),
    [("token_ids", [1.5]), ("token_ids", "abc"), ("messages", [{}]), ("num_sinks", "4"),
     ("name", "../x"), ("block", True), ("extra", 1)],
)  # fmt: skip
def test_a_manifest_with_other_values_is_refused(key: str, value: Any) -> None:
    from edgecortex.store.sessions import _digest

    values = json.loads(session().to_json())
    del values["digest"]
    values[key] = value
    with pytest.raises(StoreError):
        Session.from_json(json.dumps({"digest": _digest(values), **values}).encode())


def test_a_damaged_manifest_is_listed_and_can_be_removed(store: PersistentKVCache) -> None:
    kept(store, session())
    (store.sessions.folder / "bob.json").write_text("{")
    with pytest.raises(StoreError, match="session rm bob"):
        store.sessions.load("bob")
    assert "error" in store.sessions.summary("bob")
    assert store.verify_session("bob")["error"]
    store.sessions.remove("bob")
    assert store.sessions.names() == []


def test_what_a_session_holds_stays_and_the_rest_goes(store: PersistentKVCache) -> None:
    kept(store, session("bob", seed=1))
    store.put((e, lambda: {"x": np.ones(100)}) for e in session("other", seed=2).entries())
    store.shrink(0)
    assert stored(store, "bob") == 199
    assert {t.kind: t.num_entries for t in store.index.totals()} == {
        "block": 3,
        "tail": 1,
        "window": 1,
    }
    store.sessions.remove("bob")
    store.shrink(0)
    assert store.index.totals() == []


def test_a_later_save_lets_go_of_what_only_the_earlier_one_held(store: PersistentKVCache) -> None:
    early = kept(store, session())
    ids = [*early.token_ids, *range(100)]
    late = kept(store, replace(early, token_ids=ids, num_kv_tokens=299))
    store.shrink(0)
    assert stored(store, "bob") == 299
    gone = {e.file_name for e in early.entries()} - {e.file_name for e in late.entries()}
    assert {path.name for path in store.blocks.iterdir()} == {e.file_name for e in late.entries()}
    assert len(gone) == 2  # its tail, and the window of its last block


def test_a_copy_shares_and_outlives(store: PersistentKVCache) -> None:
    made = kept(store, session())
    before = store.index.nbytes()
    store.sessions.copy("bob", "carol")
    store.sessions.remove("bob")
    store.shrink(0)
    assert store.index.nbytes() == before
    assert replace(store.sessions.load("carol"), name="bob", created=1.5) == made


def test_a_lost_index_is_made_anew_with_its_pins(store: PersistentKVCache) -> None:
    kept(store, session())
    store.close()
    for path in store.folder.glob("index.sqlite*"):
        path.unlink()
    again = PersistentKVCache(store.folder)
    again.shrink(0)
    assert stored(again, "bob") == 199
    again.close()


def test_pins_without_a_session_go(store: PersistentKVCache) -> None:
    made = kept(store, session())
    (store.sessions.folder / "bob.json").unlink()
    with store.sessions.locked("bob"):
        store.sessions.unpin_lost()
        assert store.shrink(0) == 0  # it may be about to be written
    store.sessions.unpin_lost()
    assert store.shrink(0) > 0
    assert not any(store.path_of(entry).exists() for entry in made.entries())


def hold(folder: Path, ready: Any, end: Any) -> None:
    store = PersistentKVCache(folder)
    with store.sessions.locked("bob"):
        ready.set()
        end.wait(30)


def test_one_process_at_a_time_has_a_session(store: PersistentKVCache) -> None:
    spawning = multiprocessing.get_context("spawn")
    ready, end = spawning.Event(), spawning.Event()
    other = spawning.Process(target=hold, args=(store.folder, ready, end))
    other.start()
    try:
        assert ready.wait(30)
        with pytest.raises(StoreError, match="in use"), store.sessions.locked("bob"):
            pass
        with store.sessions.locked("alice"):
            pass
    finally:
        other.kill()  # and with it goes its lock
        other.join()
    with store.sessions.locked("bob"):
        pass


# One file.


def test_a_file_takes_a_session_to_another_store(store: PersistentKVCache, tmp_path: Path) -> None:
    made = kept(store, session())
    file = tmp_path / "bob.safetensors"
    out = portable.export(store, "bob", file)
    assert (out.num_entries, out.num_missing, out.nbytes) == (5, 0, file.stat().st_size)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert set(safetensors.numpy.load_file(file)) == {e.file_name for e in made.entries()}
    other = PersistentKVCache(tmp_path / "other")
    moved = portable.import_file(other, file)
    assert (moved.session, moved.num_missing) == (made, 0)
    assert stored(other, "bob") == 199
    other.shrink(0)
    assert stored(other, "bob") == 199
    with pytest.raises(StoreError, match="already"):
        portable.import_file(other, file)
    assert portable.import_file(other, file, "carol").session.name == "carol"
    other.close()


def test_what_is_imported_fills_no_more_than_is_pinned(
    store: PersistentKVCache, tmp_path: Path
) -> None:
    """A store that is full already keeps it all the same, as it keeps what an agent saves."""
    kept(store, session())
    portable.export(store, "bob", tmp_path / "file")
    full = PersistentKVCache(tmp_path / "other", max_bytes=0)
    assert portable.import_file(full, tmp_path / "file").num_missing == 0
    assert stored(full, "bob") == 199
    full.close()


def test_what_is_there_is_not_written_over(store: PersistentKVCache, tmp_path: Path) -> None:
    kept(store, session())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="exists"):
        portable.export(store, "bob", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(StoreError, match="cannot write"):
        portable.export(store, "bob", tmp_path / "no" / "file")


def test_damaged_entries_are_left_out(store: PersistentKVCache, tmp_path: Path) -> None:
    made = kept(store, session(num_windows=0))
    path = store.path_of(made.entries()[1])
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    out = portable.export(store, "bob", tmp_path / "file")
    assert (out.num_entries, out.num_missing) == (4, 1)
    tensors = safetensors.numpy.load_file(tmp_path / "file")
    third = made.entries()[2].file_name
    tensors[third][-3] ^= 4
    manifest = {"manifest": made.to_json().decode()}
    safetensors.numpy.save_file(tensors, tmp_path / "worse", manifest)
    other = PersistentKVCache(tmp_path / "other")
    assert portable.import_file(other, tmp_path / "worse").num_missing == 2
    assert stored(other, "bob") == 68
    other.close()


@pytest.mark.parametrize("data", [b"", b"hello", b"\0" * 100, b"\xff" * 100])
def test_any_other_file_is_refused(data: bytes, store: PersistentKVCache, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(StoreError, match="not an exported session"):
        portable.import_file(store, tmp_path / "file")
    with pytest.raises(StoreError, match="not an exported session"):
        portable.import_file(store, tmp_path / "missing")
    assert store.sessions.names() == []


def test_a_file_cannot_name_what_it_brings(store: PersistentKVCache, tmp_path: Path) -> None:
    made = session()
    tensors = {"../../evil": np.zeros(8, np.uint8)}
    safetensors.numpy.save_file(tensors, tmp_path / "file", {"manifest": made.to_json().decode()})
    assert portable.import_file(store, tmp_path / "file").num_missing == 5
    assert not list(tmp_path.rglob("*evil*"))


def test_a_file_without_a_manifest_says_so(store: PersistentKVCache, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({"x": np.ones(4)}, file)
    with pytest.raises(StoreError, match=r"weights\.safetensors is not an exported .* manifest"):
        portable.import_file(store, file)


def test_a_name_in_use_is_not_imported(store: PersistentKVCache, tmp_path: Path) -> None:
    kept(store, session())
    portable.export(store, "bob", tmp_path / "file")
    with (
        store.sessions.locked("carol"),
        pytest.raises(StoreError, match="'carol' is in use by another process"),
    ):
        portable.import_file(store, tmp_path / "file", "carol")
    assert store.sessions.names() == ["bob"]


@pytest.mark.parametrize("path", ["file/x", "x" * 300])
def test_an_export_that_cannot_be_written(
    store: PersistentKVCache, tmp_path: Path, path: str
) -> None:
    kept(store, session())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="cannot write"):
        portable.export(store, "bob", tmp_path / path)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_lock_that_cannot_be_made(store: PersistentKVCache) -> None:
    (store.folder / "locks").rmdir()
    with pytest.raises(StoreError, match="cannot lock session 'bob'"), store.sessions.locked("bob"):
        pass
