"""Whoever else is in the batch, an agent says what it says alone.

Alone is mlx-lm's own model, cache and attention, on the agent's tokens only.
"""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from edgecortex.bench.text import english
from edgecortex.config import EngineConfig, SamplingParams
from edgecortex.core import EngineCore
from edgecortex.generation import Generation
from edgecortex.models.adapter import load_model
from edgecortex.scheduler import Request

# Logits are sums in fp32 of other orders, which differ by up to some 1e-4 here. Where the best
# two are closer than this, either may be said.
TIE = 1e-3
LONGEST = 3000


@pytest.fixture(scope="module")
def core(smollm2: Path) -> EngineCore:
    core = EngineCore(load_model(smollm2), EngineConfig(kv_format="fp", prefill_chunk=384))
    core.model.tokenizer.eos_token_ids = set()
    return core


class Play:
    """A random course of joins, leaves, forks and cancellations, one engine step at a time."""

    def __init__(self, core: EngineCore, seed: int, lengths: list[int]) -> None:
        self.core, self.lengths = core, lengths
        self.rng = np.random.default_rng(seed)
        self.ids = core.model.tokenizer.encode(english()[:200_000], first=False)
        self.said: list[Request] = []
        self.num_forks = self.num_cancelled = self.widest = 0

    def run(self) -> None:
        while self.lengths or self.core.has_work:
            if self.lengths and self.rng.random() < 0.4:
                self.join(f"agent {len(self.said)}", self.passage(self.lengths.pop()))
            self.rng.choice([self.fork, self.cancel, self.leave, *[lambda: None] * 9])()
            self.core.step()
            self.core.pool.check()
            self.widest = max(self.widest, len(self.core.scheduler.running))
        for request in self.said:
            self.core.release(request.agent)
        assert self.core.pool.used_bytes == 0

    def passage(self, length: int) -> list[int]:
        start = int(self.rng.integers(len(self.ids) - length))
        return self.ids[start : start + length]

    def join(self, name: Any, prompt_ids: list[int]) -> None:
        sampling = SamplingParams(max_tokens=int(self.rng.integers(1, 24)))
        detokenizer = self.core.model.tokenizer.detokenizer()
        request = Request(name, prompt_ids, sampling, Generation(), lambda *_: None, detokenizer)
        self.said.append(request)
        self.core.add(request)

    def done(self) -> list[Request]:
        return [
            r for r in self.said if r.agent in self.core.contexts._contexts and not self.active(r)
        ]

    def active(self, request: Request) -> bool:
        queues = self.core.scheduler
        return request in queues.running or request in queues.waiting

    def fork(self) -> None:
        """A child of an agent at rest goes on from where that is, with a passage of its own."""
        if done := self.done():
            parent = done[self.rng.integers(len(done))]
            child: Any = f"agent {len(self.said)}"
            self.core.contexts.fork(parent.agent, child)
            self.join(child, parent.token_ids + self.passage(int(self.rng.integers(1, 90))))
            self.num_forks += 1

    def cancel(self) -> None:
        if running := self.core.scheduler.running:
            running[self.rng.integers(len(running))].generation.cancel()
            self.num_cancelled += 1

    def leave(self) -> None:
        if done := self.done():
            self.core.release(done[self.rng.integers(len(done))].agent)


def shortfall(core: EngineCore, request: Request) -> float:
    """By how much the worst of its tokens misses the best logit, alone."""
    said = request.generation.token_ids
    ids = mx.array([request.token_ids[:-1]])
    logits = core.model.model(ids)[0, len(request.prompt_ids) - 1 :]
    chosen = mx.take_along_axis(logits, mx.array(said)[:, None], axis=-1)[:, 0]
    return float((logits.max(axis=-1) - chosen).max())


@pytest.mark.parametrize(
    ("seed", "lengths"),
    [
        (1, [300, 2, 40, 1, 63, 64, 65, 68, 69, 131, 132, 133, 5, 700]),
        (2, [1, 33, 900, 17, 196, 260, 3, 480, 128]),
        (3, [60, 1500, 12, 90]),
        (4, [700, 1, 64, LONGEST, 20, 9]),
    ],
)
def test_greedy_in_a_batch_is_greedy_alone(core: EngineCore, seed: int, lengths: list[int]) -> None:
    play = Play(core, seed, lengths)
    play.run()
    assert play.num_forks
    assert play.num_cancelled
    assert play.widest > 2
    spoke = [request for request in play.said if request.generation.token_ids]
    assert len(spoke) >= len(lengths)
    for request in spoke:
        assert shortfall(core, request) < TIE, f"{request.agent} of {len(request.prompt_ids)}"
