"""Exact attention over rows in full precision and sealed segments together.

Shapes as in the segment module; G is the number of query heads per KV head. Queries come
scaled. Softmax runs over everything a token sees, whatever it is stored in: partial results
carry their maximum and their sum, and are merged (online softmax, Milakov & Gimelshein,
arXiv 1805.02867).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from edgecortex.kv.plan import HIDDEN
from edgecortex.kv.segment import LayerKV


class Partial(NamedTuple):
    """Unnormalised output (n_kv_heads, R, v_head_dim), maximum and sum (n_kv_heads, R, 1)."""

    out: mx.array
    top: mx.array
    total: mx.array


@dataclass(frozen=True)
class Run:
    """One layer's sealed tokens and the decode rows that see them.

    `rows` None means all of them in order. `mask` (rows, L) is added to the scores where a
    sliding window hides a part of the run. `dense` reads the run back first.
    """

    layer: LayerKV
    rows: mx.array | None
    mask: mx.array | None
    dense: bool


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
    partials = [_attend_rows(scores, row_v), *(_attend_run(q, run) for run in runs)]
    return _merge(partials, merge_index, q)


def _decode_together(
    q: mx.array, row_scores: mx.array, row_v: mx.array, runs: Sequence[Run]
) -> mx.array:
    """All rows see all runs: one softmax over the joined scores."""
    n = q.shape[0]
    flat = _to_heads(q)
    scores = [*(_run_scores(flat, run, q.shape[2]) for run in runs), _to_heads(row_scores)]
    p = mx.softmax(mx.concatenate(scores, axis=-1), axis=-1).astype(q.dtype)
    stops = list(itertools.accumulate(run.layer.num_tokens for run in runs))
    *pieces, own = mx.split(p, stops, axis=-1)
    out = _from_heads(own, n) @ row_v
    for run, piece in zip(runs, pieces, strict=True):
        out = out + _from_heads(run.layer.weighted(piece, run.dense), n)
    return out


def _run_scores(flat: mx.array, run: Run, groups: int) -> mx.array:
    scores = run.layer.scores(flat, run.dense).astype(mx.float32)
    return scores if run.mask is None else scores + mx.repeat(run.mask, groups, axis=0)


def _attend_run(q: mx.array, run: Run) -> Partial:
    flat = _to_heads(q if run.rows is None else q[run.rows])
    scores = _run_scores(flat, run, q.shape[2])
    top = scores.max(axis=-1, keepdims=True)
    p = mx.exp(scores - top)
    out = run.layer.weighted(p.astype(q.dtype), run.dense)
    return Partial(out, top, p.sum(axis=-1, keepdims=True))


def _attend_rows(scores: mx.array, row_v: mx.array) -> Partial:
    top = scores.max(axis=-1, keepdims=True)
    p = mx.exp(scores - top)
    partial = (p.astype(row_v.dtype) @ row_v, top, p.sum(axis=-1, keepdims=True))
    return Partial(*(_to_heads(x) for x in partial))


def _merge(partials: Sequence[Partial], index: mx.array, q: mx.array) -> mx.array:
    """Merges each row's partials; the row one past the stack is empty."""
    heads, groups = q.shape[1:3]
    columns = []
    for stack, empty in zip(zip(*partials, strict=True), (0.0, HIDDEN, 0.0), strict=True):
        rows = mx.pad(
            mx.concatenate(stack, axis=1), [(0, 0), (0, groups), (0, 0)], constant_values=empty
        )
        columns.append(rows.reshape(heads, -1, groups, rows.shape[-1])[:, index])
    out, top, total = columns
    weight = mx.exp(top - top.max(axis=2, keepdims=True))
    merged = (out * weight).sum(axis=2) / (total * weight).sum(axis=2)
    return merged.astype(q.dtype).swapaxes(0, 1)


def _to_heads(x: mx.array) -> mx.array:
    """(n, n_kv_heads, G, C) to (n_kv_heads, n * G, C)."""
    n, heads, groups, width = x.shape
    return x.swapaxes(0, 1).reshape(heads, n * groups, width)


def _from_heads(x: mx.array, n: int) -> mx.array:
    """(n_kv_heads, n * G, C) to (n, n_kv_heads, G, C)."""
    heads, rows, width = x.shape
    return x.reshape(heads, n, rows // n, width).swapaxes(0, 1)


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
