"""Exact attention over rows in full precision and sealed segments together.

Shapes as in the segment module; G is the number of query heads per KV head. Queries come scaled,
by log2(e) besides: on a CPU powers of two are faster than exponentials. Softmax runs over
everything a token sees, whatever it is stored in: partial results carry their maximum and their
sum, and are merged (online softmax, Milakov & Gimelshein, arXiv 1805.02867).
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import mlx.core as mx

from edgecortex.cpu import weights
from edgecortex.kv.plan import HIDDEN
from edgecortex.kv.segment import LayerKV

KV = tuple[mx.array, mx.array]
"""Keys (n_kv_heads, head_dim, L) and values (n_kv_heads, L, v_head_dim) of a run."""
PIECE = 4096  # sealed tokens that a prompt attends at once: scores of all of them may be too many


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

    @property
    def num_tokens(self) -> int:
        """L."""
        return self.layer.num_tokens

    def scores(self, q: mx.array) -> mx.array:
        """q (m, n_kv_heads, G, head_dim) times the keys: (m, n_kv_heads, G, L)."""
        scores = self._through(self.layer.scores, q).astype(mx.float32)
        return scores if self.mask is None else scores + self.mask[:, None, None]

    def weighted(self, p: mx.array) -> mx.array:
        """p (m, n_kv_heads, G, L) times the values: (m, n_kv_heads, G, v_head_dim)."""
        return self._through(self.layer.weighted, p)

    def partial(self, q: mx.array) -> Partial:
        """The rows' attention over this run alone.

        Of a run that rows share, scores stay (n_kv_heads, m * G, L), as they are computed.
        """
        if self.stacked or q.shape[0] == 1:
            return _partial(self.scores(q), self.weighted, q.dtype)
        scores = self.layer.scores(_by_head(q), self.dense).astype(mx.float32)
        if self.mask is not None:
            mask = mx.repeat(self.mask, q.shape[2], axis=0)
            scores = scores + mask
        weighted = partial(self.layer.weighted, dense=self.dense)
        return Partial(*(_by_row(x, q) for x in _partial(scores, weighted, q.dtype)))

    def _through(self, product: Callable[[mx.array, bool], mx.array], x: mx.array) -> mx.array:
        if self.stacked or x.shape[0] == 1:
            return product(x, self.dense)
        return _by_row(product(_by_head(x), self.dense), x)


def _by_head(x: mx.array) -> mx.array:
    """(m, n_kv_heads, G, C) to (n_kv_heads, m * G, C)."""
    m, heads, groups, width = x.shape
    return x.swapaxes(0, 1).reshape(heads, m * groups, width)


def _by_row(x: mx.array, like: mx.array) -> mx.array:
    """(n_kv_heads, m * G, C) to (m, n_kv_heads, G, C), with the m and G of `like`."""
    m, heads, groups, _ = like.shape
    return x.reshape(heads, m, groups, -1).swapaxes(0, 1)


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
    if merge_index is None and not any(run.dense for run in runs):
        return _decode_together(q, scores, row_v, runs)
    partials = [_partial(scores, lambda p: p @ row_v, q.dtype)]
    partials += [run.partial(q if run.rows is None else q[run.rows]) for run in runs]
    return _merge(partials, merge_index, q.dtype)


def _decode_together(
    q: mx.array, row_scores: mx.array, row_v: mx.array, runs: Sequence[Run]
) -> mx.array:
    """All rows see all runs: one softmax over the joined scores."""
    if not runs:
        out, _, total = _partial(row_scores, lambda p: p @ row_v, q.dtype)
        return (out / total).astype(q.dtype)
    stops = list(itertools.accumulate(run.num_tokens for run in runs))

    def weighted(p: mx.array) -> mx.array:
        *pieces, own = mx.split(p, stops, axis=-1)
        out = own @ row_v
        for run, piece in zip(runs, pieces, strict=True):
            out = out + run.weighted(piece)
        return out

    joined = mx.concatenate([*(run.scores(q) for run in runs), row_scores], axis=-1)
    out, _, total = _partial(joined, weighted, q.dtype)
    return (out / total).astype(q.dtype)


def _partial(
    scores: mx.array, weighted: Callable[[mx.array], mx.array], dtype: mx.Dtype
) -> Partial:
    powers, top, total = weights(scores)
    return Partial(weighted(powers.astype(dtype)), top, total)


def _merge(partials: Sequence[Partial], index: mx.array | None, dtype: mx.Dtype) -> mx.array:
    """Merges each row's partials, found by `index`, or all of equal rows if it is None."""
    columns = []
    for stack, empty in zip(zip(*partials, strict=True), (0.0, HIDDEN, 0.0), strict=True):
        if index is None:
            columns.append(mx.stack(list(stack), axis=1))
        else:  # the entry one past the stack is empty
            rows = mx.pad(
                mx.concatenate(list(stack)), [(0, 1), (0, 0), (0, 0), (0, 0)], constant_values=empty
            )
            columns.append(rows[index])
    out, top, total = columns
    weight = mx.power(2, top - top.max(axis=1, keepdims=True))
    return ((out * weight).sum(axis=1) / (total * weight).sum(axis=1)).astype(dtype)


def prefill(
    q: mx.array,
    past: Sequence[KV],
    own: KV,
    past_mask: mx.array | None,
    own_mask: mx.array,
) -> mx.array:
    """New tokens of one block over everything sealed before it, the sinks and their own block:
    piece by piece, merged as partial results are.

    Args:
        q: (n_kv_heads, G, n, head_dim).
        past: sealed runs of P tokens together, read back.
        own: the others, in full precision, C tokens.
        past_mask: (n, P) or as the scores (n_kv_heads, G, n, P), added to them, or None.
        own_mask: (n, C), likewise.

    Returns: (n_kv_heads, G, n, v_head_dim), still rotated.
    """
    heads, groups, n, dim = q.shape
    flat = q.reshape(heads, groups * n, dim)
    top, total, out = mx.full((heads, groups, n, 1), HIDDEN), mx.array(0.0), mx.array(0.0)
    for (keys, values), mask in [(own, own_mask), *_pieces(past, past_mask)]:
        scores = _grouped(flat @ keys, groups).astype(mx.float32)
        scores = scores if mask is None else scores + mask
        before, (p, top, added) = top, weights(scores, top)
        kept = mx.power(2, before - top)
        total = total * kept + added
        p = p.astype(q.dtype).reshape(heads, groups * n, -1)
        out = out * kept + _grouped(p @ values, groups)
    return (out / total).astype(q.dtype)


def cut(runs: Sequence[KV], start: int, stop: int) -> list[KV]:
    """Tokens `start` to `stop` of runs that follow one another."""
    found, first = [], 0
    for keys, values in runs:
        length = values.shape[1]
        at = slice(max(0, start - first), min(length, stop - first))
        if at.stop > at.start:
            found.append((keys[..., at], values[:, at]))
        first += length
    return found


def _pieces(past: Sequence[KV], mask: mx.array | None) -> Iterator[tuple[KV, mx.array | None]]:
    """Sealed runs and their masks, at most `PIECE` tokens at a time."""
    first = 0
    for run in past:
        length = run[1].shape[1]
        for start in range(0, length, PIECE):
            piece = cut([run], start, start + PIECE)[0]
            at = slice(first + start, first + min(length, start + PIECE))
            yield piece, None if mask is None else mask[..., at]
        first += length


def _grouped(x: mx.array, groups: int) -> mx.array:
    """(n_kv_heads, G * n, C) to (n_kv_heads, G, n, C)."""
    return x.reshape(x.shape[0], groups, -1, x.shape[-1])
