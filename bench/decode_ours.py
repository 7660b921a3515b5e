"""Our side of the decode benchmark: `python -m edgecortex.bench.decode_ours FOLDER`."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from edgecortex import gate
from edgecortex.bench.asking import ask
from edgecortex.bench.decode import GAP, NUM_STEPS, SCENARIOS, SLOW, WARM_UP, worker
from edgecortex.bench.side import BLOCKS, rates
from edgecortex.bench.text import prompts
from edgecortex.config import EngineConfig
from edgecortex.core import EngineCore
from edgecortex.kv.context import Context
from edgecortex.kv.segment import KVSegment
from edgecortex.models.adapter import load_model
from edgecortex.scheduler import Request

PERCENTILES = {"median": 50, "p95": 95}


def measurements(path: str, num_steps: int, *more: str) -> list[dict[str, Any]]:
    """All scenarios, one after the other on one engine; the slow one too if `more` says so."""
    model = load_model(Path(path))
    config, _ = gate.resolved(model, EngineConfig(use_store=False))
    core = EngineCore(model, config)
    core.model.tokenizer.eos_token_ids = set()  # every agent decodes to the end
    rows = [_scenario(core, *each, num_steps // BLOCKS) for each in SCENARIOS.items()]
    rows += [*_prefix64(core, num_steps // 6), *([[_gap(core)]] if SLOW in more else [])]
    return [
        {"kv_format": config.kv_format, **row, "round": number}
        for of_it in rows
        for number, row in enumerate(of_it, 1)
    ]


def _scenario(
    core: EngineCore, name: str, lengths: list[int], num_steps: int
) -> list[dict[str, Any]]:
    """A row for each block of steps; what was said is in the last one's."""
    requests = _start(core, lengths)
    for _ in range(WARM_UP):
        core.step()
    rows = [_block(core, name, len(lengths), num_steps) for _ in range(BLOCKS)]
    rows[-1]["said"] = [request.generation.token_ids for request in requests]
    _end(core, requests)
    return rows


def _block(core: EngineCore, name: str, num_agents: int, num_steps: int) -> dict[str, Any]:
    core.overhead_s = 0.0
    seconds = sum(_seconds(core.step) for _ in range(num_steps))
    return {
        "scenario": name,
        "tokens_per_s": num_agents * num_steps / seconds,
        "kv_bytes": core.pool.used_bytes,
        "overhead_pct": 100 * core.overhead_s / seconds,
    }


def _start(core: EngineCore, lengths: list[int]) -> list[Request]:
    """Agents that have all said their first word."""
    requests = [ask(core, ids, 4096) for ids in prompts(core.model.tokenizer, lengths)]
    while not all(request.generation.token_ids for request in requests):
        core.step()
    return requests


def _end(core: EngineCore, requests: list[Request]) -> None:
    for request in requests:
        core.release(request.agent)
    if core.has_work or core.pool.used_bytes:
        raise AssertionError("a scenario left agents behind")


def _prefix64(
    core: EngineCore, num_steps: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """64 agents on one prefix of 1,024 tokens, then the same with copies of it; rows of either,
    block by block."""
    pool = core.pool
    before = mx.get_active_memory()
    parent = pool.open()
    ids = prompts(core.model.tokenizer, [1024])[0]
    for start in range(0, len(ids), 512):
        core.runner.run([(parent, ids[start : start + 512])])
    shared = [pool.fork(parent) for _ in range(63)]
    core.runner.run([(context, [11]) for context in (parent, *shared)])
    held = mx.get_active_memory() - before
    ideal = sum(segment.nbytes for segment in parent.segments) + 64 * pool.row_nbytes
    shared_rates = _rates(core, [parent, *shared], num_steps)
    for context in shared:
        pool.close(context)
    private = [_copy(core, parent) for _ in range(63)]
    private_rates = _rates(core, [parent, *private], num_steps)
    for context in (parent, *private):
        pool.close(context)
    rows: list[dict[str, Any]] = [
        {"scenario": "prefix64", "tokens_per_s": rate} for rate in shared_rates
    ]
    return [{"memory_ratio": held / ideal} | rows[0], *rows[1:]], [
        {"scenario": "private64", "tokens_per_s": rate} for rate in private_rates
    ]


def _copy(core: EngineCore, parent: Context) -> Context:
    """A context with copies of the parent's segments."""
    pool = core.pool
    child = pool.open()
    child.token_ids = list(parent.token_ids)
    for segment in parent.segments:
        layers = [layer.cut(0, layer.num_tokens) for layer in segment.layers]
        copied = KVSegment(layers, segment.start, segment.num_tokens)
        mx.eval(copied.arrays())
        pool.attach(child, copied)
    for cache in pool.caches:
        cache.copy_row(parent.slot, child.slot)
    return child


def _rates(core: EngineCore, contexts: list[Context], num_steps: int) -> list[float]:
    """Tokens per second in each block of steps, after one to warm up."""
    feed = [(context, [11]) for context in contexts]

    def step() -> int:
        core.runner.run(feed)
        return len(feed)

    step()
    return rates(step, num_steps)


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _gap(core: EngineCore) -> dict[str, Any]:
    """Eight agents decode; then a ninth reads 4,096 tokens beside them.

    Medians and 95th percentiles of the steps with it are held against the same without it; the
    worse of the two ratios counts.
    """
    agents = _start(core, [64] * 8)
    without = [_seconds(core.step) for _ in range(NUM_STEPS)]
    late = ask(core, prompts(core.model.tokenizer, [4096])[0], 1)
    beside = []
    while not late.generation.token_ids:
        beside.append(_seconds(core.step))
    _end(core, [*agents, late])
    row: dict[str, Any] = {"scenario": GAP, "prefill_s": sum(beside)}
    for name, times in (("without", without), ("beside", beside)):
        row |= {f"{name}_{q}_s": float(np.percentile(times, p)) for q, p in PERCENTILES.items()}
    ratios = [row[f"beside_{q}_s"] / row[f"without_{q}_s"] for q in PERCENTILES]
    return row | {"ratio": max(ratios)}


if __name__ == "__main__":
    worker(measurements)
