"""Thousands of random engine operations: the books agree after each, nothing is left over."""

import gc
import random
from collections import Counter
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from edgecortex.config import EngineConfig, SamplingParams
from edgecortex.core import EngineCore
from edgecortex.errors import BudgetError
from edgecortex.generation import Generation
from edgecortex.scheduler import Request
from tests import tiny

NUM_OPERATIONS, NUM_STORED_OPERATIONS = 2500, 1000
STORE_BYTES = 4_000_000
PREFIX = [5 + i % 80 for i in range(140)]  # what some prompts begin with


class Words:
    """A tokenizer and detokenizer of numbers, for models without words."""

    eos_token_ids: frozenset[int] = frozenset({3})
    last_segment = ""

    def detokenizer(self) -> "Words":
        return Words()

    def add_token(self, token: int) -> None:
        self.last_segment = f"{token} "

    def finalize(self) -> None:
        self.last_segment = ""


class Soak:
    """A core under random operations."""

    def __init__(self, kind: str, seed: int, budget: int, store: Path | None = None) -> None:
        model = tiny.make(kind)
        if store:
            model.path = tiny.save_weights(model, store)
        model.tokenizer = Words()  # type: ignore[assignment]
        config = EngineConfig(
            kv_budget_bytes=budget,
            prefill_chunk=100,
            context_length=600,
            use_store=store is not None,
            store_path=store,
            store_max_bytes=STORE_BYTES,
        )
        self.core = EngineCore(model, config)
        self.random = random.Random(seed)
        self.said: dict[Any, list[int]] = {}  # every agent's ids so far
        self.open: dict[Any, Generation] = {}
        self.ended: list[Generation] = []

    def operate(self) -> None:
        action = self.random.choices(
            [self.ask, self.step, self.cancel, self.fork, self.close], [3, 12, 1, 1, 1]
        )[0]
        action()
        self.core.pool.check()
        for generation in self.ended[-20:]:
            if generation.stats.finish_reason == "error":
                with pytest.raises(BudgetError):
                    generation.text()

    def ask(self) -> None:
        idle = [agent for agent in self.said if agent not in self.open]
        agent = self.random.choice(idle) if idle and self.random.random() < 0.5 else object()
        start = self.said.get(agent) or self.random.choice([[], [], PREFIX])
        length = self.random.choice([1, 4, 5, 67, 68, 69, 130, 250])
        ids = (start + [self.random.randrange(4, tiny.VOCAB) for _ in range(length)])[:500]
        sampling = SamplingParams(
            max_tokens=self.random.choice([1, 5, 40]),
            temperature=self.random.choice([0, 1]),
            seed=self.random.randrange(100),
        )
        generation = Generation()
        self.said[agent], self.open[agent] = ids, generation
        request = Request(
            agent,
            ids,
            sampling,
            generation,
            self.answered(agent),
            Words(),
            self.random.randrange(2),
        )
        self.core.add(request)

    def answered(self, agent: Any) -> Any:
        def note(text: str | None, _cut: bool) -> None:
            generation = self.open.pop(agent)
            self.ended.append(generation)
            if text is not None:
                self.said[agent] = self.said[agent] + generation.token_ids

        return note

    def step(self) -> None:
        if self.core.has_work:
            self.core.step()

    def cancel(self) -> None:
        if self.open:
            generation = self.random.choice(list(self.open.values()))
            if not generation.cancelled:
                generation.cancel()

    def fork(self) -> None:
        idle = [agent for agent in self.said if agent not in self.open]
        if idle:
            parent, child = self.random.choice(idle), object()
            self.said[child] = list(self.said[parent])
            self.core.contexts.fork(parent, child)  # type: ignore[arg-type]

    def close(self) -> None:
        if self.said:
            agent = self.random.choice(list(self.said))
            self.core.release(agent)
            del self.said[agent]


BUDGETS = [("llama", 3_000_000), ("gemma3_text", 6_000_000)]
TIGHT = [("llama", 2_000_000), ("gemma3_text", 4_000_000)]  # agents have to go to disk


@pytest.mark.parametrize(("kind", "budget"), BUDGETS)
def test_soak(kind, budget):
    soak_and_check(Soak(kind, 11, budget), NUM_OPERATIONS)


@pytest.mark.parametrize(("kind", "budget"), TIGHT)
def test_soak_with_a_store(kind, budget, tmp_path):
    soak = Soak(kind, 12, budget, tmp_path)
    soak_and_check(soak, NUM_STORED_OPERATIONS)
    from_disk = [generation.stats.num_disk_tokens for generation in soak.ended]
    assert sum(n > 0 for n in from_disk) > 10
    archive = soak.core.contexts.archive
    assert archive
    archive.wait()
    assert archive.problem is None
    assert archive.store.verify().damaged == []
    assert archive.store.stats().nbytes <= STORE_BYTES
    soak.core.close()


def soak_and_check(soak, num_operations):
    gc.collect()
    start = mx.get_active_memory()
    for _ in range(num_operations):
        soak.operate()
    for agent in list(soak.said):
        soak.core.release(agent)
    soak.core.pool.check()
    reasons = Counter(generation.stats.finish_reason for generation in soak.ended)
    assert {"stop", "length", "cancelled"} <= set(reasons)
    assert reasons["length"] > num_operations / 25
    if archive := soak.core.contexts.archive:
        archive.wait()  # what is yet to be written is held till then
    assert soak.core.pool.used_bytes == 0
    gc.collect()
    mx.clear_cache()
    assert mx.get_active_memory() <= start + 100_000
