"""One file of the store: some tokens' KV with a name, a parent and a checksum.

A file is plain safetensors. Its metadata say what it is, its tensor `token_ids` whose KV it
holds, and `checksum` (XXH3, 128 bits) covers every byte of the file with its own digits taken
as zeros.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import safetensors.numpy
import xxhash

from edgecortex.errors import StoreError

VERSION = 1
KINDS = ("block", "window", "tail", "thought")
Arrays = Mapping[str, np.ndarray]

_NO_CHECKSUM = b"0" * 32
_CHECKSUM = b'"checksum":"'
_DTYPES = {"F32": "<f4", "F16": "<f2", "U32": "<u4", "I32": "<i4", "U16": "<u2"}


class DamagedError(StoreError):
    """A file is not what was written."""


def file_name_of(id: str, kind: str) -> str:
    return f"{id}.{kind}.safetensors"


@dataclass(frozen=True)
class Entry:
    """What a file holds. `id` names the tokens and all before them, so equal prefixes have equal
    ids; a `window` has its block's id, and that block as parent. `below` is the block that a tail
    builds on whose parent names something foreign too."""

    id: str
    kind: str
    parent: str
    root: str
    token_ids: tuple[int, ...]
    below: str = field(default="", compare=False)

    @property
    def file_name(self) -> str:
        return file_name_of(self.id, self.kind)


@dataclass(frozen=True)
class Chain:
    """Names for runs of tokens: `blake2b(parent id ‖ token ids)`, from a root that stands for
    a model and a KV format.

    The first block holds `num_sinks` tokens more than the others' `block`. `marks` say from which
    token on a context saw something foreign, and name it: they enter the first name past them,
    so that what has seen it is never taken for what has not.
    """

    root: str
    num_sinks: int
    block: int
    marks: tuple[tuple[int, str], ...] = ()

    @classmethod
    def of(cls, fingerprint: str, format: Mapping[str, Any]) -> "Chain":
        """The chain of a model and a format; `format` has `num_sinks` and `block` among it."""
        named = json.dumps([VERSION, fingerprint, dict(format)], sort_keys=True)
        return cls(_digest(b"root", named.encode()), format["num_sinks"], format["block"])

    def stop(self, num_blocks: int) -> int:
        """How many tokens the first `num_blocks` blocks hold."""
        return self.num_sinks + num_blocks * self.block if num_blocks else 0

    def blocks(self, token_ids: Sequence[int]) -> list[Entry]:
        """The complete blocks of these tokens, in order."""
        entries: list[Entry] = []
        parent = self.root
        for i in range(max(0, len(token_ids) - self.num_sinks) // self.block):
            ids = tuple(token_ids[self.stop(i) : self.stop(i + 1)])
            marks = self._marks_in(self.stop(i), self.stop(i + 1))
            name = self._named(parent, "block", ids, marks)
            entry = Entry(name, "block", parent, self.root, ids)
            entries.append(entry)
            parent = entry.id
        return entries

    def tail(self, parent: str, token_ids: Sequence[int], start: int) -> Entry:
        """The tokens after the last complete block, from number `start` on."""
        ids = tuple(token_ids)
        seen = self._tail_parent(parent, self._marks_in(start, start + len(ids)))
        below = parent if seen != parent else ""
        return Entry(self._named(seen, "tail", ids, ()), "tail", seen, self.root, ids, below)

    def tail_parents(self, parent: str, start: int, stop: int) -> list[tuple[str, int]]:
        """Under which parents a tail of tokens `start` to `stop` may lie, and how many of its
        tokens are then of use: what came before the last thing foreign is as good as ever."""
        marks = self._marks_in(start, stop)
        ends = [at for at, _ in marks] + [stop]
        return [(self._tail_parent(parent, marks[:i]), end - start) for i, end in enumerate(ends)]

    def _marks_in(self, start: int, stop: int) -> tuple[tuple[int, str], ...]:
        return tuple(mark for mark in self.marks if start <= mark[0] < stop)

    def _tail_parent(self, parent: str, marks: Sequence[tuple[int, str]]) -> str:
        return _digest(b"seen", parent.encode(), json.dumps(marks).encode()) if marks else parent

    def _named(
        self, parent: str, kind: str, token_ids: Sequence[int], marks: Sequence[tuple[int, str]]
    ) -> str:
        foreign = [json.dumps(marks).encode()] if marks else []
        tokens = np.array(token_ids, "<i4").tobytes()
        return _digest(kind.encode(), parent.encode(), tokens, *foreign)


def window_of(block: Entry) -> Entry:
    """The part of a block that layers with a sliding window hold."""
    return Entry(block.id, "window", block.id, block.root, block.token_ids)


def thought(id: str, root: str) -> Entry:
    """A foreign segment of that name, which says what it holds."""
    return Entry(id, "thought", root, root, ())


def _digest(*parts: bytes) -> str:
    return blake2b(b"\0".join(parts), digest_size=16).hexdigest()


def encode(entry: Entry, arrays: Arrays) -> bytearray:
    """The bytes of an entry's file."""
    tensors = {"token_ids": np.array(entry.token_ids, np.int32), **arrays}
    metadata = {
        "format": "edgecortex-kv",
        "version": str(VERSION),
        "kind": entry.kind,
        "id": entry.id,
        "parent": entry.parent,
        "root": entry.root,
        "checksum": _NO_CHECKSUM.decode(),
        **({"below": entry.below} if entry.below else {}),
    }
    data = bytearray(safetensors.numpy.save(tensors, metadata))
    start = _checksum_start(data)
    data[start : start + len(_NO_CHECKSUM)] = _checksum(data, start)
    return data


def decode(data: "bytes | bytearray | memoryview") -> tuple[Entry, dict[str, np.ndarray]]:
    """An entry and its arrays, which are views of `data`.

    Raises:
        DamagedError: these are not the bytes that `encode` made.
    """
    view = memoryview(data)
    try:
        start = _checksum_start(view)
        found = bytes(view[start : start + len(_NO_CHECKSUM)])
        if found != _checksum(view, start):
            raise DamagedError(f"the checksum is not {found.decode(errors='replace')}")
        return _parse(view)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise DamagedError(f"not a KV block: {error!r}") from error


def _parse(view: memoryview) -> tuple[Entry, dict[str, np.ndarray]]:
    at = _data_start(view)
    header = json.loads(bytes(view[8:at]))
    metadata = header.pop("__metadata__")
    arrays = {name: _array(view[at:], spec) for name, spec in header.items()}
    ids = tuple(arrays.pop("token_ids").tolist())
    id, kind, parent, root = (metadata[key] for key in ("id", "kind", "parent", "root"))
    return Entry(id, kind, parent, root, ids, metadata.get("below", "")), arrays


def _array(data: memoryview, spec: Mapping[str, Any]) -> np.ndarray:
    start, stop = spec["data_offsets"]
    dtype = np.dtype(_DTYPES[spec["dtype"]])
    if math.prod(spec["shape"]) * dtype.itemsize != stop - start:
        raise ValueError(f"{stop - start} bytes for shape {spec['shape']}")
    return np.frombuffer(data[start:stop], dtype).reshape(spec["shape"])


def _data_start(data: "bytearray | memoryview") -> int:
    return 8 + int.from_bytes(data[:8], "little")


def _checksum_start(data: "bytearray | memoryview") -> int:
    header = bytes(data[: min(_data_start(data), 1 << 20)])
    return header.index(_CHECKSUM) + len(_CHECKSUM)


def _checksum(data: "bytearray | memoryview", start: int) -> bytes:
    view = memoryview(data)
    hashed = xxhash.xxh3_128(view[:start])
    hashed.update(_NO_CHECKSUM)
    hashed.update(view[start + len(_NO_CHECKSUM) :])
    return hashed.hexdigest().encode()
