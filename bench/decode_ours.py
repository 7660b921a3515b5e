"""Our agents in the decode benchmark, in a process that both sides share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from edgecortex import gate
from edgecortex.bench.asking import ask
from edgecortex.bench.decode import WARM_UP
from edgecortex.bench.report import Row
from edgecortex.bench.side import rate, seconds
from edgecortex.bench.text import prompts
from edgecortex.config import EngineConfig
from edgecortex.core import EngineCore
from edgecortex.kv.context import Context
from edgecortex.kv.segment import KVSegment
from edgecortex.models.adapter import load_model
from edgecortex.scheduler import Request

PREFIX = 1024  # tokens that 64 agents have in common
GAP_STEPS, LATE = 48, 4096  # without a prompt beside them; and its tokens
PERCENTILES = {"median": 50, "p95": 95}


class Ours:
    """The model, of which each scenario gets an engine of its own."""

    def __init__(self, path: str) -> None:
        self.model = load_model(Path(path))
        self.model.tokenizer.eos_token_ids = set()  # every agent decodes to the end
        self.config, _ = gate.resolved(self.model, EngineConfig(use_store=False))

    def core(self) -> EngineCore:
        return EngineCore(self.model, self.config)

    def agents(self, lengths: list[int]) -> "Agents":
        """Those with prompts of these lengths, warm."""
        return Agents(self.core(), lengths)


class Agents:
    """Agents that have all said something."""

    def __init__(self, core: EngineCore, lengths: list[int]) -> None:
        self.core = core
        self.requests = [ask(core, ids, 4096) for ids in prompts(core.model.tokenizer, lengths)]
        while not all(request.generation.token_ids for request in self.requests):
            core.step()
        for _ in range(WARM_UP):
            core.step()

    def said(self) -> list[list[int]]:
        return [request.generation.token_ids for request in self.requests]

    def block(self, num_steps: int) -> Row:
        """How fast they decode in so many steps, after one that is not timed."""
        self._step()
        self.core.overhead_s = 0.0
        tokens_per_s = rate(self._step, num_steps)
        steps_s = len(self.requests) * num_steps / tokens_per_s
        return {
            "kv_format": self.core.config.kv_format,
            "tokens_per_s": tokens_per_s,
            "kv_bytes": self.core.pool.used_bytes,
            "overhead_pct": 100 * self.core.overhead_s / steps_s,
        }

    def _step(self) -> int:
        self.core.step()
        return len(self.requests)


# 64 agents on one prefix, and on copies of it.


def shared(core: EngineCore) -> tuple[list[Context], float]:
    """64 contexts on one prefix; and the memory that they take over that of one prefix and 64
    tails."""
    pool, before = core.pool, mx.get_active_memory()
    parent = _prefix(core)
    contexts = [parent, *(pool.fork(parent) for _ in range(63))]
    core.runner.run([(context, [11]) for context in contexts])
    held = mx.get_active_memory() - before
    ideal = sum(segment.nbytes for segment in parent.segments) + 64 * pool.row_nbytes
    return contexts, held / ideal


def private(core: EngineCore) -> list[Context]:
    """64 contexts with copies of it."""
    parent = _prefix(core)
    return [parent, *(_copy(core, parent) for _ in range(63))]


def _prefix(core: EngineCore) -> Context:
    """All of it sealed: with sinks, which never are, it takes as many tokens more."""
    context = core.pool.open()
    ids = [*prompts(core.model.tokenizer, [PREFIX])[0], *[11] * core.pool.format.num_sinks]
    for start in range(0, len(ids), 512):
        core.runner.run([(context, ids[start : start + 512])])
    return context


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


def fed(core: EngineCore, contexts: list[Context]) -> Callable[[int], Row]:
    """What feeds each of them a token, so many times, after one that is not timed."""
    feed = [(context, [11]) for context in contexts]

    def step() -> int:
        core.runner.run(feed)
        return len(feed)

    def block(num_steps: int) -> Row:
        step()
        return {"kv_format": core.config.kv_format, "tokens_per_s": rate(step, num_steps)}

    return block


# Agents beside one that reads.


def gap(core: EngineCore) -> Row:
    """Eight agents decode; then a ninth reads 4,096 tokens beside them.

    Medians and 95th percentiles of the steps with it are held against the same without it; the
    worse of the two ratios counts.
    """
    Agents(core, [64] * 8)
    without = [seconds(core.step) for _ in range(GAP_STEPS)]
    late = ask(core, prompts(core.model.tokenizer, [LATE])[0], 1)
    beside = list(_steps_until_said(core, late))
    row: dict[str, Any] = {"prefill_s": sum(beside)}
    for name, times in (("without", without), ("beside", beside)):
        row |= {f"{name}_{q}_s": float(np.percentile(times, p)) for q, p in PERCENTILES.items()}
    ratios = [row[f"beside_{q}_s"] / row[f"without_{q}_s"] for q in PERCENTILES]
    return row | {"ratio": max(ratios)}


def _steps_until_said(core: EngineCore, request: Request) -> Iterator[float]:
    """Seconds of each step until its first token."""
    while not request.generation.token_ids:
        yield seconds(core.step)
