"""Referential injection: a thought's KV as a segment that a context sees beside its own tokens
(Warp-Cortex, section 3.6). Nothing is visible, and no position moves."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

import mlx.core as mx
import numpy as np

from edgecortex.errors import BudgetError
from edgecortex.kv.context import Context
from edgecortex.kv.pool import BlockPool
from edgecortex.kv.segment import KVSegment, LayerKV
from edgecortex.runner import ModelRunner

MODES = ("forward", "graft")


def forward(runner: ModelRunner, context: Context, token_ids: Sequence[int]) -> KVSegment:
    """Reads a thought over all that the context holds, at the positions just before its next
    token: as if it had read it a moment ago.

    Raises:
        BudgetError: there is no room for a copy of the context's row.
    """
    pool, n = runner.pool, len(token_ids)
    with_room(pool, context, context.num_own)
    try:
        reader = pool.fork(context)
        reader.base -= n
        try:
            with_room(pool, reader, reader.num_own + n)
            runner.run([(reader, list(token_ids))])
            return gather(pool, reader, reader.num_own - n)
        finally:
            pool.close(reader)
    finally:
        pool.release(context)


def with_room(pool: BlockPool, context: Context, num_tokens: int) -> None:
    """Takes a context into use, with room for `num_tokens` own tokens.

    Raises:
        BudgetError: there is none.
    """
    if not pool.acquire(context, num_tokens):
        raise BudgetError(f"no room to read a thought: {pool.free_bytes:,} bytes of KV are free")


def gather(pool: BlockPool, context: Context, first: int) -> KVSegment:
    """A context's own tokens from number `first` on, copied into one segment at their positions;
    a layer with a window has what that holds."""
    layers = []
    for cache in pool.caches:
        k, v, numbers = cache.read(context, mx.float32)
        start, kept = int((numbers < first).sum()), cache.arrays()[0].dtype
        k, v = (mx.contiguous(x[:, start:].astype(kept)) for x in (k, v))
        layers.append(LayerKV.seal(k, v, replace(pool.format, bits=None)))
    segment = KVSegment(layers, context.base + first, context.num_own - first)
    mx.eval(segment.arrays())
    return segment


def name_of(segment: KVSegment) -> str:
    """A digest of all that a segment holds."""
    digest = blake2b(f"{segment.start} {segment.num_tokens}".encode(), digest_size=16)
    for part in segment.arrays():
        bits = part.view(mx.uint16) if part.dtype == mx.bfloat16 else part
        digest.update(np.array(bits).tobytes())
    return digest.hexdigest()
