"""Opens a GGUF file and gives its metadata by name, with errors that a user can act on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, ReaderTensor

from edgecortex.errors import ModelError

_LONGEST_LIST = 1 << 20  # four times the largest vocabulary


class _Reader(GGUFReader):
    """Stops at the end of the file, where the original reads nothing and goes on, and at lists
    of a length that only damage explains: an element takes it half a kilobyte."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type == GGUFValueType.ARRAY:
            length = int(self._get(orig_offs + 4, np.uint64)[0])
            if length > _LONGEST_LIST:
                raise ValueError(f"a list of {length:,} elements at byte {int(orig_offs):,}")
        return super()._get_field_parts(orig_offs, raw_type)

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        values = super()._get(offset, dtype, count, override_order)
        if len(values) < count:
            raise ValueError(f"expected {int(count):,} more numbers at byte {int(offset):,}")
        return values


@dataclass(frozen=True)
class GGUFFile:
    """A GGUF file in memory map: `architecture`, metadata through `get`, and its tensors."""

    path: Path
    reader: GGUFReader

    @property
    def architecture(self) -> str:
        return str(self.get("general.architecture"))

    @property
    def tensors(self) -> list[ReaderTensor]:
        return self.reader.tensors

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a metadata field, as plain Python."""
        field = self.reader.fields.get(key)
        return default if field is None else field.contents()

    def require(self, key: str) -> Any:
        """As `get`.

        Raises:
            ModelError: the file has no such field.
        """
        value = self.get(key)
        if value is None:
            raise ModelError(
                f"{self.path}: expected the metadata field {key!r}, got none; "
                "convert the model again with a current converter"
            )
        return value


def check_magic(path: Path) -> None:
    """
    Raises:
        ModelError: there is no such file, or it is not GGUF.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    if magic != b"GGUF":
        raise ModelError(f"{path} is not a GGUF file: expected b'GGUF' first, got {magic!r}")


def open_gguf(path: Path) -> GGUFFile:
    """Opens the file and checks its structure.

    Raises:
        ModelError: as `check_magic`, or the file is cut short or damaged.
    """
    check_magic(path)
    with damage_reported(path):
        return GGUFFile(path, _Reader(path))


@contextmanager
def damage_reported(path: Path) -> Iterator[None]:
    """Around what takes a file's numbers at their word: nonsense in them fails in many ways.

    Raises:
        ModelError: the block failed as it does on a damaged file.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError, ArithmeticError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{path} is cut short or damaged ({reason}): got {path.stat().st_size:,} bytes; "
            "fetch the file again"
        ) from error
