"""GGUF tensors as MLX arrays on disk.

Q4_0, Q4_1 and Q8_0 are affine in groups of 32 just as MLX's own format is, so their numbers are
moved over as they are: `weight (rows, columns * bits / 32)` in uint32, `scales` and `biases`
`(rows, columns / 32)` in fp16. Every other type is dequantized to fp16, which has three more
bits of mantissa than bf16 has; weights do not need bf16's range, and that is checked.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, ReaderTensor, dequantize

from edgecortex.errors import ModelError

GROUP_SIZE = 32
Arrays = dict[str, np.ndarray]
Affine = tuple[np.ndarray, np.ndarray, np.ndarray]


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """`(rows, groups, 16)` GGUF bytes to `(rows, groups, 32)` values of 4 bits.

    GGUF puts values 0 to 15 of a group in the low halves and 16 to 31 in the high ones.
    """
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _pack4(values: np.ndarray) -> np.ndarray:
    """Neighbours into one byte, the first in the low half, as MLX reads them."""
    return values[..., ::2] | values[..., 1::2] << 4


def _half(columns: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(columns).view(np.float16)


def _q4_0(blocks: np.ndarray) -> Affine:
    scales = _half(blocks[..., :2])
    return _pack4(_nibbles(blocks[..., 2:])), scales, scales * np.float16(-8)


def _q4_1(blocks: np.ndarray) -> Affine:
    values = _pack4(_nibbles(blocks[..., 4:]))
    return values, _half(blocks[..., :2]), _half(blocks[..., 2:4])


def _q8_0(blocks: np.ndarray) -> Affine:
    scales = _half(blocks[..., :2])
    return blocks[..., 2:] ^ 0x80, scales, scales * np.float16(-128)


_AFFINE: dict[GGMLQuantizationType, tuple[int, Callable[[np.ndarray], Affine]]] = {
    GGMLQuantizationType.Q4_0: (4, _q4_0),
    GGMLQuantizationType.Q4_1: (4, _q4_1),
    GGMLQuantizationType.Q8_0: (8, _q8_0),
}


def affine_bits(tensor: ReaderTensor) -> int | None:
    """Bits a value if the tensor stays quantized, else None."""
    return _AFFINE[tensor.tensor_type][0] if tensor.tensor_type in _AFFINE else None


def dense(tensor: ReaderTensor) -> np.ndarray:
    """The tensor's values in fp32, shaped `(rows, columns)` or `(columns,)`.

    Raises:
        ModelError: a type that cannot be dequantized.
    """
    try:
        return dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    except NotImplementedError as error:
        raise ModelError(
            f"tensor {tensor.name} has the type {tensor.tensor_type.name}, which cannot be "
            "dequantized; choose another quantization of this model"
        ) from error


def quantized(tensor: ReaderTensor) -> Affine:
    """`(weight, scales, biases)` in MLX's affine layout, with no change of any value.

    Raises:
        ModelError: a scale or an offset that fp16 cannot hold.
    """
    _, split = _AFFINE[tensor.tensor_type]
    num_rows = len(tensor.data)
    num_groups = int(tensor.shape[0]) // GROUP_SIZE
    with np.errstate(over="ignore", invalid="ignore"):
        values, scales, biases = split(tensor.data.reshape(num_rows, num_groups, -1))
    if not (np.all(np.isfinite(scales)) and np.all(np.isfinite(biases))):
        raise ModelError(
            f"tensor {tensor.name}: expected scales and offsets of at most 65504, got larger"
        )
    weight = np.ascontiguousarray(values).reshape(num_rows, -1).view(np.uint32)
    return weight, scales.reshape(num_rows, -1), biases.reshape(num_rows, -1)


def to_half(name: str, values: np.ndarray) -> np.ndarray:
    """fp32 to fp16.

    Raises:
        ModelError: a value that fp16 cannot hold.
    """
    if not np.all(np.abs(values) <= np.finfo(np.float16).max):
        raise ModelError(f"tensor {name}: expected finite values of at most 65504, got larger")
    return values.astype(np.float16)


_DTYPES = {"float16": "F16", "uint32": "U32"}
_HEADER_BYTES_PER_TENSOR = 512


def write_safetensors(
    path: Path, tensors: Iterable[Arrays], num_tensors: int, metadata: dict[str, str]
) -> None:
    """Writes arrays as they come, so that no more than one tensor is in memory.

    The header stands before the data and is known only after it: room for it is left, and
    filled up with spaces, as the format allows.
    """
    room = _HEADER_BYTES_PER_TENSOR * num_tensors
    header: dict[str, object] = {"__metadata__": metadata}
    with path.open("wb") as file:
        file.seek(8 + room)
        for arrays in tensors:
            for name, array in arrays.items():
                start = file.tell() - 8 - room
                file.write(np.ascontiguousarray(array).data)
                header[name] = {
                    "dtype": _DTYPES[array.dtype.name],
                    "shape": list(array.shape),
                    "data_offsets": [start, file.tell() - 8 - room],
                }
        file.seek(0)
        file.write(room.to_bytes(8, "little") + json.dumps(header).encode().ljust(room))
