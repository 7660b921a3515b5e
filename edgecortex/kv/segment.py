"""Immutable runs of keys and values.

Shapes: keys go in as (n_kv_heads, L, head_dim), values as (n_kv_heads, L, v_head_dim). Queries
are (n_kv_heads, R, head_dim) with the rows of all query heads of a KV head stacked. Where the
format rotates, all three come rotated already.
"""

import math
from collections.abc import Sequence
from functools import cache, partial

import mlx.core as mx

from edgecortex.cpu import aside, by_halves, on_cpu
from edgecortex.errors import ConfigError
from edgecortex.kv.affine import pack, unpack
from edgecortex.kv.format import FORMATS, KVFormat

Parts = tuple[mx.array, ...]


def rotate(x: mx.array) -> mx.array:
    """The Hadamard transform of the last axis, in blocks of the largest power of two that
    divides it. Its own inverse."""
    size = x.shape[-1] & -x.shape[-1]
    blocks = x.reshape(*x.shape[:-1], -1, size)
    return (blocks @ _hadamard(size, x.dtype)).reshape(x.shape)


def row_dtype(format: KVFormat, dtype: mx.Dtype) -> mx.Dtype:
    """Of unquantized tokens, where a model computes in `dtype`: 16 bits if others are quantized.

    bfloat16 rather than float16: a CPU reads it back eight times as fast.
    """
    return mx.bfloat16 if format.bits is not None and dtype == mx.float32 else dtype


def rounded(x: mx.array, format: KVFormat) -> mx.array:
    """To what an unquantized token's row can hold."""
    return x.astype(row_dtype(format, x.dtype)).astype(x.dtype)


@cache
def _hadamard(size: int, dtype: mx.Dtype) -> mx.array:
    """As a matrix: on a CPU a product with it is five times faster than the transform."""
    matrix = mx.hadamard_transform(mx.eye(size), scale=1 / math.sqrt(size)).astype(dtype)
    mx.eval(matrix)
    return matrix


def multiplies_quantized() -> bool:
    """Whether the device at hand may multiply sealed runs as they are stored.

    With CUDA they are read back first. MLX 0.32.4 there compiles every kind of these products at
    its first use, for up to a minute; then they take longer (an H100: 268 against 180 us for a
    layer of 4,096 tokens and 48 rows); and they are wrong where rows share a run.
    """
    return on_cpu() or not mx.cuda.is_available()


def value_group(head_dim: int, group_size: int) -> tuple[int, int]:
    """The group size for a head of values, and the head's size padded to whole groups.

    Groups of 64 that do not divide the head become groups of 32, and the head is padded with
    zeros to a multiple of that.
    """
    if head_dim % group_size:
        group_size = 32
    return group_size, -(-head_dim // group_size) * group_size


class LayerKV:
    """One layer of a segment. Quantized parts are (words, scales, biases), else one array.

    Channel keys are (n_kv_heads, head_dim, L), so that `quantized_matmul` reads them without
    a transpose and segments join along the last axis; token keys are (n_kv_heads, L, head_dim).
    `bias` (n_kv_heads, L), if there is one, is added to the scores, in powers of two: a token
    then weighs as much as all those that it stands for.
    """

    bias: mx.array | None = None

    def __init__(self, format: KVFormat, k: Parts, v: Parts, v_dim: int) -> None:
        self.format, self.v_dim = format, v_dim
        self._k, self._v = k, v

    @property
    def k(self) -> Parts:
        return self._k

    @property
    def v(self) -> Parts:
        return self._v

    @classmethod
    def seal(cls, k: mx.array, v: mx.array, format: KVFormat) -> "LayerKV":
        """Quantizes whole blocks: L must be a multiple of `format.block`."""
        v_dim = v.shape[-1]
        keys = mx.contiguous(k.swapaxes(-1, -2)) if format.key_axis == "channel" else k
        if format.bits is None:
            return cls(format, (keys,), (v,), v_dim)
        group, padded = value_group(v_dim, format.group_size)
        if padded != v_dim:
            v = mx.pad(v, [(0, 0), (0, 0), (0, padded - v_dim)])
        if format.key_axis == "token":
            keys = _pad_last(keys, format.group_size)
        packed = pack(keys, format.group_size, format.bits)
        return cls(format, packed, aside(partial(pack, v, group, format.bits)), v_dim)

    @property
    def num_tokens(self) -> int:
        """L."""
        return self.v[0].shape[-2]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.arrays())

    @property
    def num_values(self) -> int:
        """Keys and values together, padding included."""
        assert self.format.bits is not None
        return (self.k[0].size + self.v[0].size) * 32 // self.format.bits

    def arrays(self) -> list[mx.array]:
        """All there are, for evaluation."""
        return [*self.k, *self.v] + ([] if self.bias is None else [self.bias])

    def scores(self, q: mx.array, dense: bool) -> mx.array:
        """q (n_kv_heads, R, head_dim) times the keys: (n_kv_heads, R, L)."""
        scores = self._products(q, dense)
        return scores if self.bias is None else scores + self.bias[:, None].astype(scores.dtype)

    def _products(self, q: mx.array, dense: bool) -> mx.array:
        channel = self.format.key_axis == "channel"
        if self.format.bits is None or dense:
            keys = self._keys_as_stored(q.dtype)
            return q @ (keys if channel else keys[..., : q.shape[-1]].swapaxes(-1, -2))
        if not channel:
            q = _pad_last(q, self.format.group_size)
        return _quantized(q, self.k, not channel, self.format.group_size, self.format.bits)

    def weighted(self, p: mx.array, dense: bool) -> mx.array:
        """p (n_kv_heads, R, L) times the values: (n_kv_heads, R, v_head_dim)."""
        if self.format.bits is None or dense:
            return p @ self.values(p.dtype)
        out = _quantized(p, self.v, False, self._v_group, self.format.bits)
        return out[..., : self.v_dim] if out.shape[-1] != self.v_dim else out

    def keys(self, dtype: mx.Dtype, head_dim: int) -> mx.array:
        """The keys read back, still rotated: (n_kv_heads, L, head_dim)."""
        return self.columns(dtype, head_dim).swapaxes(-1, -2)

    def columns(self, dtype: mx.Dtype, head_dim: int) -> mx.array:
        """The same as (n_kv_heads, head_dim, L), which is how channel keys are stored."""
        keys = self._keys_as_stored(dtype)
        channel = self.format.key_axis == "channel"
        return keys if channel else keys[..., :head_dim].swapaxes(-1, -2)

    def values(self, dtype: mx.Dtype) -> mx.array:
        """The values read back, still rotated: (n_kv_heads, L, v_head_dim)."""
        if self.format.bits is None:
            return self.v[0].astype(dtype)
        return unpack(self.v, self._v_group, self.format.bits, dtype)[..., : self.v_dim]

    def cut(self, start: int, stop: int) -> "LayerKV":
        """Tokens `start` to `stop`, both multiples of the block."""
        k_axis = -1 if self.format.key_axis == "channel" else -2
        k = tuple(_cut(part, k_axis, start, stop, self.num_tokens) for part in self.k)
        v = tuple(_cut(part, -2, start, stop, self.num_tokens) for part in self.v)
        return LayerKV(self.format, k, v, self.v_dim)

    def joined(self, later: "LayerKV") -> "LayerKV":
        """This run followed by `later`, in arrays of its own."""
        k_axis = -1 if self.format.key_axis == "channel" else -2
        k = tuple(
            mx.concatenate(list(pair), axis=k_axis) for pair in zip(self.k, later.k, strict=True)
        )
        v = tuple(mx.concatenate(list(pair), axis=-2) for pair in zip(self.v, later.v, strict=True))
        return LayerKV(self.format, k, v, self.v_dim)

    def read_back(self, dtype: mx.Dtype, head_dim: int) -> "LayerKV":
        """The same run in full precision, still rotated."""
        parts = (self.columns(dtype, head_dim),), (self.values(dtype),)
        back = LayerKV(FORMATS["fp"], *parts, self.v_dim)
        back.bias = self.bias
        return back

    def copied(self) -> "LayerKV":
        """The same run in arrays of its own."""
        k, v = (tuple(map(_own, parts)) for parts in (self.k, self.v))
        return LayerKV(self.format, k, v, self.v_dim)

    @property
    def _v_group(self) -> int:
        return value_group(self.v_dim, self.format.group_size)[0]

    def _keys_as_stored(self, dtype: mx.Dtype) -> mx.array:
        if self.format.bits is None:
            return self.k[0].astype(dtype)
        return unpack(self.k, self.format.group_size, self.format.bits, dtype)


class Stack(LayerKV):
    """Runs of equal length along a leading axis, out of which their members then read."""

    @classmethod
    def of(cls, layers: "Sequence[LayerKV]") -> "Stack":
        """Neighbours that lie together in another stack are moved together."""
        k, v = [], []
        for run in _neighbours(layers):
            first, last = run[0], run[-1]
            if isinstance(first, Member) and isinstance(last, Member):
                k.append([part[first.index : last.index + 1] for part in first.stack.k])
                v.append([part[first.index : last.index + 1] for part in first.stack.v])
            else:
                k.append([part[None] for part in first.k])
                v.append([part[None] for part in first.v])
        joined_k, joined_v = (
            tuple(mx.concatenate(list(parts)) for parts in zip(*runs, strict=True))
            for runs in (k, v)
        )
        return cls(layers[0].format, joined_k, joined_v, layers[0].v_dim)

    def __len__(self) -> int:
        return self.v[0].shape[0]

    def chosen(self, indices: Sequence[int]) -> LayerKV:
        """Some of the runs along a leading axis, in this order; the first ones at no copy."""
        in_order = list(indices) == list(range(len(indices)))
        at = slice(len(indices)) if in_order else mx.array(list(indices))
        k, v = (tuple(part[at] for part in parts) for parts in (self.k, self.v))
        return LayerKV(self.format, k, v, self.v_dim)


class Member(LayerKV):
    """One run of a stack, in the stack's memory; its arrays are made when they are asked for."""

    def __init__(self, stack: Stack, index: int) -> None:
        super().__init__(stack.format, (), (), stack.v_dim)
        self.stack, self.index = stack, index

    @property
    def k(self) -> Parts:
        return tuple(part[self.index] for part in self.stack.k)

    @property
    def v(self) -> Parts:
        return tuple(part[self.index] for part in self.stack.v)

    @property
    def num_tokens(self) -> int:
        return self.stack.num_tokens

    @property
    def nbytes(self) -> int:
        return self.stack.nbytes // len(self.stack)


def _neighbours(layers: "Sequence[LayerKV]") -> "list[list[LayerKV]]":
    """The runs in order, in groups that follow each other in one stack."""
    groups: list[list[LayerKV]] = []
    for layer in layers:
        last = groups[-1][-1] if groups else None
        together = (
            isinstance(layer, Member)
            and isinstance(last, Member)
            and layer.stack is last.stack
            and layer.index == last.index + 1
        )
        if together:
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return groups


class KVSegment:
    """An immutable run of tokens for all layers, shared by counting references.

    `layers[i]` may hold fewer tokens than `num_tokens` where layer i slides a window: then it
    holds the newest of them. `start` is the position of the first token.
    """

    def __init__(self, layers: Sequence[LayerKV], start: int, num_tokens: int) -> None:
        self.layers = list(layers)
        self.start = start
        self.num_tokens = num_tokens
        self.refs = 0

    @property
    def stop(self) -> int:
        """The position after the last token."""
        return self.start + self.num_tokens

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    def check_lengths(self, windows: Sequence[int | None]) -> None:
        """A step works out once for all layers of a window what each token sees of a segment.

        Raises:
            ConfigError: layers of one window hold different numbers of tokens.
        """
        lengths: dict[int | None, set[int]] = {}
        for layer, window in zip(self.layers, windows, strict=True):
            lengths.setdefault(window, set()).add(layer.num_tokens)
        if uneven := [sorted(found) for found in lengths.values() if len(found) > 1]:
            raise ConfigError(
                f"expected as many tokens in every layer of one window, got {uneven[0]}; "
                "choose as many for each layer"
            )

    def arrays(self) -> list[mx.array]:
        """Every array of the segment, for evaluation."""
        return [part for layer in self.layers for part in layer.arrays()]

    def joined(self, later: "KVSegment", windows: Sequence[int | None]) -> "KVSegment":
        """Both runs as one; a layer with a window keeps what its next token may still see."""
        pairs = zip(self.layers, later.layers, strict=True)
        layers = [layer.joined(more) for layer, more in pairs]
        both = KVSegment(layers, self.start, self.num_tokens + later.num_tokens)
        return both.windowed(windows)

    def windowed(self, windows: Sequence[int | None]) -> "KVSegment":
        """Itself, less what a layer with a window need not keep for the next token."""
        layers = [_windowed(x, window) for x, window in zip(self.layers, windows, strict=True)]
        return KVSegment(layers, self.start, self.num_tokens)

    def split(self, sizes: Sequence[int]) -> "list[KVSegment]":
        """Consecutive parts of these sizes, in tokens."""
        if len(sizes) == 1:
            return [self]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [
            KVSegment([x.cut(a, a + n) for x in self.layers], self.start + a, n)
            for a, n in zip(starts, sizes, strict=True)
        ]


def _windowed(layer: LayerKV, window: int | None) -> LayerKV:
    """Drops whole blocks that no later token can see: all but `window` - 1 tokens, rounded up."""
    if window is None:
        return layer
    block = layer.format.block
    keep = -(-(window - 1) // block) * block
    excess = layer.num_tokens - keep
    return layer.cut(excess, layer.num_tokens) if excess > 0 else layer


def _quantized(x: mx.array, parts: Parts, transpose: bool, group: int, bits: int) -> mx.array:
    """x (m, …) or (1, m, …) times quantized matrices (m, …): the words are 32 bits wide."""
    if x.ndim > parts[0].ndim:
        return _quantized(x[0], parts, transpose, group, bits)[None]

    def product(at: slice) -> mx.array:
        words, scales, biases = (part[at] for part in parts)
        return mx.quantized_matmul(
            x[at], words, scales, biases, transpose=transpose, group_size=group, bits=bits
        )

    return by_halves(product, len(parts[0]), parts[0].size * 32 // bits)


def _own(view: mx.array) -> mx.array:
    """The same numbers in a buffer of their own: a view keeps all of what it looks into."""
    return view + 0


def _cut(part: mx.array, axis: int, start: int, stop: int, num_tokens: int) -> mx.array:
    """Slices `start:stop` of `num_tokens` along an axis that may count words or groups."""
    size = part.shape[axis]
    a, b = start * size // num_tokens, stop * size // num_tokens
    return _own(part[..., a:b] if axis == -1 else part[..., a:b, :])


def _pad_last(x: mx.array, multiple: int) -> mx.array:
    missing = -x.shape[-1] % multiple
    return mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x
