"""Checks that need a process of their own: `python -m tests.store.disk CHECK FOLDER`."""

import contextlib
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from edgecortex.errors import StoreError
from edgecortex.store.cache import PersistentKVCache
from edgecortex.store.entry import Entry
from tests.store.blocks import (
    CHAIN,
    check_agreement,
    check_reads,
    entries_of,
    opened,
    stored,
    tokens,
)
from tests.store.writer import session_of

SCALE = 100  # 16 kB of floats in each entry
NOBODY = 65534
REFUSED = r"(Permission denied|readonly database|unable to open).*permissions.*--no-cache"
FIRST = entries_of(tokens(0, 30))


def check_untouched(store: PersistentKVCache) -> None:
    assert os.listdir(store.temporary) == []
    assert store.match(CHAIN, tokens(0, 30), 0).entries == FIRST
    check_reads(store, FIRST, SCALE)


def check_usable(store: PersistentKVCache, entries: list[Entry]) -> None:
    store.put(stored(entries, SCALE))
    check_reads(store, [*FIRST, *entries], SCALE)
    check_agreement(store)
    assert store.verify().damaged == []
    assert os.listdir(store.quarantine) == os.listdir(store.temporary) == []


def full_disk(folder: Path) -> None:
    """A disk with ever more room left, from none to enough; prints how often it was too little."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], check=True)
    num_errors = 0
    with opened(folder / "store") as store:
        store.put(stored(FIRST, SCALE))
        for num_free in range(0, 30):
            entries = entries_of(tokens(1 + num_free, 30))
            fill(folder / "filler", num_free * 4096)
            problem = problem_of(partial(store.put, stored(entries, SCALE)))
            assert problem is None or is_clear(problem), problem
            num_errors += problem is not None
            check_untouched(store)
            (folder / "filler").unlink()
            check_usable(store, entries)
            store.index.pin("first", [(e.id, e.kind) for e in FIRST])
            store.shrink(0)
    print(num_errors)


def full_disk_of_sessions(folder: Path) -> None:
    """As `full_disk`, while a session is written in place of another."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], check=True)
    num_errors = 0
    with opened(folder / "store") as store:
        old = session_of(0, 0)
        store.put(stored(old.entries()))
        store.sessions.write(old)
        for num_free in range(0, 16):
            new = replace(old, rendered=f"{num_free} " * 10_000)
            fill(folder / "filler", num_free * 4096)
            problem = problem_of(partial(store.sessions.write, new))
            assert problem is None or "No space left" in problem or "disk is full" in problem
            num_errors += problem is not None
            assert store.sessions.load("s") in ([old, new] if problem else [new])
            assert os.listdir(store.temporary) == []
            (folder / "filler").unlink()
            store.sessions.write(new)
            assert store.verify_session("s")["num_stored"] == len(old.token_ids)
            old = new
    print(num_errors)


def problem_of(step: Callable[[], object]) -> str | None:
    try:
        step()
    except StoreError as error:
        return str(error)
    return None


def is_clear(text: str) -> bool:
    return "--no-cache" in text and ("No space left" in text or "disk is full" in text)


def fill(path: Path, num_free: int) -> None:
    """Takes all room of a disk but so many bytes."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)) == 4096:
            pass
    os.truncate(path, path.stat().st_size - num_free)


def limited_files(folder: Path) -> None:
    """No file may become as large as a block."""
    entries = entries_of(tokens(1, 30))
    with opened(folder) as store:
        store.put(stored(FIRST, SCALE))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for limit in (0, 1000, 4096, 16000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            with pytest.raises(StoreError, match=r"cannot write the store .*--no-cache"):
                store.put(stored(entries, SCALE))
            check_untouched(store)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        check_usable(store, entries)


def read_only(_: Path) -> None:
    """In a folder of its own, as a root that becomes nobody may not look into the other."""
    if os.geteuid() == 0:  # who may write anywhere
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "store"
        with opened(folder) as store:
            store.put(stored(FIRST, SCALE))
        with without_writing(Path(name)):
            with pytest.raises(StoreError, match=r"Permission denied; .*--no-cache"):
                PersistentKVCache(Path(name) / "new")
            check_read_only(folder)
        with opened(folder) as store:
            check_usable(store, entries_of(tokens(2, 30)))


def check_read_only(folder: Path) -> None:
    with opened(folder) as store:
        for step in (
            lambda: store.put(stored(entries_of(tokens(1, 30)), SCALE)),
            lambda: store.match(CHAIN, tokens(0, 30), 0),
            store.tidy,
            store.verify,
            store.stats,
            lambda: store.shrink(0),
        ):
            with pytest.raises(StoreError, match=REFUSED):
                step()
        check_reads(store, FIRST, SCALE)


@contextlib.contextmanager
def without_writing(folder: Path) -> Iterator[None]:
    """Takes the right to write from all there is in a folder."""
    paths = [folder, *folder.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths}
    for path in reversed(paths):
        path.chmod(modes[path] & 0o500)
    try:
        yield
    finally:
        for path in paths:
            path.chmod(modes[path])


if __name__ == "__main__":
    checks = full_disk, full_disk_of_sessions, limited_files, read_only
    {check.__name__: check for check in checks}[sys.argv[1]](Path(sys.argv[2]))
