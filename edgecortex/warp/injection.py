"""Referential injection: a thought's KV as a segment that a context sees beside its own tokens
(Warp-Cortex, section 3.6). Nothing is visible, and no position moves."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from hashlib import blake2b

import mlx.core as mx
import numpy as np

from edgecortex.errors import BudgetError, ConfigError
from edgecortex.kv.context import Context
from edgecortex.kv.pool import BlockPool
from edgecortex.kv.segment import KVSegment, LayerKV, rotate
from edgecortex.runner import ModelRunner

MODES = ("forward", "graft")


def check_mode(mode: str) -> None:
    """
    Raises:
        ConfigError: no such mode.
    """
    if mode not in MODES:
        raise ConfigError(f"mode must be {' or '.join(MODES)}, got {mode!r}")


class Reading:
    """Reads a thought over all that a context holds, as if it came next; the context may go on
    meanwhile. `reader` is a copy of it, with room for the thought.

    Raises:
        BudgetError: there is no room for a copy of the context's row.
    """

    def __init__(self, runner: ModelRunner, context: Context, token_ids: Sequence[int]) -> None:
        self.token_ids, self._runner = list(token_ids), runner
        self._first, self._marks = context.num_own, context.marks
        with runner.pool.kept(context):
            self.reader, self._open = runner.pool.fork(context), True
            try:
                with_room(runner.pool, self.reader, self._first + len(token_ids))
            except BudgetError:
                self.close()
                raise

    def all_at_once(self) -> None:
        """Reads the thought."""
        self._runner.run([(self.reader, self.token_ids)])

    def is_of(self, context: Context) -> bool:
        """Whether the context still holds what the thought is read over, and nothing foreign
        besides; and the copy is still there."""
        known = slice(self._first)
        same = self._open and context.token_ids[known] == self.reader.token_ids[known]
        return same and context.marks == self._marks

    def segment(self, context: Context) -> KVSegment:
        """What was read, at virtual positions: those before the first token, or before the
        thoughts that are there.

        Nothing else stands there. At positions that the context's own tokens have too, heads that
        look at the previous token would see two of them, in the thought and after it.
        """
        with self._runner.pool.kept(context):
            return moved(self._runner, self.reader, self._first, context)

    def close(self) -> None:
        """Lets the copy go. Twice is harmless."""
        if self._open:
            self._open = False
            self._runner.pool.close(self.reader)


def forward(runner: ModelRunner, context: Context, token_ids: Sequence[int]) -> KVSegment:
    """A thought read over a context, all at once.

    Raises:
        BudgetError: there is no room for a copy of the context's row.
    """
    with closing(Reading(runner, context, token_ids)) as reading:
        reading.all_at_once()
        return reading.segment(context)


def moved(runner: ModelRunner, source: Context, first: int, target: Context) -> KVSegment:
    """What `source` holds from its own token `first` on, at the virtual positions that are next
    in `target`. Where a model's keys cannot be turned they stay where they were."""
    taken = [laid.segment.start for laid in target.attached]
    start = min([target.base, *taken]) - (source.num_own - first)
    by = start - source.base - first if runner.keys_turn else 0
    return gather(runner, source, first, by)


def with_room(pool: BlockPool, context: Context, num_tokens: int) -> None:
    """Takes a context into use, with room for `num_tokens` own tokens.

    Raises:
        BudgetError: there is none.
    """
    if not pool.acquire(context, num_tokens):
        raise BudgetError(f"no room to read a thought: {pool.free_bytes:,} bytes of KV are free")


def gather(runner: ModelRunner, context: Context, first: int, turn_by: int = 0) -> KVSegment:
    """A context's own tokens from number `first` on, copied into one segment, `turn_by` positions
    further on than they were; a layer with a window has what that holds."""
    layers, format = [], runner.pool.format
    for cache in runner.pool.caches:
        k, v, numbers = cache.read(context, mx.float32, first)
        start, dtype = int((numbers < first).sum()), cache.arrays()[0].dtype
        k, v = k[:, start:], v[:, start:]
        if turn_by:
            plain = rotate(k) if format.rotate_keys else k
            k = runner.model.turned(cache.layer, plain, turn_by)
            k = rotate(k) if format.rotate_keys else k
        k, v = (mx.contiguous(x.astype(dtype)) for x in (k, v))
        layers.append(LayerKV.seal(k, v, replace(format, bits=None)))
    segment = KVSegment(layers, context.base + first + turn_by, context.num_own - first)
    mx.eval(segment.arrays())
    return segment


def name_of(segment: KVSegment) -> str:
    """A digest of all that a segment holds."""
    digest = blake2b(f"{segment.start} {segment.num_tokens}".encode(), digest_size=16)
    for part in segment.arrays():
        bits = part.view(mx.uint16) if part.dtype == mx.bfloat16 else part
        digest.update(np.array(bits).tobytes())
    return digest.hexdigest()
