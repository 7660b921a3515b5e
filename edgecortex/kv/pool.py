"""`BlockPool`: the one owner of KV memory."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile

import mlx.core as mx

from edgecortex.errors import BudgetError
from edgecortex.kv import books, runs
from edgecortex.kv.batch import BatchQuantizedKVCache
from edgecortex.kv.context import Attachment, Context
from edgecortex.kv.format import KVFormat
from edgecortex.kv.past import Pasts
from edgecortex.kv.plan import DecodeView, SpanView, StepPlan
from edgecortex.kv.readback import ReadBacks
from edgecortex.kv.segment import KVSegment


class BlockPool:
    """Contexts, their slots in the slabs, and segments with counted references, in a budget.

    Contexts that are not in use are kept in order of last use, and the oldest are let go when
    room is needed: `on_evict(context)` is called before its memory is freed.

    Args:
        windows: per layer the sliding window, or None.
        token_nbytes: per layer the bytes of one sealed token.
        row_nbytes: bytes of one agent's full-precision row over all layers.
        max_bytes: the budget.
        dense_from, keeps_read_back: how sealed runs are multiplied: see the cache.
    """

    def __init__(
        self,
        format: KVFormat,
        windows: Sequence[int | None],
        token_nbytes: Sequence[float],
        row_nbytes: int,
        max_bytes: int,
        dense_from: int,
        keeps_read_back: bool = False,
    ) -> None:
        self.format, self.windows, self.max_bytes = format, list(windows), max_bytes
        self.read_backs, self.pasts = ReadBacks(keeps_read_back), Pasts()
        self.caches = [
            BatchQuantizedKVCache(format, layer, window, dense_from, self.read_backs, self.pasts)
            for layer, window in enumerate(windows)
        ]
        self.slides = any(window is not None for window in windows)
        self.on_evict: Callable[[Context], None] = lambda context: None
        self._token_nbytes, self.row_nbytes = list(token_nbytes), row_nbytes
        self._by_slot: list[Context | None] = []
        self._reserved: dict[Context, int] = {}
        self._idle: OrderedDict[Context, None] = OrderedDict()
        self._segment_nbytes: dict[KVSegment, int] = {}
        self._fresh: list[KVSegment] = []
        self.num_freed = 0  # times that something was let go: there may be room since then

    # Accounting.

    @property
    def used_bytes(self) -> int:
        """Bytes of the slabs and of every distinct segment."""
        return len(self._by_slot) * self.row_nbytes + sum(self._segment_nbytes.values())

    @property
    def free_bytes(self) -> int:
        """What is neither used nor promised to a running answer."""
        return self.max_bytes - self.used_bytes - sum(self._reserved.values())

    def nbytes(self, context: Context) -> int:
        """Bytes that a context holds, shared segments in full."""
        return self.row_nbytes + sum(self._segment_nbytes[s] for s in context.segments)

    def growth(
        self, context: Context, num_tokens: int, kept: Collection[KVSegment] | None = None
    ) -> int:
        """Bytes that sealing up to `num_tokens` own tokens will add at most: beside what others
        hold too, which a window does not let go of. These are `kept` if that is given."""
        held = context.own_segments
        shared = sum(s.num_tokens for s in held if (s.refs > 1 if kept is None else s in kept))
        now, then = (self.format.num_sealed(n) - shared for n in (context.num_own, num_tokens))
        total = 0.0
        for window, nbytes in zip(self.windows, self._token_nbytes, strict=True):
            cap = then if window is None else window + self.format.block
            total += nbytes * (min(then, cap) - min(now, cap))
        return int(total)

    def check(self) -> None:
        """Counts everything anew: `books.check`."""
        books.check(self, self._by_slot, self._segment_nbytes)

    def contexts(self) -> list[Context]:
        """Every open context, in slot order."""
        return [context for context in self._by_slot if context is not None]

    # Contexts.

    def open(self) -> Context:
        """An empty context, in use.

        Raises:
            BudgetError: not even its row fits.
        """
        if None not in self._by_slot:
            self._grow()
        slot = self._by_slot.index(None)
        context = self._by_slot[slot] = Context(slot)
        return context

    def close(self, context: Context) -> None:
        """Frees a context's row and its references."""
        self._stop(context)
        for segment in context.segments:
            self._drop(segment)
        context.segments = []
        self._by_slot[context.slot] = None
        self._idle.pop(context, None)
        if len(self.contexts()) <= len(self._by_slot) // 2:
            self._repack()

    def fork(self, context: Context) -> Context:
        """A context with the same tokens: sealed segments shared, the row copied. Idle."""
        child = self.open()
        child.token_ids, child.base = list(context.token_ids), context.base
        child.attached = list(context.attached)
        for segment in context.segments:
            self.attach(child, segment)
        for cache in self.caches:
            cache.copy_row(context.slot, child.slot)
        self.release(child)
        return child

    def attach(self, context: Context, segment: KVSegment) -> None:
        """Adds a segment at the end of a context."""
        self._segment_nbytes.setdefault(segment, segment.nbytes)
        segment.refs += 1
        context.segments.append(segment)

    def lay(
        self, context: Context, segment: KVSegment, id: str, at: int | None = None
    ) -> Attachment:
        """Lets a context see a foreign segment, from its own token number `at` on (None: from
        the next one). Its own tokens and their positions stay as they are.

        Raises:
            ConfigError: layers of one window hold different numbers of tokens.
        """
        segment.check_lengths(self.windows)
        self.pasts.forget(context)
        laid = Attachment(segment, context.num_own if at is None else at, id)
        self.attach(context, segment)
        context.segments.insert(context.num_attached, context.segments.pop())
        context.attached.append(laid)
        return laid

    def lift(self, context: Context, id: str) -> None:
        """Takes an attachment back, and with it all own tokens that have seen it."""
        self.pasts.forget(context)
        index = [laid.id for laid in context.attached].index(id)
        self.truncate(context, context.attached[index].at)
        del context.attached[index]
        self._drop(context.segments.pop(index))

    def share(self, donor: Context, context: Context, num_tokens: int) -> bool:
        """Makes a context the first `num_tokens` tokens of another, the sinks and whole blocks,
        at no copy. False where a window has let go of some of them, or the other one runs and
        could not let go of them any more; nothing is changed then."""
        if self.slides and donor in self._reserved:
            return False
        segments = self._until(donor, donor.base + num_tokens)
        if segments is None:
            return False
        self._replace(context, segments)
        for cache in self.caches:
            cache.copy_row(donor.slot, context.slot)
        context.token_ids, context.base = donor.token_ids[:num_tokens], donor.base
        return True

    def restore(
        self,
        context: Context,
        token_ids: Sequence[int],
        segments: Sequence[KVSegment],
        rows: Sequence[tuple[mx.array, mx.array]],
    ) -> None:
        """Gives an empty context these tokens, sealed in `segments` and for the rest in `rows`:
        per layer keys and values of the sinks and the unsealed tokens."""
        for segment in segments:
            self.attach(context, segment)
        for cache, (k, v) in zip(self.caches, rows, strict=False):
            cache.write_row(context.slot, k, v)
        context.token_ids = list(token_ids)
        self._fresh += segments

    def truncate(self, context: Context, num_tokens: int) -> int:
        """Forgets own tokens past `num_tokens`; returns how many remain.

        Sealed blocks are cut at their ends, so fewer may remain; none where a sliding window
        has let go of what the cut would need.
        """
        sealed = self.format.num_sealed(context.num_own)
        if num_tokens >= self.format.num_sinks + sealed or num_tokens == context.num_own:
            del context.token_ids[num_tokens:]
            return context.num_own
        sinks, keep = self.format.num_sinks, self.format.num_sealed(num_tokens)
        own = self._until(context, context.base + sinks + keep) or []
        self._replace(context, [*context.segments[: context.num_attached], *own])
        del context.token_ids[min(num_tokens, sinks + keep if own else sinks) :]
        return context.num_own

    # Admission.

    def acquire(self, context: Context, num_tokens: int) -> bool:
        """Takes a context into use and promises room up to `num_tokens` own tokens; lets go of idle
        ones, the oldest first, if that makes room. False if there is none now."""
        self._idle.pop(context, None)
        self._reserved.pop(context, None)
        if self.growth(context, num_tokens) > self.free_bytes:
            self._make_room(context, num_tokens)
        need = self.growth(context, num_tokens)
        if need > self.free_bytes:
            self._idle[context] = None
            return False
        self._reserved[context] = need
        return True

    def _make_room(self, context: Context, num_tokens: int) -> None:
        """Lets go of others if that can be enough."""
        others = [c for c in self.contexts() if c not in self._idle and c is not context]
        kept = {segment for other in others for segment in other.segments}
        idle = books.idle_bytes(self, [*others, context], self._by_slot, self._segment_nbytes)
        if self.growth(context, num_tokens, kept) <= self.free_bytes + idle:
            while self.growth(context, num_tokens) > self.free_bytes and self._evict_one():
                pass

    def release(self, context: Context) -> None:
        """Puts a context to rest: it keeps its KV until room is needed."""
        self._stop(context)
        self._idle[context] = None
        self._idle.move_to_end(context)

    def _stop(self, context: Context) -> None:
        self.num_freed += 1
        self._reserved.pop(context, None)
        self.pasts.forget(context)

    @contextmanager
    def kept(self, context: Context) -> Iterator[None]:
        """Lets go of others only, should room be needed meanwhile."""
        resting = context in self._idle
        self._idle.pop(context, None)
        try:
            yield
        finally:
            if resting:
                self.release(context)

    # One step.

    def begin(self, plan: StepPlan) -> None:
        """Prepares every layer for a forward pass."""
        views: dict[int | None, tuple[DecodeView | None, list[SpanView]]] = {}
        in_full = 2 * self.row_nbytes // self.format.row  # at most, of a token
        self.pasts.begin(plan, in_full, self.free_bytes)
        self.read_backs.begin(self.max_bytes, self.free_bytes - self.pasts.nbytes)
        for cache in self.caches:
            if cache.window not in views:
                at = (self.format, cache.layer, cache.window)
                contexts = [share.context for share in plan.singles]
                single = DecodeView.build(contexts, *at) if contexts else None
                views[cache.window] = single, [SpanView.build(s, *at) for s in plan.spans]
            cache.begin(plan, *views[cache.window])

    def commit(self, plan: StepPlan) -> None:
        """Counts the fed tokens and attaches what the step sealed."""
        full = []
        for share in plan.shares:
            context = share.context
            sealed = [cache.sealed.pop(context, None) for cache in self.caches]
            start = context.base + self.format.num_sinks + self.format.num_sealed(context.num_own)
            context.token_ids.extend(share.token_ids)
            if layers := [layer for layer in sealed if layer is not None]:
                self._append(context, KVSegment(layers, start, layers[0].num_tokens))
            elif self.format.row_length(context.num_own) == self.format.num_sinks and (
                context.num_own > self.format.num_sinks
            ):
                full.append((context, start))
        if full:
            slots = mx.array([context.slot for context, _ in full])
            by_layer = [cache.seal_rows(slots) for cache in self.caches]
            for (context, start), own in zip(full, zip(*by_layer, strict=True), strict=True):
                self._append(context, KVSegment(own, start, self.format.block))

    def arrays(self) -> list[mx.array]:
        """The slabs, and the segments made since the last call, for evaluation."""
        fresh, self._fresh = self._fresh, []
        slabs = [array for cache in self.caches for array in cache.arrays()]
        traces = [c.trace for c in self.contexts() if c.trace]
        slabs += [array for trace in traces for array in trace.arrays()]
        return slabs + [array for segment in fresh if segment.refs for array in segment.arrays()]

    def _append(self, context: Context, segment: KVSegment) -> None:
        """Attaches a sealed segment, rearranging the newest ones that are the context's alone."""
        before = self.used_bytes
        alone = list(takewhile(lambda last: last.refs == 1, reversed(context.own_segments)))
        lengths = [last.num_tokens for last in alone]
        for last in alone[: runs.num_joined(lengths, segment.num_tokens, self.slides)]:
            context.segments.pop()
            self._drop(last)
            segment = last.joined(segment, self.windows)
        self._fresh += (pieces := self._pieces(segment))
        for piece in pieces:
            self.attach(context, piece)
        if context in self._reserved:
            grown = self.used_bytes - before
            self._reserved[context] = max(0, self._reserved[context] - grown)

    def _pieces(self, segment: KVSegment) -> list[KVSegment]:
        """A segment in runs; less what a sliding window has left behind."""
        if self.slides:
            return [segment.windowed(self.windows)]
        return segment.split(runs.sizes(segment.num_tokens, self.format.block, self.slides))

    def _drop(self, segment: KVSegment) -> None:
        segment.refs -= 1
        if segment.refs == 0:
            del self._segment_nbytes[segment]

    def _split(self, segment: KVSegment, stop: int) -> bool:
        """Makes two of a segment, at a position, for all who hold it."""
        if any(layer.num_tokens < segment.num_tokens for layer in segment.layers):
            return False
        parts = segment.split([stop - segment.start, segment.stop - stop])
        self._fresh += parts
        for context in self.contexts():
            if segment in context.segments:
                at = context.segments.index(segment)
                after = context.segments[at + 1 :]
                context.segments[at:] = []
                for part in parts:
                    self.attach(context, part)
                context.segments += after
                self._drop(segment)
        return True

    def _until(self, context: Context, stop: int) -> list[KVSegment] | None:
        """A context's own segments up to a position, where one is split if need be: copies of
        what others hold too may not fit. None where a window has let go of some of them."""
        for segment in context.own_segments:
            if segment.start < stop < segment.stop and not self._split(segment, stop):
                return None
        return [segment for segment in context.own_segments if segment.stop <= stop]

    def _replace(self, context: Context, segments: list[KVSegment]) -> None:
        old, context.segments = context.segments, []
        for segment in segments:
            self.attach(context, segment)
        for segment in old:
            self._drop(segment)

    def _evict_one(self) -> bool:
        if not self._idle:
            return False
        context = next(iter(self._idle))
        self.on_evict(context)
        self.close(context)
        return True

    def _grow(self) -> None:
        more = 1 + len(self._by_slot) // 32
        num_slots = more if more * self.row_nbytes <= self.free_bytes else 1
        need = num_slots * self.row_nbytes
        while need > self.free_bytes and self._evict_one():
            if None in self._by_slot:
                return
        if need > self.free_bytes:
            raise BudgetError(
                f"no room for one more agent: expected {need:,} bytes free of the KV budget of "
                f"{self.max_bytes:,}, got {self.free_bytes:,}; close agents or raise the budget"
            )
        self._by_slot += [None] * num_slots
        for cache in self.caches:
            cache.resize(len(self._by_slot))

    def _repack(self) -> None:
        """Moves the open contexts' rows together and frees the rest of the slabs."""
        contexts = self.contexts()
        order = mx.array([context.slot for context in contexts], dtype=mx.int32)
        for cache in self.caches:
            cache.reorder(order)
        self._by_slot = list(contexts)
        for slot, context in enumerate(contexts):
            context.slot = slot
