"""Random operations of several threads on one engine: it serves them all, its books agree after
each, and nothing is left over."""

import gc
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import mlx.core as mx
import pytest

from edgecortex import Agent, Engine, EngineConfig, Generation, SamplingParams
from edgecortex.errors import BudgetError, StateError

NUM_THREADS, NUM_OPERATIONS = 4, 20
BUDGET = 12_000_000  # a dozen agents of a few hundred tokens
PROMPTS = ["Go on.", "What is the capital of Japan?", "Say it again. " * 12, "A river. " * 60]


class Client:
    """A thread's agents, and what became of their answers."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine, self.random = engine, random.Random(seed)
        self.agents: list[Agent] = []
        self.ended: Counter[str] = Counter()

    def operate(self) -> Counter[str]:
        for _ in range(NUM_OPERATIONS):
            actions = [self.open, self.ask, self.fork, self.reset, self.close]
            self.random.choices(actions, [2, 10, 2, 1, 2])[0]()
            self.engine.call(self.engine.core.pool.check)
        while self.agents:
            self.close()
        return self.ended

    def open(self) -> None:
        self.agents.append(self.engine.agent(priority=self.random.randrange(2)))

    def ask(self) -> None:
        """Up to three agents at once; some answers are cut short, some read by two."""
        if not self.agents:
            self.open()
        asked = self.random.sample(self.agents, min(len(self.agents), 3))
        for answer in [agent.chat(self.random.choice(PROMPTS), self.sampling()) for agent in asked]:
            self.read(answer)

    def sampling(self) -> SamplingParams:
        seed, choose = self.random.randrange(99), self.random.choice
        return SamplingParams(max_tokens=choose([1, 4, 16]), temperature=choose([0, 1]), seed=seed)

    def read(self, answer: Generation) -> None:
        try:
            if self.random.random() < 0.3:
                next(iter(answer), None)
                with suppress(StateError):  # it may be complete
                    answer.cancel()
                with pytest.raises(StateError):
                    answer.cancel()
            assert "".join(answer) == answer.text()
        except BudgetError:
            assert answer.stats.finish_reason == "error"
        self.ended[answer.stats.finish_reason or "never"] += 1

    def fork(self) -> None:
        if self.agents:
            self.agents.append(self.random.choice(self.agents).fork())

    def reset(self) -> None:
        if self.agents:
            self.random.choice(self.agents).reset()

    def close(self) -> None:
        if self.agents:
            self.agents.pop(self.random.randrange(len(self.agents))).close()


def test_threads_do_what_they_like(smollm2: Path, tmp_path: Path) -> None:
    config = EngineConfig(
        kv_format="kv4", kv_budget_bytes=BUDGET, context_length=600, store_path=tmp_path
    )
    with Engine.load(str(smollm2), config=config) as engine:
        start = engine.call(mx.get_active_memory)
        clients = [Client(engine, seed) for seed in range(NUM_THREADS)]
        with ThreadPoolExecutor(NUM_THREADS) as threads:
            ended = sum(threads.map(Client.operate, clients), Counter())
        assert ended["length"] > 30
        assert ended["cancelled"]
        assert set(ended) <= {"length", "stop", "cancelled", "context", "error"}
        engine.call(engine.core.pool.check)
        assert engine.call(lambda: engine.core.pool.used_bytes) == 0
        archive = engine.core.contexts.archive
        assert archive
        archive.wait()
        assert archive.problem is None
        gc.collect()
        engine.call(mx.clear_cache)
        assert engine.call(mx.get_active_memory) <= start + 1_000_000
