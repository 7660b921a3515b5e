"""A context's KV as the arrays of single blocks, and back.

Layers of equal shapes are stacked: in a block the part `k0` of group `g` is the array
`g.k0` (layers, …), where … is the shape of that part for one block, as in `LayerKV`. Rows in full
precision are `g.row_k` and `g.row_v`, (layers, n_kv_heads, L, head_dim). bfloat16 travels as
its bits, in 16-bit integers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from edgecortex.kv import runs
from edgecortex.kv.context import Context, Mark
from edgecortex.kv.memory import unwritten
from edgecortex.kv.pool import BlockPool
from edgecortex.kv.segment import KVSegment, LayerKV, Member, row_dtype

Shape = tuple[int, int, int, mx.Dtype]
"""Of a layer: n_kv_heads, head_dim, v_head_dim, and the dtype of its rows."""
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Group:
    """Layers of one shape, all of which slide a window or none."""

    name: str
    layers: tuple[int, ...]
    slides: bool
    template: LayerKV
    row_dtype: mx.Dtype


class BlockCodec:
    """Takes a pool's contexts apart into blocks, and puts them together again."""

    def __init__(self, pool: BlockPool, shapes: Sequence[Shape]) -> None:
        self.pool, self.format = pool, pool.format
        found: dict[tuple[Shape, bool], list[int]] = {}
        for layer, (shape, window) in enumerate(zip(shapes, pool.windows, strict=True)):
            found.setdefault((shape, window is not None), []).append(layer)
        self.groups = [
            Group(
                str(i),
                tuple(layers),
                slides,
                _template(pool, shape),
                row_dtype(self.format, shape[3]),
            )
            for i, ((shape, slides), layers) in enumerate(found.items())
        ]
        windows = [window for window in pool.windows if window is not None]
        self.num_windows = max((-(-(w - 1) // self.format.block) for w in windows), default=0)

    @property
    def stored_as(self) -> dict[str, Any]:
        """What a block's bytes depend on beside the model: the format, and the dtypes of parts."""
        parts = [str(part.dtype) for g in self.groups for _, part, _ in _parts(g)]
        return {**asdict(self.format), "dtypes": parts}

    def snapshot(self, context: Context) -> "Snapshot":
        """The context as it is now, to be read on any thread."""
        segments = [_Views(segment) for segment in context.own_segments]
        length = self.format.row_length(context.num_own)
        rows = {
            f"{group.name}.row_{kind}": np.stack(
                [self._row(layer, kind, context.slot)[:, :length] for layer in group.layers]
            )
            for group in self.groups
            for kind in "kv"
        }
        attached = {laid.id: self.thought(laid.segment) for laid in context.attached}
        return Snapshot(self, list(context.token_ids), segments, rows, context.marks, attached)

    def _row(self, layer: int, kind: str, slot: int) -> np.ndarray:
        return _numpy(self.pool.caches[layer].arrays()[kind == "v"])[slot]

    def thought(self, segment: KVSegment) -> dict[str, np.ndarray]:
        """The arrays of an attached segment, layer by layer. It is not quantized."""
        layers = [_layer_views(layer) for layer in segment.layers]
        return {
            f"{i}.{kind}": x
            for i, kv in enumerate(layers)
            for kind, x in zip("kv", kv, strict=True)
        }

    def segment_of(self, arrays: Arrays, start: int, num_tokens: int) -> KVSegment:
        """The segment that `thought` took apart.

        Raises:
            KeyError: a layer is missing.
        """
        format, layers = replace(self.format, bits=None), []
        dtypes = {layer: group.row_dtype for group in self.groups for layer in group.layers}
        for i in range(len(self.pool.caches)):
            k, v = (_as(mx.array(arrays[f"{i}.{kind}"]), dtypes[i]) for kind in "kv")
            layers.append(LayerKV(format, (k,), (v,), v.shape[-1]))
        segment = KVSegment(layers, start, num_tokens)
        mx.eval(segment.arrays())
        return segment

    def loading(self, num_blocks: int) -> "Loading":
        """Room for that many blocks, to be filled and then attached."""
        return Loading(self, num_blocks)


@dataclass(frozen=True)
class Snapshot:
    """What a context held at one moment. Block `i` holds the sealed tokens from 64 × `i` on
    (for a block of 64); the first one has the sinks too. `attached` has the arrays of foreign
    segments by their ids."""

    codec: BlockCodec
    token_ids: list[int]
    segments: "list[_Views]"
    rows: dict[str, np.ndarray]
    marks: tuple[Mark, ...]
    attached: Mapping[str, Arrays]

    @property
    def num_blocks(self) -> int:
        return sum(views.num_tokens for views in self.segments) // self.codec.format.block

    def block(self, index: int) -> dict[str, np.ndarray]:
        """What layers without a window hold of a block."""
        arrays = self._parts(index, slides=False)
        sinks = self.codec.format.num_sinks
        if index == 0 and sinks:
            arrays |= {name: np.ascontiguousarray(x[:, :, :sinks]) for name, x in self.rows.items()}
        return arrays

    def window(self, index: int) -> dict[str, np.ndarray]:
        """What layers with a window hold of a block."""
        return self._parts(index, slides=True)

    def tail(self) -> dict[str, np.ndarray]:
        """The tokens after the last block, and the sinks where there is none."""
        start = self.codec.format.num_sinks if self.num_blocks else 0
        return {name: np.ascontiguousarray(x[:, :, start:]) for name, x in self.rows.items()}

    def _parts(self, index: int, slides: bool) -> dict[str, np.ndarray]:
        start = index * self.codec.format.block
        for views in self.segments:
            if start < views.num_tokens:
                break
            start -= views.num_tokens
        arrays = {}
        for group in self.codec.groups:
            if group.slides == slides:
                layers = [views.cut(layer, start) for layer in group.layers]
                for name, parts in zip(_names(group), zip(*layers, strict=True), strict=True):
                    arrays[name] = np.stack(parts)
        return arrays


class _Views:
    """A segment's arrays as numpy sees them, without a copy."""

    def __init__(self, segment: KVSegment) -> None:
        self.num_tokens = segment.num_tokens
        self._layers = [_layer_views(layer) for layer in segment.layers]
        self._num_held = [layer.num_tokens for layer in segment.layers]
        self._format = segment.layers[0].format

    def cut(self, layer: int, start: int) -> list[np.ndarray]:
        """The parts of the block that starts `start` tokens into the segment."""
        held, block = self._num_held[layer], self._format.block
        start -= self.num_tokens - held
        parts = self._layers[layer]
        axes = _axes(self._format.key_axis, len(parts))
        return [_cut(x, axis, start, block, held) for x, axis in zip(parts, axes, strict=True)]


class Loading:
    """Memory for `num_blocks` blocks, filled from any thread and attached on the engine's."""

    def __init__(self, codec: BlockCodec, num_blocks: int) -> None:
        self.codec, self.num_blocks = codec, num_blocks
        self._sinks: dict[str, np.ndarray] = {}
        self._tail: dict[str, np.ndarray] = {}
        pool, block = codec.pool, codec.format.block
        self._sizes = runs.sizes(num_blocks * block, block, pool.slides)
        self._arrays = [unwritten(self._shapes(size)) for size in self._sizes]
        self._views = [
            {name: np.array(x, copy=False) for name, x in arrays.items()} for arrays in self._arrays
        ]

    def _shapes(self, num_tokens: int) -> dict[str, tuple[list[int], mx.Dtype]]:
        """Of a run's arrays, in the dtypes that numpy knows."""
        shapes = {}
        for group in self.codec.groups:
            held = self._held(group, num_tokens)
            for name, part, axis in _parts(group):
                shape = list(part.shape)
                shape[axis] = shape[axis] * held // self.codec.format.block
                dtype = mx.uint16 if part.dtype == mx.bfloat16 else part.dtype
                shapes[name] = [len(group.layers), *shape], dtype
        return shapes

    def _held(self, group: Group, num_tokens: int) -> int:
        """How many of a run's tokens a group holds."""
        most = self.codec.num_windows * self.codec.format.block
        return min(num_tokens, most) if group.slides else num_tokens

    def take_block(self, index: int, arrays: Arrays) -> None:
        """Puts a block's arrays in their place.

        Raises:
            KeyError, ValueError: they are not of this model's shapes.
        """
        self._fill(index, arrays, slides=False)
        if index == 0 and self.codec.format.num_sinks:
            self._sinks = self._rows_of(arrays)

    def take_window(self, index: int, arrays: Arrays) -> None:
        """As `take_block`, for layers with a window."""
        self._fill(index, arrays, slides=True)

    def take_tail(self, arrays: Arrays) -> None:
        """As `take_block`, for what follows the blocks."""
        self._tail = self._rows_of(arrays)

    def _rows_of(self, arrays: Arrays) -> dict[str, np.ndarray]:
        names = [f"{g.name}.row_{kind}" for g in self.codec.groups for kind in "kv"]
        return {name: np.array(arrays[name]) for name in names}

    def _fill(self, index: int, arrays: Arrays, slides: bool) -> None:
        run, block = 0, self.codec.format.block
        start = index * block
        while start >= self._sizes[run]:
            start -= self._sizes[run]
            run += 1
        for group in self.codec.groups:
            if group.slides == slides:
                held = self._held(group, self._sizes[run])
                at = start - (self._sizes[run] - held)
                for name, _, axis in _parts(group):
                    place = _cut(self._views[run][name], axis, at, block, held)
                    new = arrays[name]
                    if (new.shape, new.dtype) != (place.shape, place.dtype):
                        raise ValueError(
                            f"{name}: expected {place.dtype} {place.shape}, "
                            f"got {new.dtype} {new.shape}"
                        )
                    place[...] = new

    def segments(self, start: int) -> list[KVSegment]:
        """What was filled, as segments from position `start` on."""
        found = []
        for size, arrays in zip(self._sizes, self._arrays, strict=True):
            layers: dict[int, LayerKV] = {}
            for group in self.codec.groups:
                parts = [_by_layer(_as(arrays[n], part.dtype)) for n, part, _ in _parts(group)]
                half = len(group.template.k)
                for layer, *own in zip(group.layers, *parts, strict=True):
                    k, v = tuple(own[:half]), tuple(own[half:])
                    layers[layer] = LayerKV(self.codec.format, k, v, group.template.v_dim)
            found.append(KVSegment([layers[i] for i in sorted(layers)], start, size))
            start += size
        return found

    def layer_rows(self) -> list[tuple[mx.array, mx.array]]:
        """Per layer the sinks' and the tail's columns, (n_kv_heads, L, head_dim) each; nothing
        where there are neither."""
        if not self._sinks and not self._tail:
            return []
        found: dict[int, tuple[mx.array, mx.array]] = {}
        for group in self.codec.groups:
            k, v = (self._group_rows(group, kind) for kind in "kv")
            found |= dict(zip(group.layers, zip(k, v, strict=True), strict=True))
        return [found[layer] for layer in sorted(found)]

    def _group_rows(self, group: Group, kind: str) -> list[mx.array]:
        runs = [rows[f"{group.name}.row_{kind}"] for rows in (self._sinks, self._tail) if rows]
        parts = [_as(mx.array(run), group.row_dtype) for run in runs]
        return _by_layer(mx.concatenate(parts, axis=2))


def _template(pool: BlockPool, shape: Shape) -> LayerKV:
    """One sealed block of zeros: the shapes and dtypes of all parts."""
    heads, k_dim, v_dim, dtype = shape
    k, v = (mx.zeros((heads, pool.format.block, dim), dtype) for dim in (k_dim, v_dim))
    layer = LayerKV.seal(k, v, pool.format)
    mx.eval(layer.k, layer.v)
    return layer


def _names(group: Group) -> list[str]:
    half = len(group.template.k)
    return [f"{group.name}.{kind}{i}" for kind in "kv" for i in range(half)]


def _parts(group: Group) -> list[tuple[str, mx.array, int]]:
    """Each part's name, its array for one block, and the axis along which runs grow."""
    parts = [*group.template.k, *group.template.v]
    axes = _axes(group.template.format.key_axis, len(parts))
    return list(zip(_names(group), parts, axes, strict=True))


def _axes(key_axis: str, num_parts: int) -> list[int]:
    half = num_parts // 2
    return [-1 if key_axis == "channel" else -2] * half + [-2] * half


def _cut(x: np.ndarray, axis: int, start: int, length: int, num_tokens: int) -> np.ndarray:
    """`length` tokens from `start` on, of `num_tokens` along an axis of words or groups."""
    size = x.shape[axis]
    a, b = start * size // num_tokens, (start + length) * size // num_tokens
    return x[..., a:b] if axis == -1 else x[..., a:b, :]


def _by_layer(x: mx.array) -> list[mx.array]:
    """The parts along the first axis, in the memory of the whole: indexing would copy them."""
    return [part.squeeze(0) for part in mx.split(x, x.shape[0])]


def _layer_views(layer: LayerKV) -> list[np.ndarray]:
    if isinstance(layer, Member):
        stack = layer.stack
        return [_numpy(part)[layer.index] for part in (*stack.k, *stack.v)]
    return [_numpy(part) for part in (*layer.k, *layer.v)]


def _numpy(x: mx.array) -> Any:
    return np.array(x.view(mx.uint16) if x.dtype == mx.bfloat16 else x, copy=False)


def _as(x: mx.array, dtype: mx.Dtype) -> mx.array:
    """Bits of bfloat16 as such, then any number as `dtype`."""
    if x.dtype == mx.uint16 and dtype != mx.uint16:
        x = x.view(mx.bfloat16)
    return x if x.dtype == dtype else x.astype(dtype)
