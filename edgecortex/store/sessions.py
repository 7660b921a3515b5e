"""Saved agents: who said what, the token ids, and which blocks hold their KV."""

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from edgecortex.errors import StoreError
from edgecortex.store import files
from edgecortex.store.entry import VERSION, Chain, Entry, file_name_of, thought, window_of
from edgecortex.store.found import without
from edgecortex.store.index import Index, Key

Moves = Iterator[Callable[[], None]]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TYPES: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "model": str,
    "fingerprint": str,
    "kv_format": str,
    "root": str,
    "rendered": str,
    "system": (str, type(None)),
    "messages": list,
    "token_ids": list,
    "thoughts": list,
    **dict.fromkeys(("created", "updated"), (int, float)),
}
_RANGES = {  # first and past the last
    **dict.fromkeys(("num_sinks", "num_windows"), (0, 1 << 31)),
    "block": (1, 1 << 31),
    **dict.fromkeys(("created", "updated"), (0, 1e11)),
}


@dataclass(frozen=True)
class Session:
    """A saved agent.

    `token_ids` are those fed and generated so far, of which the first `num_kv_tokens` have
    their KV stored, in the blocks of the chain (`root`, `num_sinks`, `block`), the newest
    `num_windows` of them with windows, and a tail. `rendered` is the text they stand for.
    `created` and `updated` are seconds since 1970. `thoughts` are what was injected into it: each
    has an `id`, and `at`, `start` and `num_tokens` that say where.

    Raises:
        StoreError: a value of another type or out of its range, or a name that is not one.
    """

    name: str
    model: str
    fingerprint: str
    kv_format: str
    root: str
    num_sinks: int
    block: int
    num_windows: int
    num_kv_tokens: int
    system: str | None
    messages: list[dict[str, str]]
    token_ids: list[int]
    rendered: str
    created: float
    updated: float
    thoughts: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_name(self.name)
        for each in fields(self):
            value, expected = getattr(self, each.name), _TYPES.get(each.name, int)
            if not isinstance(value, expected) or isinstance(value, bool):
                raise StoreError(f"session {self.name!r}: {each.name} cannot be {value!r:.60}")
        self._check_ranges()
        told = all(
            isinstance(m, dict) and all(isinstance(m.get(k), str) for k in ("role", "content"))
            for m in self.messages
        )
        if not told:
            raise StoreError(f"session {self.name!r}: its messages are not such")
        for i in self.token_ids:
            if type(i) is not int or not 0 <= i < 1 << 31:
                raise StoreError(
                    f"session {self.name!r}: token ids must be integers from 0 to 2**31 - 1, "
                    f"got {i!r:.60}"
                )
        if not all(_is_thought(kept) for kept in self.thoughts):
            raise StoreError(f"session {self.name!r}: its thoughts are not such")

    def _check_ranges(self) -> None:
        ranges = {**_RANGES, "num_kv_tokens": (0, len(self.token_ids) + 1)}
        for name, (first, stop) in ranges.items():
            if not first <= (value := getattr(self, name)) < stop:
                raise StoreError(
                    f"session {self.name!r}: {name} must be at least {first} and less than "
                    f"{stop:.0f}, got {value!r:.60}"
                )

    def entries(self) -> list[Entry]:
        """What its KV is stored in."""
        chain, ids = self.chain, self.token_ids[: self.num_kv_tokens]
        blocks = chain.blocks(ids)
        newest = blocks[max(0, len(blocks) - self.num_windows) :]
        windows = [window_of(block) for block in newest] if self.num_windows else []
        rest = ids[chain.stop(len(blocks)) :]
        parent = blocks[-1].id if blocks else chain.root
        tails = [chain.tail(parent, rest, chain.stop(len(blocks)))] if rest else []
        thoughts = [thought(kept["id"], self.root) for kept in self.thoughts]
        return [*blocks, *windows, *tails, *thoughts]

    @property
    def chain(self) -> Chain:
        marks = tuple(sorted((kept["at"], kept["id"]) for kept in self.thoughts))
        return Chain(self.root, self.num_sinks, self.block, marks)

    def to_json(self) -> bytes:
        """The manifest, with a digest of itself."""
        values = {"version": VERSION, **asdict(self)}
        return json.dumps({"digest": _digest(values), **values}, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Session":
        """
        Raises:
            StoreError: it is damaged, or of another version.
        """
        try:
            values: dict[str, Any] = json.loads(data)
            digest, version = values.pop("digest"), values["version"]
            if digest != _digest(values):
                raise StoreError("its digest does not match")
            del values["version"]
            if version != VERSION:
                raise StoreError(f"it has format {version!r}, and this EdgeCortex knows {VERSION}")
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoreError(f"it is not a session: {error!r}") from error


def _is_thought(kept: object) -> bool:
    """Whether it can be found and put back. Its id is a file's name."""
    return (
        isinstance(kept, dict)
        and re.fullmatch(r"[0-9a-f]{32}", str(kept.get("id"))) is not None
        and all(type(kept.get(key)) is int for key in ("at", "start", "num_tokens"))
    )


def check_name(name: object) -> str:
    """
    Raises:
        StoreError: no name for a session: it could not be a file's everywhere.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise StoreError(
            f"{name!r:.80} cannot name a session: expected 1 to 64 letters, digits, dots, dashes "
            "and underlines, with a letter or digit first"
        )
    return name


class Sessions:
    """The sessions of a store, a manifest each, and what they pin in its index."""

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder, self.index = folder / "sessions", index
        self._blocks = folder / "blocks"
        self._temporary, self._locks = folder / "temporary", folder / "locks"
        for path in (self.folder, self._locks):
            files.make_folder(path)

    def names(self) -> list[str]:
        """All of them, whether they can be read or not."""
        return sorted(path.stem for path in self.folder.glob("*.json"))

    def load(self, name: str) -> Session:
        """
        Raises:
            StoreError: there is none of that name, or its manifest is damaged.
        """
        check_name(name)
        if name not in self.names():
            known = ", ".join(self.names()) or "none"
            raise StoreError(f"no session {name!r}; there are: {known}")
        try:
            return self._read(name)
        except (OSError, StoreError) as error:
            raise StoreError(
                f"session {name!r} cannot be read: {error}; "
                f"`edgecortex session rm {name}` removes it"
            ) from error

    def _read(self, name: str) -> Session:
        """The file's name is the session's: one that was just renamed may say the old one."""
        return replace(Session.from_json(self._path(name).read_bytes()), name=name)

    def summary(self, name: str) -> dict[str, Any]:
        """What a list shows of a session; of a damaged one its name and the `error`."""
        try:
            session = self.load(name)
        except StoreError as error:
            return {"name": name, "error": str(error)}
        return {
            "name": name,
            "model": session.model,
            "kv_format": session.kv_format,
            "num_messages": len(session.messages),
            "num_tokens": len(session.token_ids),
            "nbytes": self.index.size_of(self.keys(session)),
            "created": session.created,
            "updated": session.updated,
        }

    def write(self, session: Session, partly: bool = False) -> None:
        """Makes a session durable, in place of an older one of its name, and pins its blocks. If
        some of its KV is not there any more it is kept without: that is read when it goes on.

        Args:
            partly: its KV need not all be there.

        Raises:
            StoreError: it cannot be written, or its name differs from another's by case alone.
        """
        other, keys = self._like(session.name), self.keys(session)
        if other not in (None, session.name):
            raise StoreError(f"there is a session {other!r}; choose a name that differs in more")
        self.index.pin(session.name, keys)
        with self._reporting("write", session.name):
            written = files.write_temporary(self._temporary, session.to_json())
            moves = iter([lambda: os.replace(written, self._path(session.name))])
            with files.removing([written]):
                gone = self.index.atomically(lambda: self._place(session.name, keys, moves, partly))
            files.sync_folder(self.folder)
        if gone:
            self.index.remove(gone)  # or the next save would count on them again
            self.write(without(session, gone), partly=True)

    def _place(self, name: str, keys: list[Key], moves: Moves, partly: bool) -> list[Key]:
        """Moves a manifest to its place, once, and pins what it needs; or gives what is gone of
        that. Evicting and unpinning are atomic too, so what was there stays."""
        gone = [] if partly else [key for key in keys if not self._block(key).exists()]
        if not gone:
            for move in moves:
                move()
            self.index.pin(name, keys, only=True)
        return gone

    def keys(self, session: Session) -> list[Key]:
        """Of the files that hold its KV."""
        return [(self._stored_id(entry), entry.kind) for entry in session.entries()]

    def _stored_id(self, entry: Entry) -> str:
        """Its id, or that of a stored tail which begins with its tokens."""
        if entry.kind != "tail" or self._block((entry.id, entry.kind)).exists():
            return entry.id
        for id, ids in self.index.tails(entry.parent):
            if (
                ids[: len(entry.token_ids)] == entry.token_ids
                and self._block((id, "tail")).exists()
            ):
                return id
        return entry.id

    def copy(self, name: str, new: str) -> Session:
        """A second session with the same past, at no copy of KV.

        Raises:
            StoreError: no such session, or the new name is taken or no name.
        """
        session = replace(self.load(name), name=self.check_free(new), created=time.time())
        self.write(session, partly=True)
        return session

    def rename(self, name: str, new: str) -> None:
        """Gives a session another name, which may differ in case alone.

        Raises:
            StoreError: no such session, it cannot be written, or the new name is taken or no name.
        """
        session = self.load(name)
        if new == name or self._like(check_name(new)) != name:
            self.check_free(new)
        keys, renamed = self.keys(session), replace(session, name=new).to_json()
        self.index.pin(new, keys, only=True)
        with self._reporting("rename", name):
            files.replace_durably(self._path(name), renamed, self._temporary)
            os.replace(self._path(name), self._path(new))
            files.sync_folder(self.folder)
        self.index.pin(name, [], only=True)

    def check_free(self, name: str) -> str:
        """
        Raises:
            StoreError: the name is taken, or no name.
        """
        if other := self._like(check_name(name)):
            raise StoreError(f"there is a session {other!r} already; choose another name")
        return name

    def _like(self, name: str) -> str | None:
        """The session of this name, however its letters are written."""
        return next((n for n in self.names() if n.lower() == name.lower()), None)

    def remove(self, name: str) -> None:
        """Forgets a session; its blocks stay until room is needed.

        Raises:
            StoreError: no such session, or it cannot be removed.
        """
        if name not in self.names():
            self.load(name)
        with self._reporting("remove", name):
            self._path(name).unlink(missing_ok=True)
            files.sync_folder(self.folder)
        self.index.pin(name, [], only=True)

    @contextlib.contextmanager
    def locked(self, *names: str) -> Iterator[None]:
        """Keeps other processes from these sessions while the block runs.

        Raises:
            StoreError: one of them has it, or there is no locking it.
        """
        with contextlib.ExitStack() as stack:
            for name in {check_name(name).lower(): name for name in names}.values():
                path = self._locks / f"{name.lower()}.lock"
                with self._reporting("lock", name):
                    is_free = stack.enter_context(files.locked(path))
                if not is_free:
                    raise StoreError(f"session {name!r} is in use by another process; end it first")
            yield

    @contextlib.contextmanager
    def reserved(self, name: str) -> Iterator[None]:
        """Keeps a free name from other processes while the block runs.

        Raises:
            StoreError: it is taken, in use or no name.
        """
        self.check_free(name)  # first: the lock of one that is taken may be this process's own
        with self.locked(name):
            self.check_free(name)  # another process may have begun it meanwhile
            yield

    def unpin_lost(self) -> None:
        """Lets go of what was pinned for sessions that are not there, nor about to be: of none
        while anybody writes files, which may be such a session's."""
        if any(map(files.is_temporary, self._temporary.iterdir())):
            return
        for name in self.index.pinned() - set(self.names()):
            with contextlib.suppress(StoreError), self.locked(name):
                self.index.atomically(partial(self._unpin_if_lost, name))

    def _unpin_if_lost(self, name: str) -> None:
        if name not in self.names():
            self.index.pin(name, [], only=True)

    def pin_all(self) -> None:
        """Tells the index what sessions hold, if it is new or has lost that.

        Raises:
            StoreError: the index cannot be written.
        """
        for name in self.names():
            self.index.atomically(partial(self._pin_again, name))

    def _pin_again(self, name: str) -> None:
        """At once, so that a save that ends meanwhile lets go of what only the older one held."""
        try:
            session = self._read(name)
        except (OSError, StoreError):  # a damaged one holds nothing
            return
        self.index.pin(name, self.keys(session))

    @contextlib.contextmanager
    def _reporting(self, action: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot {action} session {name!r}: {error.strerror}; make room or give "
                f"{self.folder.parent} permissions"
            ) from error

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _block(self, key: Key) -> Path:
        return self._blocks / file_name_of(*key)


def _digest(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
