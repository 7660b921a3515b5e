"""A session as one file, to be taken to another machine.

It is safetensors: every stored file is a tensor of bytes under its own name, and the metadata
hold the session's manifest.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from edgecortex.errors import StoreError
from edgecortex.store import files
from edgecortex.store.cache import PersistentKVCache
from edgecortex.store.entry import Arrays, DamagedError, Entry, decode
from edgecortex.store.sessions import Session

_FORMAT = "edgecortex-session"


@dataclass(frozen=True)
class Moved:
    """What went into a file or came out of it. `num_missing` of the session's `num_entries`
    entries did not: their tokens are read again."""

    session: Session
    num_entries: int
    num_missing: int
    nbytes: int


def export(store: PersistentKVCache, name: str, path: Path) -> Moved:
    """Writes a session to a new file.

    Raises:
        StoreError: no such session, or the file exists or cannot be written.
    """
    session = store.sessions.load(name)
    entries = session.entries()
    tensors = {entry.file_name: data for entry in entries if (data := _whole_file(store, entry))}
    arrays = {name: np.frombuffer(data, np.uint8) for name, data in tensors.items()}
    metadata = {"format": _FORMAT, "manifest": session.to_json().decode()}
    data = safetensors.numpy.save(arrays, metadata)
    try:
        with path.open("xb") as file:
            path.chmod(0o600)
            file.write(data)
            files.sync(file.fileno())
    except FileExistsError as error:
        raise StoreError(f"{path} exists and is left alone; choose another name") from error
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
    return Moved(session, len(entries), len(entries) - len(tensors), len(data))


def _whole_file(store: PersistentKVCache, entry: Entry) -> bytes | None:
    """The bytes of an entry's file, if it is there, whole and what its name says."""
    try:
        data = store.path_of(entry).read_bytes()
        return data if decode(data)[0] == entry else None
    except (OSError, DamagedError):
        return None


def import_file(store: PersistentKVCache, path: Path, name: str | None = None) -> Moved:
    """Takes a session out of a file, as `name` if that is given. Damaged entries are left out.

    Raises:
        StoreError: it is no such file, its manifest is damaged, or the name is taken.
    """
    try:
        with safetensors.safe_open(str(path), framework="np") as file:
            session = _manifest(path, file)
            session = replace(session, name=name or session.name)
            with store.sessions.reserved(session.name):
                return _take(store, file, session)
    except (OSError, safetensors.SafetensorError) as error:
        raise StoreError(f"{path} is not an exported session: {error}") from error


def _manifest(path: Path, file: Any) -> Session:
    text = (file.metadata() or {}).get("manifest")
    if text is None:
        raise StoreError(
            f"{path} is not an exported session: expected a file of `edgecortex session export`, "
            "got one without a manifest"
        )
    try:
        return Session.from_json(text.encode())
    except StoreError as error:
        raise StoreError(f"the manifest in {path} cannot be used: {error}") from error


def _take(store: PersistentKVCache, file: Any, session: Session) -> Moved:
    """Stores a session and what is whole of it, while its name is locked."""
    wanted = {entry.file_name: entry for entry in session.entries()}
    whole = list(_whole(file, wanted))
    store.index.pin(session.name, store.sessions.keys(session))  # it may fill the store's budget
    nbytes = store.put((entry, partial(_arrays, file, entry)) for entry in whole)
    store.sessions.write(session, partly=True)
    return Moved(session, len(wanted), len(wanted) - len(whole), nbytes)


def _whole(file: Any, wanted: dict[str, Entry]) -> Iterator[Entry]:
    """Those of the wanted entries that are in the file and undamaged."""
    for key in set(file.keys()) & set(wanted):
        with contextlib.suppress(DamagedError):
            if decode(file.get_tensor(key).tobytes())[0] == wanted[key]:
                yield wanted[key]


def _arrays(file: Any, entry: Entry) -> Arrays:
    return decode(file.get_tensor(entry.file_name).tobytes())[1]
