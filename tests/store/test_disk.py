"""Disks that are full or cannot be written, and who may look into a store."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edgecortex.errors import StoreError
from edgecortex.store import files
from edgecortex.store.cache import PersistentKVCache
from tests.store.blocks import (
    CHAIN,
    check_agreement,
    check_reads,
    entries_of,
    opened,
    stored,
    tokens,
)

ROOT = Path(__file__).parents[2]
IN_A_NAMESPACE = ["unshare", "--map-root-user", "--mount"]


@pytest.mark.parametrize("asked", [True, False])
def test_files_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool) -> None:
    """By asking the system, or, where it cannot be asked, by reading them."""
    ahead: list[int] = []

    class Watched(files.FileIO):
        def readall(self) -> bytes:
            ahead.append(os.fstat(self.fileno()).st_ino)
            return super().readall()

    def advise(fd: int, *_: int) -> None:
        ahead.append(os.fstat(fd).st_ino)

    monkeypatch.setattr(files, "FileIO", Watched)
    if asked:
        monkeypatch.setattr(os, "posix_fadvise", advise, raising=False)
        monkeypatch.setattr(os, "POSIX_FADV_WILLNEED", 3, raising=False)
    else:
        monkeypatch.delattr(os, "posix_fadvise", raising=False)
    there, gone = entries_of(tokens(1, 40)), entries_of(tokens(2, 40))
    with opened(tmp_path / "store") as store:
        store.put(stored(there))
        store.read_ahead([*gone, *there])
        store._readers.shutdown()
        assert ahead == [store.path_of(entry).stat().st_ino for entry in there]


def run(what: str, folder: Path, before: tuple[str, ...] = ()) -> str:
    """Runs checks in a process of their own, and gives what they printed."""
    command = [*before, sys.executable, "-m", "tests.store.disk", what, str(folder)]
    env = {**os.environ, "EDGECORTEX_BLAS": "off", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def can_mount() -> bool:
    """Whether this user may mount a file system of a process's own."""
    try:
        command = [*IN_A_NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"]
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not can_mount(), reason="needs Linux and a namespace to mount a small disk in")
def test_a_full_disk_is_an_error_harms_nothing_and_passes(tmp_path: Path) -> None:
    num_errors = int(run("full_disk", tmp_path, tuple(IN_A_NAMESPACE)))
    assert num_errors > 10


@pytest.mark.skipif(not can_mount(), reason="needs Linux and a namespace to mount a small disk in")
def test_a_full_disk_leaves_a_session_as_it_was_or_is_to_be(tmp_path: Path) -> None:
    num_errors = int(run("full_disk_of_sessions", tmp_path, tuple(IN_A_NAMESPACE)))
    assert num_errors > 3


def test_a_limit_on_the_size_of_files_is_an_error_harms_nothing_and_passes(tmp_path: Path) -> None:
    run("limited_files", tmp_path)


def test_a_folder_that_cannot_be_written_is_an_error_that_says_so(tmp_path: Path) -> None:
    run("read_only", tmp_path)


def everything_in(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("version", [b"2\n", b"", b"\xff\xfe\0garbage", b"1.5", b"1" * 5000])
@pytest.mark.parametrize("is_new", [True, False])
def test_a_store_of_another_version_is_refused_and_not_touched(
    tmp_path: Path, version: bytes, is_new: bool
) -> None:
    if not is_new:
        with opened(tmp_path) as store:
            store.put(stored(entries_of(tokens(1, 30))))
    (tmp_path / "version").write_bytes(version)
    before = everything_in(tmp_path)
    with pytest.raises(StoreError, match=r"another version.*expected format 1, got.*--no-cache"):
        PersistentKVCache(tmp_path)
    assert everything_in(tmp_path) == before


def test_a_store_that_is_a_file_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("mine")
    with pytest.raises(StoreError, match=r"cannot use the store .*/store: .*--no-cache"):
        PersistentKVCache(tmp_path / "store")
    assert (tmp_path / "store").read_text() == "mine"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_can_read_any_of_it(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with opened(tmp_path / "above" / "store") as store:
            store.put(stored(entries_of(tokens(1, 30))))
            store.put(stored(damaged := entries_of(tokens(2, 12))))
            store.path_of(damaged[0]).write_bytes(b"damage")
            assert store.verify().damaged == [damaged[0].file_name]
            found = [store.folder, *store.folder.rglob("*")]
            modes = {path: mode(path) for path in found}
    finally:
        os.umask(before)
    names = {path.name for path in found}
    assert {"version", "index.sqlite", "index.sqlite-wal", "index.sqlite-shm"} <= names
    assert damaged[0].file_name in names
    assert modes == {path: 0o700 if path.is_dir() else 0o600 for path in found}


def test_a_file_of_a_temporary_name_that_is_taken_is_no_obstacle(tmp_path: Path) -> None:
    """A process that was killed may have had this one's id: in a container all do."""
    with opened(tmp_path) as store:
        for i in range(100):
            (store.temporary / f"{os.getpid()}-{i}").write_text("left")
            (store.temporary / f"{os.getpid()}-0123456789abcdef-{i}").write_text("left")
        entries = entries_of(tokens(1, 30))
        store.put(stored(entries))
        check_reads(store, entries)
        store.tidy()
        assert {path.name.count("-") for path in store.temporary.iterdir()} == {1}


def test_files_of_a_process_that_writes_are_not_tidied_away(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        written = store.temporary / f"{os.getppid()}-0123456789abcdef-0"
        written.write_text("still being written")
        store.tidy()
        assert written.exists()


def test_a_failure_to_make_arrays_leaves_nothing_behind(tmp_path: Path) -> None:
    entries = entries_of(tokens(1, 30))

    def fail() -> dict:
        raise RuntimeError("no arrays")

    with opened(tmp_path) as store:
        with pytest.raises(RuntimeError, match="no arrays"):
            store.put([*stored(entries[:2]), (entries[2], fail)])
        assert os.listdir(store.temporary) == os.listdir(store.blocks) == []
        check_agreement(store)
        assert store.put(stored(entries)) > 0
        assert store.put(stored(entries)) == 0
        assert store.match(CHAIN, tokens(1, 30), 0).num_tokens == 30
