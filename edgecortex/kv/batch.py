"""`BatchQuantizedKVCache`: one layer's KV for all agents of a step."""

import math
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from edgecortex.kv import attention
from edgecortex.kv.attention import Run
from edgecortex.kv.context import Context
from edgecortex.kv.format import KVFormat
from edgecortex.kv.past import Pasts
from edgecortex.kv.plan import BlockView, DecodeView, RunView, SpanView, StepPlan
from edgecortex.kv.readback import ReadBacks
from edgecortex.kv.segment import LayerKV, rotate, rounded, row_dtype
from edgecortex.kv.stacks import Stacks

HEAD_START = 4  # layers: these are computed while Python works out the next ones


class BatchQuantizedKVCache:
    """One layer of the KV of many agents: a slab of full-precision rows, and sealed segments.

    Stands where mlx-lm expects a cache: `offset`, `make_mask`, `update_and_fetch`, `nbytes`. What
    concerns one agent (mlx-lm's `trim`, `extract`, `merge`, `state`) is its context's and the
    pool's: `truncate`, `fork`, `share`, `snapshot`.
    Attention goes through `attend`, which the model adapter calls in place of mlx-lm's own.
    Every token of a step is a batch row: keys arrive as (T, n_kv_heads, 1, head_dim).

    A slab is (slots, n_kv_heads, row, head_dim), a row being an agent's sinks and its unsealed
    tokens. Runs with at least `dense_from` query rows are read back and multiplied densely; those
    that `read_backs` keeps are in any case.
    """

    def __init__(
        self,
        format: KVFormat,
        layer: int,
        window: int | None,
        dense_from: int,
        read_backs: ReadBacks,
        pasts: Pasts,
    ) -> None:
        self.format, self.layer, self.window = format, layer, window
        self.dense_from, self._read_backs, self._pasts = dense_from, read_backs, pasts
        self.num_slots = 0
        self.num_attended = 0
        self.sealed: dict[Context, LayerKV] = {}
        self._k: mx.array | None = None
        self._v: mx.array | None = None
        self._new: tuple[mx.array, mx.array] | None = None
        self._plan: StepPlan | None = None
        self._decode_view: DecodeView | None = None
        self._span_views: Sequence[SpanView] = ()
        self._stacks = Stacks(layer)

    # The slab.

    @property
    def nbytes(self) -> int:
        """Bytes of the slab; segments count their own."""
        return sum(x.nbytes for x in self.arrays())

    def arrays(self) -> list[mx.array]:
        """The slab's arrays, for evaluation."""
        self._fit()
        return [x for x in (self._k, self._v) if x is not None]

    def resize(self, num_slots: int) -> None:
        """Promises `num_slots` rows: the slab grows when it is used next, once for all agents
        that have come by then."""
        self.num_slots = num_slots

    def _fit(self) -> None:
        """Gives the slab the rows that are promised."""
        missing = 0 if self._k is None else self.num_slots - self._k.shape[0]
        if missing:
            more = [(0, missing), (0, 0), (0, 0), (0, 0)]
            self._k, self._v = (None if x is None else mx.pad(x, more) for x in (self._k, self._v))

    def reorder(self, slots: mx.array) -> None:
        """Keeps these slots' rows, in this order; the slab is let go when none is left."""
        self._fit()
        self.num_slots = slots.size
        self._plan, self._decode_view, self._span_views = None, None, ()
        self._stacks.clear()
        self._k, self._v = (
            x[slots] if x is not None and slots.size else None for x in (self._k, self._v)
        )

    def copy_row(self, source: int, target: int) -> None:
        """Copies one slot's row onto another's."""
        for slab in self.arrays():
            slab[target] = slab[source]

    def write_row(self, slot: int, k: mx.array, v: mx.array) -> None:
        """Writes a slot's first columns: (n_kv_heads, L, head_dim), L at most the row."""
        self._make_slab(k, v)
        for slab, new in zip(self.arrays(), (k, v), strict=True):
            slab[slot, :, : new.shape[1]] = new

    def _make_slab(self, k: mx.array, v: mx.array) -> None:
        """For keys and values like these (n_kv_heads, …, head_dim)."""
        if self._k is None:
            shape = (self.num_slots, k.shape[0], self.format.row)
            dtype = row_dtype(self.format, k.dtype)
            self._k, self._v = (mx.zeros((*shape, x.shape[-1]), dtype) for x in (k, v))

    def shape(self) -> tuple[int, int, int, mx.Dtype]:
        """n_kv_heads, head_dim, v_head_dim and dtype of the rows, once something was fed."""
        k, v = self.arrays()
        return k.shape[1], k.shape[3], v.shape[3], k.dtype

    # mlx-lm's side.

    @property
    def offset(self) -> mx.array:
        """The position of each row, (T,)."""
        assert self._plan is not None
        return self._plan.positions

    def make_mask(self, *_: object, **__: object) -> None:
        """Every row attends for itself: the model needs no mask."""

    def update_and_fetch(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        """Takes the step's keys and values and writes those of the single rows.

        They are returned as they came: `attend` reads the cache itself.
        """
        k = rotate(k) if self.format.rotate_keys else k
        v = rotate(v) if self.format.rotate_values else v
        k, v = rounded(k, self.format), rounded(v, self.format)
        self._make_slab(k[0], v[0])
        if (view := self._decode_view) is not None:
            n = view.slots.shape[0]
            for slab, new in zip(self.arrays(), (k, v), strict=True):
                slab[view.slots, :, view.columns] = new[:n, :, 0]
        self._new = (k, v)
        return k, v

    # One step.

    def begin(
        self,
        plan: StepPlan,
        decode_view: DecodeView | None,
        span_views: Sequence[SpanView],
    ) -> None:
        """Sets what the coming forward pass feeds and what it sees."""
        self._plan, self._decode_view, self._span_views = plan, decode_view, span_views
        self.sealed = {}
        self._stacks.begin()

    def attend(self, q: mx.array, scale: float) -> mx.array:
        """q (T, n_heads, 1, head_dim) over all that each row sees: (T, n_heads, 1, v_head_dim).

        Spans are written to the slab here, and their complete blocks put into `sealed`.
        """
        self.num_attended += 1
        num_heads = self.arrays()[0].shape[1]
        rows = q.reshape(q.shape[0], num_heads, -1, q.shape[-1])
        rows = (rotate(rows) if self.format.rotate_keys else rows) * (scale * math.log2(math.e))
        out = []
        if self._decode_view is not None:
            n = self._decode_view.slots.shape[0]
            out.append(self._decode(rows[:n], self._decode_view))
            self._trace(rows)
        for view in self._span_views:
            start = view.span.start
            span_q = rows[start : start + view.span.num_tokens].transpose(1, 2, 0, 3)
            if trace := view.span.context.trace:
                trace.add(self.layer, span_q)
            attended = self._prefill(span_q, view)
            out.append(attended.transpose(2, 0, 1, 3))
        self._new = None
        joined = out[0] if len(out) == 1 else mx.concatenate(out)
        joined = rotate(joined) if self.format.rotate_values else joined
        if self.layer % HEAD_START == HEAD_START - 1:
            mx.async_eval(joined)
        return joined.reshape(*q.shape[:3], -1)

    def _trace(self, rows: mx.array) -> None:
        """Keeps the queries of single rows whose context wants it."""
        assert self._plan is not None
        for i, share in enumerate(self._plan.singles):
            if trace := share.context.trace:
                trace.add(self.layer, rows[i, :, :, None])

    def seal_rows(self, slots: mx.array) -> list[LayerKV]:
        """Seals the full blocks in these slots' rows, a run for each."""
        sinks = self.format.num_sinks
        k, v = (slab[slots, :, sinks:].swapaxes(0, 1) for slab in self.arrays())
        k, v = (x.reshape(x.shape[0], -1, x.shape[-1]) for x in (k, v))
        run, block = LayerKV.seal(k, v, self.format), self.format.block
        return [run.cut(i, i + block) for i in range(0, run.num_tokens, block)]

    def _decode(self, q: mx.array, view: DecodeView) -> mx.array:
        row_k, row_v = self.arrays()
        chosen = slice(view.slots.shape[0]) if view.in_order else view.slots
        row_k, row_v = (x[chosen].astype(q.dtype) for x in (row_k, row_v))
        runs = [self._run(run, q) for run in view.runs]
        return attention.decode(q, row_k, row_v, view.row_mask, runs, view.merge_index)

    def _run(self, view: RunView, q: mx.array) -> Run:
        groups, head_dim = q.shape[2:]
        stacked = len(view.segments) > 1
        num_rows = groups if stacked else groups * len(view.rows)
        segments = view.segments
        layer = self._stacks.of(segments) if stacked else segments[0].layers[self.layer]
        layer = self._read_backs.of(layer, q.dtype, head_dim)
        return Run(layer, view.chosen, view.mask, stacked, num_rows >= self.dense_from)

    def _prefill(self, q: mx.array, view: SpanView) -> mx.array:
        """q (n_kv_heads, G, n, head_dim) of one span."""
        k, v = self._extend_row(view)
        past = self._past(view.span.context, q.dtype, q.shape[-1])
        bias = self._bias(view.span.context)
        out = []
        for block in view.blocks:
            sinks = min(self.format.num_sinks, block.own_start)
            own_k, own_v = (
                mx.concatenate([x[:, :sinks], x[:, block.own_start : block.own_stop]], axis=1)
                for x in (k, v)
            )
            out.append(
                attention.prefill(
                    q[:, :, block.start : block.stop],
                    attention.cut(past, block.past_start, block.past_stop),
                    (own_k.swapaxes(-1, -2), own_v),
                    _added(block, bias),
                    block.own_mask,
                )
            )
        return out[0] if len(out) == 1 else mx.concatenate(out, axis=2)

    def _extend_row(self, view: SpanView) -> tuple[mx.array, mx.array]:
        """The row's tokens followed by the span's; seals the complete blocks, keeps the rest."""
        span, sinks = view.span, self.format.num_sinks
        slot = span.context.slot
        fresh = []
        assert self._new is not None
        for slab, new in zip(self.arrays(), self._new, strict=True):
            own = new[span.start : span.start + span.num_tokens, :, 0].swapaxes(0, 1)
            row = slab[slot, :, : view.filled].astype(own.dtype)
            fresh.append(mx.concatenate([row, own], axis=1))
        stop = sinks + view.num_sealed
        if view.num_sealed:
            k, v = (x[:, sinks:stop] for x in fresh)
            self.sealed[span.context] = LayerKV.seal(k, v, self.format)
        for slab, x in zip(self.arrays(), fresh, strict=True):
            row = mx.concatenate([x[:, :sinks], x[:, stop:]], axis=1) if view.num_sealed else x
            slab[slot, :, : row.shape[1]] = row
        return fresh[0], fresh[1]

    def read(
        self, context: Context, dtype: mx.Dtype, first: int = 0
    ) -> tuple[mx.array, mx.array, np.ndarray]:
        """What the layer holds of a context's own tokens: keys (n_kv_heads, L, head_dim) and
        values (n_kv_heads, L, v_head_dim), still rotated, and the tokens' numbers (L,). Of sealed
        runs only those that reach past number `first`."""
        sinks = min(self.format.num_sinks, context.num_own)
        length = self.format.row_length(context.num_own)
        k, v = (x[context.slot, :, :length].astype(dtype) for x in self.arrays())
        sealed = [segment.layers[self.layer] for segment in context.own_segments]
        rest = length - sinks + sum(layer.num_tokens for layer in sealed)
        while sealed and rest - sealed[0].num_tokens >= context.num_own - first:
            rest -= sealed.pop(0).num_tokens
        keys = [layer.keys(dtype, k.shape[-1]) for layer in sealed]
        values = [layer.values(dtype) for layer in sealed]
        numbers = np.concatenate(
            [np.arange(sinks), np.arange(context.num_own - rest, context.num_own)]
        )
        seen = slice(None)
        if self.window is not None:
            seen = slice(int((numbers <= context.num_own - self.window).sum()), None)
        k, v = (
            mx.concatenate([x[:, :sinks], *parts, x[:, sinks:]], axis=1)[:, seen]
            for x, parts in ((k, keys), (v, values))
        )
        return k, v, numbers[seen]

    def _bias(self, context: Context) -> mx.array | None:
        """What is added to the scores of all that the context has sealed, (n_kv_heads, 1, 1, L),
        or None where that is nothing."""
        layers = [segment.layers[self.layer] for segment in context.segments]
        if all(layer.bias is None for layer in layers):
            return None
        heads, own = self.arrays()[0].shape[1], self.sealed.get(context)
        parts = [
            mx.zeros((heads, layer.num_tokens)) if layer.bias is None else layer.bias
            for layer in [*layers, *([own] if own else [])]
        ]
        return mx.concatenate(parts, axis=1)[:, None, None]

    def _past(self, context: Context, dtype: mx.Dtype, head_dim: int) -> list[attention.KV]:
        """Everything sealed that the context holds, read back, the span's own blocks last: the
        longest run as it is, and what comes before and after it."""
        layers = [segment.layers[self.layer] for segment in context.segments]
        past = self._pasts.of(context, self.layer)
        if past and past.num_tokens != sum(layer.num_tokens for layer in layers):
            past = self._pasts.renew(context, self.layer)
        if past and past.num_tokens:
            layers = []
        if context in self.sealed:
            layers.append(self.sealed[context])
        read = [(layer.columns(dtype, head_dim), layer.values(dtype)) for layer in layers]
        if past:
            for pair in read:
                past.append(*pair)
            return [past.keys_and_values()] if past.num_tokens else []
        at = max(range(len(read)), key=lambda i: read[i][1].shape[1], default=0)
        groups = read[:at], read[at : at + 1], read[at + 1 :]
        return [_joined(group) for group in groups if group]


def _joined(runs: Sequence[attention.KV]) -> attention.KV:
    if len(runs) == 1:
        return runs[0]
    keys, values = (list(parts) for parts in zip(*runs, strict=True))
    return mx.concatenate(keys, axis=2), mx.concatenate(values, axis=1)


def _added(block: BlockView, bias: mx.array | None) -> mx.array | None:
    """What is added to the scores of the sealed tokens that a block sees."""
    if bias is None:
        return block.past_mask
    bias = bias[..., block.past_start : block.past_stop]
    return bias if block.past_mask is None else bias + block.past_mask
