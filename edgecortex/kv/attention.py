"""Exact attention over rows in full precision and sealed segments together.

Shapes as in the segment module; G is the number of query heads per KV head. Queries come
scaled. Softmax runs over everything a token sees, whatever it is stored in: partial results
carry their maximum and their sum, and are merged (online softmax, Milakov & Gimelshein,
arXiv 1805.02867).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from edgecortex.kv.plan import HIDDEN
from edgecortex.kv.segment import LayerKV


class Partial(NamedTuple):
    """Unnormalised output (m, n_kv_heads, G, v_head_dim), maximum and sum (m, n_kv_heads, G, 1)."""

    out: mx.array
    top: mx.array
    total: mx.array


@dataclass(frozen=True)
class Run:
    """Sealed tokens of one layer and the m decode rows that see them.

    `layer` is one run for all its rows, or, when `stacked`, a run of equal length for each row
    along a leading axis. `rows` None means all rows in order. `mask` (m, L) is added to the
    scores where a sliding window hides a part. `dense` reads the run back first.
    """

    layer: LayerKV
    rows: mx.array | None
    mask: mx.array | None
    stacked: bool
    dense: bool

    def scores(self, q: mx.array) -> mx.array:
        """q (m, n_kv_heads, G, head_dim) times the keys: (m, n_kv_heads, G, L)."""
        scores = self._through(self.layer.scores, q).astype(mx.float32)
        return scores if self.mask is None else scores + self.mask[:, None, None]

    def weighted(self, p: mx.array) -> mx.array:
        """p (m, n_kv_heads, G, L) times the values: (m, n_kv_heads, G, v_head_dim)."""
        return self._through(self.layer.weighted, p)

    def _through(self, product: Callable[[mx.array, bool], mx.array], x: mx.array) -> mx.array:
        if self.stacked or x.shape[0] == 1:
            return product(x, self.dense)
        m, heads, groups, width = x.shape
        out = product(x.swapaxes(0, 1).reshape(heads, m * groups, width), self.dense)
        return out.reshape(heads, m, groups, -1).swapaxes(0, 1)


def decode(
    q: mx.array,
    row_k: mx.array,
    row_v: mx.array,
    row_mask: mx.array,
    runs: Sequence[Run],
    merge_index: mx.array | None,
) -> mx.array:
    """One new token for each of n agents.

    Args:
        q: (n, n_kv_heads, G, head_dim).
        row_k, row_v: full-precision rows (n, n_kv_heads, row, head_dim or v_head_dim).
        row_mask: (n, 1, 1, row), added to the scores.
        runs: sealed runs, each attended once for all its rows.
        merge_index: as in `DecodeView`.

    Returns: (n, n_kv_heads, G, v_head_dim), still rotated.
    """
    scores = (q @ row_k.swapaxes(-1, -2) + row_mask).astype(mx.float32)
    if not runs:
        return mx.softmax(scores, axis=-1).astype(q.dtype) @ row_v
    if merge_index is None:
        return _decode_together(q, scores, row_v, runs)
    partials = [_partial(scores, lambda p: p @ row_v, q.dtype)]
    for run in runs:
        run_q = q if run.rows is None else q[run.rows]
        partials.append(_partial(run.scores(run_q), run.weighted, q.dtype))
    return _merge(partials, merge_index, q.dtype)


def _decode_together(
    q: mx.array, row_scores: mx.array, row_v: mx.array, runs: Sequence[Run]
) -> mx.array:
    """All rows see all runs: one softmax over the joined scores."""
    joined = mx.concatenate([*(run.scores(q) for run in runs), row_scores], axis=-1)
    p = mx.softmax(joined, axis=-1).astype(q.dtype)
    stops = list(itertools.accumulate(run.layer.num_tokens for run in runs))
    *pieces, own = mx.split(p, stops, axis=-1)
    out = own @ row_v
    for run, piece in zip(runs, pieces, strict=True):
        out = out + run.weighted(piece)
    return out


def _partial(
    scores: mx.array, weighted: Callable[[mx.array], mx.array], dtype: mx.Dtype
) -> Partial:
    top = scores.max(axis=-1, keepdims=True)
    p = mx.exp(scores - top)
    return Partial(weighted(p.astype(dtype)), top, p.sum(axis=-1, keepdims=True))


def _merge(partials: Sequence[Partial], index: mx.array, dtype: mx.Dtype) -> mx.array:
    """Merges each row's partials; the entry one past the stack is empty."""
    columns = []
    for stack, empty in zip(zip(*partials, strict=True), (0.0, HIDDEN, 0.0), strict=True):
        rows = mx.pad(
            mx.concatenate(list(stack)), [(0, 1), (0, 0), (0, 0), (0, 0)], constant_values=empty
        )
        columns.append(rows[index])
    out, top, total = columns
    weight = mx.exp(top - top.max(axis=1, keepdims=True))
    return ((out * weight).sum(axis=1) / (total * weight).sum(axis=1)).astype(dtype)


def prefill(
    q: mx.array,
    past: tuple[mx.array, mx.array] | None,
    own: tuple[mx.array, mx.array],
    past_mask: mx.array | None,
    own_mask: mx.array,
) -> mx.array:
    """New tokens of one block over everything sealed before it, the sinks and their own block.

    Args:
        q: (n_kv_heads, G, n, head_dim), scaled by log2(e) besides.
        past: sealed keys and values read back, each (n_kv_heads, P, head_dim or v_head_dim).
        own: keys and values in full precision, each (n_kv_heads, C, head_dim or v_head_dim).
        past_mask: (n, P), added to the scores, or None. own_mask: (n, C), likewise.

    Returns: (n_kv_heads, G, n, v_head_dim), still rotated.
    """
    heads, groups, n, dim = q.shape
    flat = q.reshape(heads, groups * n, dim)
    runs = [(own, own_mask)] if past is None else [(own, own_mask), (past, past_mask)]
    scores = []
    for (keys, _), mask in runs:
        s = _grouped(flat @ keys.swapaxes(-1, -2), groups).astype(mx.float32)
        scores.append(s if mask is None else s + mask)
    top = scores[0].max(axis=-1, keepdims=True)
    for s in scores[1:]:
        top = mx.maximum(top, s.max(axis=-1, keepdims=True))
    out, total = mx.array(0.0), mx.array(0.0)
    for s, ((_, values), _) in zip(scores, runs, strict=True):
        p = mx.power(2, s - top)
        total = total + p.sum(axis=-1, keepdims=True)
        p = p.astype(q.dtype).reshape(heads, groups * n, -1)
        out = out + _grouped(p @ values, groups)
    return (out / total).astype(q.dtype)


def _grouped(x: mx.array, groups: int) -> mx.array:
    """(n_kv_heads, G * n, C) to (n_kv_heads, G, n, C)."""
    return x.reshape(x.shape[0], groups, -1, x.shape[-1])
