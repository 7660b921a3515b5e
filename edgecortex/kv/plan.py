"""What one step feeds and what each of its tokens may see, worked out once for all layers."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from edgecortex.kv.context import Context
from edgecortex.kv.format import KVFormat
from edgecortex.kv.segment import KVSegment

HIDDEN = -1e30  # finite: a row that sees nothing of a part must not become NaN


@dataclass(frozen=True)
class Span:
    """A context's share of one step: its next tokens, from row `start` on."""

    context: Context
    token_ids: Sequence[int]
    start: int

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class StepPlan:
    """Who feeds what in one step. Every token is a row: single ones first, then the spans.

    `tokens` (T, 1) are their ids and `positions` (T,) their positions.
    """

    singles: Sequence[Span]
    spans: Sequence[Span]
    tokens: mx.array
    positions: mx.array

    @classmethod
    def build(cls, feed: Iterable[tuple[Context, Sequence[int]]]) -> "StepPlan":
        """Plans for (context, token ids) pairs; single tokens go first, in slot order."""
        feed = sorted(feed, key=lambda pair: (len(pair[1]) > 1, pair[0].slot))
        shares: list[Span] = []
        tokens: list[int] = []
        positions: list[int] = []
        for context, ids in feed:
            shares.append(Span(context, ids, len(tokens)))
            tokens.extend(ids)
            positions.extend(range(context.position, context.position + len(ids)))
        singles = [share for share in shares if share.num_tokens == 1]
        return cls(
            singles,
            shares[len(singles) :],
            mx.array(tokens)[:, None],
            mx.array(positions, dtype=mx.int32),
        )

    @property
    def shares(self) -> list[Span]:
        """Everyone's share, in row order."""
        return [*self.singles, *self.spans]

    def last_rows(self) -> mx.array:
        """The row of each share's last token."""
        return mx.array([share.start + share.num_tokens - 1 for share in self.shares])


@dataclass(frozen=True)
class RunView:
    """Sealed tokens and the single rows that see them.

    One segment for all of its rows, or several of equal length, one for each row. `chosen` are
    the rows as an array, None if they are all n in order; `mask` is (rows, L).
    """

    segments: tuple[KVSegment, ...]
    rows: Sequence[int]
    chosen: mx.array | None
    mask: mx.array | None = None


@dataclass(frozen=True)
class DecodeView:
    """What n single rows see in the layers of one window.

    `slots` and `columns` (n,) say where their own keys go, `in_order` that the slots are the
    first n; `row_mask` is (n, 1, 1, row).
    `merge_index` (n, P) names each row's partial results in the stack of all, or is None where
    every run is seen by every row.
    """

    slots: mx.array
    in_order: bool
    columns: mx.array
    row_mask: mx.array
    runs: Sequence[RunView]
    merge_index: mx.array | None

    @classmethod
    def build(
        cls, contexts: Sequence[Context], format: KVFormat, layer: int, window: int | None
    ) -> "DecodeView":
        """For the layers that slide `window`, of which `layer` is one."""
        slots = [context.slot for context in contexts]
        columns = [format.row_length(context.num_own) for context in contexts]
        row_mask = np.stack([_row_mask(c, format, window) for c in contexts])
        runs = _runs(contexts, layer, window)
        together = all(run.chosen is None for run in runs)
        return cls(
            mx.array(slots),
            slots == list(range(len(slots))),
            mx.array(columns),
            mx.array(row_mask[:, None, None]),
            runs,
            None if together else _merge_index(len(contexts), runs),
        )


@dataclass(frozen=True)
class BlockView:
    """The rows `start` to `stop` of a span that lie in one block, and what they see.

    Of the fresh tokens (sinks and row before the span, then the span) they see the sinks and
    `own_start` to `own_stop`; of the sealed ones `past_start` to `past_stop`.
    """

    start: int
    stop: int
    own_start: int
    own_stop: int
    own_mask: mx.array
    past_start: int
    past_stop: int
    past_mask: mx.array | None


@dataclass(frozen=True)
class SpanView:
    """A span cut into blocks. `filled` tokens stand in the row before it; of the fresh ones
    `num_sealed` past the sinks become sealed."""

    span: Span
    filled: int
    num_sealed: int
    blocks: Sequence[BlockView]

    @classmethod
    def build(cls, span: Span, format: KVFormat, layer: int, window: int | None) -> "SpanView":
        """For the layers that slide `window`, of which `layer` is one."""
        context, n = span.context, span.num_tokens
        filled = format.row_length(context.num_own)
        total = filled + n
        num_sealed = format.num_sealed(total)
        sealed_before = format.num_sealed(context.num_own)
        index = np.arange(total)
        positions = context.base + np.where(index < format.num_sinks, index, index + sealed_before)
        fresh = positions[format.num_sinks : format.num_sinks + num_sealed]
        past = np.concatenate([*_stored_positions(context, layer), fresh])
        seen_from = _seen_from(context, layer, len(past)) - context.num_own + filled
        blocks = [
            _block_view(
                first, stop, b, filled, positions, past, seen_from, num_sealed, format, window
            )
            for b, first, stop in _block_bounds(filled, total, format)
        ]
        return cls(span, filled, num_sealed, blocks)


def _block_bounds(filled: int, total: int, format: KVFormat) -> list[tuple[int, int, int]]:
    """(block, first, stop) in fresh indices of the new tokens; the sinks go with block 0."""
    bounds = []
    num_blocks = max(1, -(-(total - format.num_sinks) // format.block))
    for b in range(num_blocks):
        start = format.num_sinks + b * format.block if b else 0
        stop = min(total, format.num_sinks + (b + 1) * format.block)
        if max(start, filled) < stop:
            bounds.append((b, max(start, filled), stop))
    return bounds


def _block_view(
    first: int,
    stop: int,
    b: int,
    filled: int,
    positions: np.ndarray,
    past: np.ndarray,
    seen_from: np.ndarray,
    num_sealed: int,
    format: KVFormat,
    window: int | None,
) -> BlockView:
    own_start = format.num_sinks + b * format.block
    columns = np.concatenate(
        [np.arange(min(format.num_sinks, stop)), np.arange(min(own_start, stop), stop)]
    )
    rows = np.arange(first, stop)
    seen = columns[None] <= rows[:, None]
    past_stop = len(past) - num_sealed + b * format.block
    past, seen_from = past[:past_stop], seen_from[:past_stop]
    past_start, past_mask = 0, None
    if window is not None or (seen_from > first).any():
        past_seen = seen_from[None] <= rows[:, None]
        if window is not None:
            floor = positions[rows][:, None] - window
            seen &= positions[columns][None] > floor
            past_seen &= past[None] > floor
        past_start, past_mask = _visible(past_seen)
    return BlockView(
        first - filled,
        stop - filled,
        min(own_start, stop),
        stop,
        _additive(seen),
        past_start,
        past_stop,
        past_mask,
    )


def _visible(seen: np.ndarray) -> tuple[int, mx.array | None]:
    """The first column that any row sees, and the mask from there on if one is needed."""
    visible = seen.any(axis=0)
    start = int(visible.argmax()) if visible.any() else seen.shape[1]
    seen = seen[:, start:]
    return start, None if seen.all() else _additive(seen)


def _additive(seen: np.ndarray) -> mx.array:
    return mx.array(np.where(seen, 0.0, HIDDEN).astype(np.float32))


def _stored_positions(context: Context, layer: int) -> list[np.ndarray]:
    """The positions of the sealed tokens that a layer holds, by segment."""
    return [
        np.arange(segment.stop - segment.layers[layer].num_tokens, segment.stop)
        for segment in context.segments
    ]


def _seen_from(context: Context, layer: int, length: int) -> np.ndarray:
    """(length,): from which of the context's own tokens on each sealed token is seen, by number;
    only attached ones can be younger than those that see them."""
    numbers = np.zeros(length, np.int64)
    start = 0
    for laid in context.attached:
        stop = start + laid.segment.layers[layer].num_tokens
        numbers[start:stop], start = laid.at, stop
    return numbers


def _row_mask(context: Context, format: KVFormat, window: int | None) -> np.ndarray:
    """(row,): what the context's next token sees of its row, its own column included."""
    columns = np.arange(format.row)
    seen = columns <= format.row_length(context.num_own)
    if window is not None:
        index = np.where(
            columns < format.num_sinks, columns, columns + format.num_sealed(context.num_own)
        )
        seen &= context.base + index > context.position - window
    return np.where(seen, 0.0, HIDDEN).astype(np.float32)


def _runs(contexts: Sequence[Context], layer: int, window: int | None) -> list[RunView]:
    """Each distinct segment once, with the rows that see any of it.

    Segments that a single row sees go together with those of equal length and format: one call
    for all.
    """
    rows_of: dict[KVSegment, list[int]] = {}
    for row, context in enumerate(contexts):
        later = {laid.segment for laid in context.attached if laid.at > context.num_own}
        for segment in context.segments:
            if segment in later:
                continue
            if window is None or segment.stop > context.position - window + 1:
                rows_of.setdefault(segment, []).append(row)
    views, alone = [], defaultdict[tuple[KVFormat, int], list[tuple[KVSegment, int]]](list)
    for segment, rows in rows_of.items():
        mask = _run_mask(segment, [contexts[row] for row in rows], layer, window)
        if len(rows) == 1 and mask is None and segment.layers[layer].bias is None:
            held = segment.layers[layer]
            alone[held.format, held.num_tokens].append((segment, rows[0]))
        else:
            views.append(RunView((segment,), rows, _unless_all(rows, contexts), mask))
    for group in alone.values():
        for layer_group in _one_each(group):
            segments = tuple(segment for segment, _ in layer_group)
            rows = [row for _, row in layer_group]
            views.append(RunView(segments, rows, _unless_all(rows, contexts)))
    return views


def _one_each(group: list[tuple[KVSegment, int]]) -> list[list[tuple[KVSegment, int]]]:
    """Splits (segment, row) pairs, in row order, so that no part has a row twice."""
    parts: list[list[tuple[KVSegment, int]]] = []
    for pair in sorted(group, key=lambda pair: pair[1]):
        for part in parts:
            if part[-1][1] != pair[1]:
                part.append(pair)
                break
        else:
            parts.append([pair])
    return parts


def _unless_all(rows: Sequence[int], contexts: Sequence[Context]) -> mx.array | None:
    return None if len(rows) == len(contexts) else mx.array(list(rows))


def _run_mask(
    segment: KVSegment, contexts: Sequence[Context], layer: int, window: int | None
) -> mx.array | None:
    if window is None:
        return None
    stored = np.arange(segment.stop - segment.layers[layer].num_tokens, segment.stop)
    floor = np.array([context.position - window for context in contexts])
    seen = stored[None] > floor[:, None]
    return None if seen.all() else _additive(seen)


def _merge_index(num_rows: int, runs: Sequence[RunView]) -> mx.array:
    """(n, P): for each row its places in the stack of [own rows, run, run, …]; unused entries
    point one past the stack, at an empty partial."""
    places: list[list[int]] = [[row] for row in range(num_rows)]
    offset = num_rows
    for run in runs:
        for i, row in enumerate(run.rows):
            places[row].append(offset + i)
        offset += len(run.rows)
    width = max(map(len, places))
    return mx.array([place + [offset] * (width - len(place)) for place in places])
