"""Attention and stored KV once more, in numpy and as plainly as can be written.

What a device computes is held against this. Shapes as in the segment module.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from edgecortex.kv.segment import LayerKV

_OWN_ROUNDING = {mx.float32: 2**-24, mx.float16: 2**-11, mx.bfloat16: 2**-9}


class Gap(NamedTuple):
    """The worst error found, the most there may be, and where it was."""

    error: float
    tolerance: float
    where: str = ""

    @property
    def passed(self) -> bool:
        """False for what is not a number, too."""
        return self.error <= self.tolerance


Checks = Mapping[str, Callable[[], Gap]]
"""By name, what measures a gap."""


def worst(*gaps: Gap) -> Gap:
    """The gap that is nearest to its tolerance, or farthest past it."""
    return max(gaps, key=lambda gap: (not gap.passed, gap.error / (gap.tolerance or 1.0)))


def gap(got: mx.array, want: np.ndarray, tolerance: float, where: str = "") -> Gap:
    """The largest difference.

    Raises:
        ValueError: the shapes differ.
    """
    if got.shape != want.shape:
        raise ValueError(f"{where or 'result'}: expected shape {want.shape}, got {got.shape}")
    return Gap(float(np.abs(numbers(got) - want).max()), tolerance, where)


def same(got: mx.array, want: np.ndarray, where: str = "") -> Gap:
    """How many numbers differ in any bit; none may.

    Raises:
        ValueError: the shapes differ.
    """
    if got.shape != want.shape:
        raise ValueError(f"{where or 'result'}: expected shape {want.shape}, got {got.shape}")
    return Gap(float((numbers(got) != want).sum()), 0.0, where)


def numbers(x: mx.array) -> np.ndarray:
    """As numpy has them; bfloat16, which it lacks, as float32."""
    return np.array(x.astype(mx.float32) if x.dtype == mx.bfloat16 else x)


def rounding(dtype: mx.Dtype) -> float:
    """The largest relative error of one number in a product of `dtype`.

    Measured for float32: some devices multiply it with the ten bits of TF32.
    """
    own = _OWN_ROUNDING[dtype]
    if dtype != mx.float32:
        return own
    x = 1 + np.random.default_rng(1).random((128, 128), np.float32)
    kept = numbers(mx.array(x) @ mx.eye(128))
    return max(own, float((np.abs(kept - x) / x).max()))


def tolerance(num_roundings: float, dtype: mx.Dtype) -> float:
    """Of what is computed in `dtype` and rounded that often, and goes through exponentials,
    roots and sines besides: in float32, where GPUs compute these to a few units in the sixth
    place."""
    return num_roundings * rounding(dtype) + 1e-5


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Rounded to the nearest bfloat16, to the even one of two."""
    bits = x.astype(np.float32).view(np.uint32)
    rounded = bits + 0x7FFF + (bits >> 16 & 1)
    return (rounded & 0xFFFF0000).astype(np.uint32).view(np.float32)


def hadamard(size: int) -> np.ndarray:
    """Sylvester's matrix, scaled to be its own inverse; `size` is a power of two."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / math.sqrt(size)


def rotate(x: np.ndarray) -> np.ndarray:
    """By the largest Hadamard matrix whose size divides the last axis, block by block."""
    size = x.shape[-1] & -x.shape[-1]
    blocks = x.reshape(*x.shape[:-1], -1, size)
    return (blocks @ hadamard(size)).reshape(x.shape)


def rope(x: np.ndarray, positions: np.ndarray, base: float = 10000.0) -> np.ndarray:
    """Rotary embedding of (T, heads, 1, dim), halves paired, for positions (T,)."""
    half = x.shape[-1] // 2
    angles = positions[:, None, None, None] * base ** (-np.arange(half) / half)
    cos, sin = np.cos(angles), np.sin(angles)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def unpack(
    packed: tuple[mx.array, ...], group_size: int, bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """What words (…, L * bits / 32), scales and biases (…, L / group_size) stand for, and how far
    it may be from what was packed, both (…, L).

    The fitted range may leave out one step at either end, and half a step is lost by rounding;
    the bias is rounded to the eleven bits of fp16.
    """
    words, scales, biases = (numbers(part) for part in packed)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    codes = (words[..., None] >> shifts & (2**bits - 1)).reshape(*words.shape[:-1], -1)
    scales, biases = (np.repeat(x.astype(np.float64), group_size, -1) for x in (scales, biases))
    return codes * scales + biases, 1.5 * scales + np.abs(biases) * 2**-11


class Read(NamedTuple):
    """Keys (n_kv_heads, L, head_dim) and values (n_kv_heads, L, v_head_dim), still rotated, and
    how far each may be from what was sealed."""

    k: np.ndarray
    v: np.ndarray
    k_slack: np.ndarray
    v_slack: np.ndarray


def read(layer: LayerKV, k_dim: int) -> Read:
    """What a sealed run holds."""
    format, channel = layer.format, layer.format.key_axis == "channel"
    if format.bits is None:
        parts = [numbers(layer.k[0]), numbers(layer.v[0])]
        (k, v), (k_slack, v_slack) = parts, [np.zeros_like(part) for part in parts]
    else:
        v_group = format.group_size if layer.v_dim % format.group_size == 0 else 32
        k, k_slack = unpack(layer.k, format.group_size, format.bits)
        v, v_slack = unpack(layer.v, v_group, format.bits)
    if channel:
        k, k_slack = k.swapaxes(-1, -2), k_slack.swapaxes(-1, -2)
    return Read(
        k[..., :k_dim], v[..., : layer.v_dim], k_slack[..., :k_dim], v_slack[..., : layer.v_dim]
    )


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """One token's queries (n_heads, head_dim) over keys (L, n_kv_heads, head_dim) and values
    (L, n_kv_heads, v_head_dim): (n_heads, v_head_dim)."""
    groups = len(q) // k.shape[1]
    k, v = (np.repeat(x, groups, axis=1) for x in (k, v))
    scores = np.einsum("hd,lhd->hl", q, k) / math.sqrt(q.shape[-1])
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("hl,lhd->hd", p / p.sum(axis=-1, keepdims=True), v)
