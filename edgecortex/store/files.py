"""Files that are there whole or not at all, and are the user's alone."""

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

_buffers = threading.local()
_numbers = iter(range(1 << 62))


def make_folder(path: Path) -> None:
    """A folder that only its owner can look into."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def write_temporary(folder: Path, data: "bytes | bytearray") -> Path:
    """A durable file of a name of its own, to be moved to its place. It is gone if this fails."""
    path = folder / f"{os.getpid()}-{next(_numbers)}"
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            sync(fd)
        finally:
            os.close(fd)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def replace_durably(path: Path, data: bytes, temporary: Path) -> None:
    """Puts a file in place of another; a crash leaves the old one or the new one."""
    os.replace(write_temporary(temporary, data), path)
    sync_folder(path.parent)


def sync(fd: int) -> None:
    """Waits until a file is on the medium. On a Mac that takes more than `fsync`."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        with contextlib.suppress(OSError):  # not every file system has it
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
    os.fsync(fd)


def sync_folder(path: Path) -> None:
    """Makes renames in a folder durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        sync(fd)
    finally:
        os.close(fd)


def read_into_buffer(path: Path) -> memoryview:
    """A file's bytes in a buffer of this thread, good until its next call: fresh memory for each
    file would take longer than reading it."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if len(getattr(_buffers, "buffer", b"")) < size:
            _buffers.buffer = bytearray(size)
        view, filled = memoryview(_buffers.buffer)[:size], 0
        while filled < size and (count := file.readinto(view[filled:])):
            filled += count
    return view[:filled]


def will_need(path: Path) -> None:
    """Asks the system to read a file ahead, where it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(fd)


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files of processes that are no more."""
    for path in folder.iterdir():
        pid = path.name.partition("-")[0]
        if pid.isdigit() and int(pid) != os.getpid() and not _is_alive(int(pid)):
            path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Holds a lock file while the block runs; gives False if another process holds it."""
    fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)
