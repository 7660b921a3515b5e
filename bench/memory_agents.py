"""The part of the memory benchmark that is in memory: how many agents a pool takes in.

No model is needed: shapes and windows are enough. Random keys and values are sealed as those of a
prompt would be, in the engine's shares, the same ones in every layer; every further agent has
copies of its own. Rows in full precision are bfloat16, as on a Mac.
"""

import os
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import mlx.core as mx

from edgecortex.bench.side import serve
from edgecortex.config import EngineConfig
from edgecortex.errors import BudgetError, EdgeCortexError
from edgecortex.kv.blocks import Shape
from edgecortex.kv.context import Context
from edgecortex.kv.format import KV4, KVFormat
from edgecortex.kv.plan import StepPlan
from edgecortex.kv.pool import BlockPool
from edgecortex.kv.segment import KVSegment, LayerKV
from edgecortex.models.machine import this_machine
from edgecortex.runner import make_pool

SPARE = 1 << 30  # bytes beside the agents'
DTYPE = mx.bfloat16
Rows = list[tuple[mx.array, mx.array]]


def fill(tokens: int, max_bytes: int, geometry: dict[str, int]) -> dict[str, Any]:
    """Takes in agents of `tokens` tokens until the pool refuses.

    Returns: their number and bytes, and by how much the process's memory grew.

    Raises:
        EdgeCortexError: the machine has too little memory free.
    """
    _check_free(max_bytes + SPARE)
    windows, shapes = layers(**geometry)
    pool = make_pool(KV4, windows, shapes, max_bytes, attends=False)
    before, active = resident_bytes(), mx.get_active_memory()
    rows = _random_rows(shapes, KV4.row_length(tokens))
    first = _first(pool, tokens, shapes, rows)
    num_agents = 1
    while _add(pool, first, rows):
        num_agents += 1
    pool.check()
    return {
        "agents": num_agents,
        "agent_bytes": pool.nbytes(first),
        "used_bytes": pool.used_bytes,
        "resident_growth_bytes": resident_bytes() - before,
        "mlx_growth_bytes": mx.get_active_memory() - active,
    }


def layers(
    layers: int, kv_heads: int, head_dim: int, window: int, full_every: int
) -> tuple[list[int | None], list[Shape]]:
    """Each layer's window and shape."""
    windows = [None if (i + 1) % full_every == 0 else window for i in range(layers)]
    return windows, [(kv_heads, head_dim, head_dim, DTYPE)] * layers


def _random_rows(shapes: list[Shape], num_tokens: int) -> Rows:
    """The sinks and the unsealed tokens."""
    return [_random(shape, num_tokens) for shape in shapes]


@lru_cache
def _random(shape: Shape, num_tokens: int) -> tuple[mx.array, mx.array]:
    heads, k_dim, v_dim, dtype = shape
    k, v = (mx.random.normal((heads, num_tokens, dim)).astype(dtype) for dim in (k_dim, v_dim))
    mx.eval(k, v)
    return k, v


def _first(pool: BlockPool, tokens: int, shapes: list[Shape], rows: Rows) -> Context:
    """An agent that takes in a prompt share by share: each layer seals random keys and values."""
    context = pool.open()
    if not pool.acquire(context, tokens):
        raise EdgeCortexError(f"not even one agent of {tokens:,} tokens fits")
    while context.num_own < tokens:
        share = pool.format.share(context.num_own, EngineConfig.prefill_chunk)
        plan = StepPlan.build([(context, [0] * min(share, tokens - context.num_own))])
        pool.begin(plan)
        _seal(pool, context, len(plan.shares[0].token_ids), shapes)
        pool.commit(plan)
        mx.eval(pool.arrays())
    for cache, (k, v) in zip(pool.caches, rows, strict=True):
        cache.write_row(context.slot, k, v)
    mx.eval(pool.arrays())
    return context


def _seal(pool: BlockPool, context: Context, num_tokens: int, shapes: list[Shape]) -> None:
    """What attention does with a share's complete blocks, in all layers: these get copies."""
    before, after = (pool.format.num_sealed(context.num_own + n) for n in (0, num_tokens))
    if before == after:
        return
    for cache, shape in zip(pool.caches, shapes, strict=True):
        layer = _sealed(shape, after - before, pool.format).copied()
        mx.eval(layer.k, layer.v)
        cache.sealed[context] = layer


@lru_cache
def _sealed(shape: Shape, num_tokens: int, format: KVFormat) -> LayerKV:
    return LayerKV.seal(*_random(shape, num_tokens), format)


def _add(pool: BlockPool, first: Context, rows: Rows) -> bool:
    """Takes in one more agent like the first; False if there is no room."""
    try:
        context = pool.open()
    except BudgetError:
        return False
    if not pool.acquire(context, first.num_own):
        return False
    copies = []
    for segment in first.segments:
        own = [layer.copied() for layer in segment.layers]
        copies.append(KVSegment(own, segment.start, segment.num_tokens))
    pool.restore(context, first.token_ids, copies, rows)
    mx.eval(pool.arrays())
    return pool.acquire(context, first.num_own)  # its room is in use now, not promised


def _check_free(num_bytes: int) -> None:
    available = available_bytes()
    if available < num_bytes:
        raise EdgeCortexError(
            f"too little memory is free: expected {num_bytes:,} bytes, got {available:,}; "
            "end other programs"
        )


def available_bytes() -> int:
    """Memory that can be had without swapping; all of the machine's where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except FileNotFoundError:
        return this_machine().memory_bytes
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def resident_bytes() -> int:
    """This process's memory."""
    command = ["ps", "-o", "rss=", "-p", str(os.getpid())]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) << 10


if __name__ == "__main__":
    serve({"fill": fill})
