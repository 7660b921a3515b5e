"""Arrays that are to be filled by others than MLX."""

import json
import math
from collections.abc import Mapping, Sequence

import mlx.core as mx

_NAMES = {
    mx.float32: "F32",
    mx.float16: "F16",
    mx.uint32: "U32",
    mx.uint16: "U16",
}


def unwritten(shapes: Mapping[str, tuple[Sequence[int], mx.Dtype]]) -> dict[str, mx.array]:
    """Arrays, evaluated, that hold whatever was in their memory.

    MLX can make such arrays only while it reads a file, so it is given one that writes nothing:
    zeros would touch all memory once more, which takes as long as reading the data does.
    """
    arrays = mx.load(_Blank(shapes), format="safetensors")  # type: ignore[arg-type]
    assert isinstance(arrays, dict)
    mx.eval(arrays)
    return arrays


class _Blank:
    """A safetensors file with a header and no data."""

    closed = False

    def __init__(self, shapes: Mapping[str, tuple[Sequence[int], mx.Dtype]]) -> None:
        header, end = {}, 0
        for name, (shape, dtype) in shapes.items():
            start, end = end, end + math.prod(shape) * dtype.size
            header[name] = {
                "dtype": _NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [start, end],
            }
        encoded = json.dumps(header).encode()
        self._head = len(encoded).to_bytes(8, "little") + encoded
        self._size, self._at = len(self._head) + end, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, view: memoryview) -> int:
        known = self._head[self._at : self._at + len(view)]
        view[: len(known)] = known
        self._at += len(view)
        return len(view)

    def read(self, size: int) -> bytes:
        view = memoryview(bytearray(size))
        return bytes(view[: self.readinto(view)])
