"""Files that are there whole or not at all, and are the user's alone."""

import contextlib
import fcntl
import os
import re
import threading
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path

_TEMPORARY = re.compile(r"([0-9]+)-([0-9a-f]+)-[0-9]+")
_buffers = threading.local()
_numbers = iter(range(1 << 62))
_token = os.urandom(8).hex()  # a process id alone may come again, in a container at every start


def make_folder(path: Path) -> None:
    """A folder that only its owner can look into."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def write_temporary(folder: Path, data: "bytes | bytearray") -> Path:
    """A durable file of a name of its own, to be moved to its place. It is gone if this fails."""
    path = folder / f"{os.getpid()}-{_token}-{next(_numbers)}"
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
    written = write_temporary(temporary, data)
    try:
        os.replace(written, path)
    except BaseException:
        written.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def removing(paths: Iterable[Path]) -> Iterator[None]:
    """Removes what is still there of these files when the block ends."""
    try:
        yield
    finally:
        for path in paths:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def size(path: Path) -> int | None:
    """A file's bytes; None where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


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
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not hasattr(_buffers, "buffer") or len(_buffers.buffer) < size:
            _buffers.buffer = bytearray(size)
        view, filled = memoryview(_buffers.buffer)[:size], 0
        while filled < size and (count := file.readinto(view[filled:])):
            filled += count
    return view[:filled]


def opened(path: Path) -> FileIO:
    """A file to read."""
    return FileIO(path)


def read_ahead(path: Path) -> None:
    """Has the system read a file before it is needed. A Mac cannot be asked to: there this reads
    it, for its page cache."""
    with contextlib.suppress(OSError), FileIO(path) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        else:
            file.readall()


def is_temporary(path: Path) -> bool:
    """Whether somebody writes it, or did."""
    return _TEMPORARY.fullmatch(path.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files of processes that are no more."""
    for path in folder.iterdir():
        if (found := _TEMPORARY.fullmatch(path.name)) and not _is_writing(*found.groups()):
            path.unlink(missing_ok=True)


def _is_writing(pid: str, token: str) -> bool:
    if int(pid) == os.getpid():
        return token == _token
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
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
