"""The model folder: one sub-folder per model, complete or not there at all."""

import errno
import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgecortex.errors import ModelError
from edgecortex.paths import models_dir

Progress = Callable[[str, int, int], None]
"""Called as `progress(step, done, total)`; bytes where a step can count them."""

_POLL_S = 0.2
_HASH_CHUNK = 1 << 22


def folder_of(name: str) -> Path:
    """Where the model called `name` lies once it is complete."""
    return models_dir() / name.replace("/", "--")


def build(name: str, num_bytes: int, fill: Callable[[Path], None]) -> Path:
    """The folder of the model `name`; if it is not there, `fill` is given an empty one to fill.

    Whatever stops `fill`, no half-made model is left: its folder is removed here, or after a
    crash by the next call. Of two processes that want the same model, one waits for the other.

    Args:
        num_bytes: the room on disk that `fill` needs at its worst.

    Raises:
        ModelError: not enough room on the disk, or the folder cannot be written.
    """
    target = folder_of(name)
    try:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(target.parent)
            with _locked(target):
                if not target.exists():
                    _fill_and_rename(target, num_bytes, fill)
    except OSError as error:
        raise _disk_error(error, target.parent) from error
    return target


def remove(folder: Path) -> None:
    """Removes a model's folder; to others it is gone at once or not at all.

    Raises:
        ModelError: it cannot be removed.
    """
    try:
        with _locked(folder):
            gone = _partial(folder)
            folder.rename(gone)
            shutil.rmtree(gone)
    except OSError as error:
        raise _disk_error(error, folder.parent) from error


def _fill_and_rename(target: Path, num_bytes: int, fill: Callable[[Path], None]) -> None:
    check_room(target.parent, num_bytes)
    folder = _partial(target)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        fill(folder)
        _sync(folder)
        folder.rename(target)
        _fsync(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_room(folder: Path, num_bytes: int) -> None:
    """
    Raises:
        ModelError: the disk of `folder` has less than `num_bytes` free.
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise ModelError(
            f"not enough room in {folder}: expected {num_bytes / 1e6:,.0f} MB free, got "
            f"{free / 1e6:,.0f} MB; free some, or set EDGECORTEX_HOME to another disk"
        )


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


@contextmanager
def _locked(target: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds the lock of a model, and so do programs that are started in the block without
    `close_fds`; the kernel gives it back when the last of them dies."""
    lock = target.with_name(f".{target.name}.lock")
    with lock.open("w") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def _remove_stale(parent: Path) -> None:
    """Removes what dead processes have left. Whoever is alive holds the lock of its model."""
    for folder in parent.glob(".*.partial"):
        target = folder.with_name(folder.name[1 : -len(".partial")])
        with _locked(target, wait=False) as free:
            if free:
                shutil.rmtree(folder, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_error(error: OSError, folder: Path) -> ModelError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelError(
            f"the disk of {folder} is full; free some room, or set EDGECORTEX_HOME to another disk"
        )
    return ModelError(f"cannot write the model folder {folder}: {error}")


def sha256_of(path: Path, progress: Progress) -> str:
    """Hex digest of a file's content."""
    digest, total = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
            progress("verify", file.tell(), total)
    return digest.hexdigest()


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; what vanishes meanwhile counts as none."""
    total = 0
    for parent, _, names in os.walk(folder):  # unlike `rglob` it bears folders that vanish
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


@contextmanager
def watching(folder: Path, step: str, total: int, progress: Progress) -> Iterator[None]:
    """Reports how a folder grows while the block fills it by means that do not say so."""
    stop, start = threading.Event(), size_of(folder)

    def watch() -> None:
        while not stop.wait(_POLL_S):
            progress(step, min(size_of(folder) - start, total), total)

    thread = threading.Thread(target=watch, daemon=True)
    progress(step, 0, total)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    progress(step, total, total)
