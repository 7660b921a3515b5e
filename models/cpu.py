"""What makes mlx-lm's model classes fast on a CPU, equal to fp32 rounding.

MLX's CPU build is slow at `exp`, and works out the angles of rotary embeddings anew for every
layer, for queries and for keys. OpenBLAS copies a matrix before it multiplies a few rows by it,
unless the matrix is small; small ones it multiplies on one core, so two streams share them.
"""

import math
import sys
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from edgecortex.cpu import by_halves, exp2

FEW_ROWS = 8  # multiplied block by block
SOME_ROWS = 32
BLOCKS = (64, 32, 16)  # weight rows
MOST_SMALL = 1_000_000  # multiplications: OpenBLAS's own limit


def speed_up(model: Any) -> None:
    """Exchanges the activation, the rotary embedding and the linear maps of a model's layers,
    where they are of known kinds."""
    for module in model.modules():
        if type(module) is nn.Linear and "bias" not in module:
            module.__class__ = BlockedLinear
        elif type(module) is nn.Embedding:
            module.__class__ = BlockedEmbedding
    tables: dict[tuple[int, float, float], _Tables] = {}
    for layer in model.layers:
        module = sys.modules[type(layer.mlp).__module__]
        if hasattr(module, "swiglu"):
            module.swiglu = swiglu  # type: ignore[attr-defined]
        rope = getattr(layer.self_attn, "rope", None)
        if type(rope) is nn.RoPE and not rope.traditional:
            key = (rope.dims, rope.base, rope.scale)
            layer.self_attn.rope = TableRoPE(rope, tables.setdefault(key, _Tables(*key)))


def multiply(x: mx.array, weight: mx.array) -> mx.array:
    """x (…, in) times the transposed weight (out, in): (…, out)."""
    num_rows, (out, width) = x.size // x.shape[-1], weight.shape
    block = next((b for b in BLOCKS if out % b == 0 and b * num_rows * width <= MOST_SMALL), 0)
    if FEW_ROWS < num_rows <= SOME_ROWS:
        return (weight @ x.reshape(num_rows, width).T).T.reshape(*x.shape[:-1], out)
    if num_rows > SOME_ROWS or not block:
        return x @ weight.T
    blocks = weight.reshape(-1, block, width).swapaxes(-1, -2)
    rows = x.reshape(1, num_rows, width)
    product = by_halves(lambda part: rows @ blocks[part], len(blocks), weight.size)
    return product.swapaxes(0, 1).reshape(*x.shape[:-1], out)


class BlockedLinear(nn.Linear):
    """A linear map without bias."""

    def __call__(self, x: mx.array) -> mx.array:
        return multiply(x, self.weight)


class BlockedEmbedding(nn.Embedding):
    """An embedding that may serve as output head."""

    def as_linear(self, x: mx.array) -> mx.array:
        return multiply(x, self.weight)


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """gate · sigmoid(gate) · x, elementwise."""
    return gate * x / (1 + exp2(gate * -math.log2(math.e)))


class _Tables:
    """Cosines and sines of one step's positions, shared by all layers."""

    def __init__(self, dims: int, base: float, scale: float) -> None:
        self._frequencies = scale * base ** (-np.arange(0, dims, 2) / dims)
        self._offset: mx.array | None = None
        self._tables: tuple[mx.array, mx.array]

    def at(self, offset: mx.array) -> tuple[mx.array, mx.array]:
        """(T, 1, 1, dims) each, for positions (T,): cosines twice, sines with both signs."""
        if self._offset is not offset:
            angles = np.array(offset)[:, None, None, None] * self._frequencies
            cos, sin = np.cos(angles), np.sin(angles)
            self._tables = (
                mx.array(np.concatenate([cos, cos], axis=-1).astype(np.float32)),
                mx.array(np.concatenate([-sin, sin], axis=-1).astype(np.float32)),
            )
            self._offset = offset
        return self._tables


class TableRoPE(nn.Module):
    """Rotary embedding (Su et al., arXiv 2104.09864) of (T, n_heads, 1, head_dim) by tables.

    Only for an array of offsets, one for each row; anything else goes to the original.
    """

    def __init__(self, original: nn.RoPE, tables: _Tables) -> None:
        super().__init__()
        self.original: Any = original
        self._by_position = tables

    def __call__(self, x: mx.array, offset: Any = 0) -> mx.array:
        dims = self.original.dims
        by_row = isinstance(offset, mx.array) and offset.ndim == 1 and x.shape[-2] == 1
        if not by_row or x.shape[-1] != dims:
            return self.original(x, offset=offset)
        cos, sin = self._by_position.at(offset)
        swapped = mx.concatenate([x[..., dims // 2 :], x[..., : dims // 2]], axis=-1)
        return x * cos + swapped * sin
