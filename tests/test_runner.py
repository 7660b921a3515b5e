"""Ragged steps against mlx-lm's own attention on whole sequences, model class by model class."""

import gc
import weakref

import mlx.core as mx
import numpy as np
import pytest

from edgecortex.config import EngineConfig
from edgecortex.errors import ModelError
from edgecortex.kv.context import Context
from edgecortex.models.adapter import load_model
from edgecortex.runner import ModelRunner
from tests import tiny

FP = EngineConfig(kv_format="fp", kv_budget_bytes=1 << 34)


def feed_and_compare(
    runner: ModelRunner, steps: list[list[tuple[Context, list[int]]]], tolerance: float
) -> None:
    """Runs steps; each logits row must equal the model's own on the whole sequence."""
    for step in steps:
        contexts, logits = runner.run(step)
        for context, row in zip(contexts, np.array(logits), strict=True):
            whole = np.array(runner.model.reference(context.token_ids)[-1])
            np.testing.assert_allclose(row, whole, atol=tolerance * np.abs(whole).max(), rtol=0)
        runner.pool.check()


def mixed_steps(runner: ModelRunner, vocab: int, scale: int) -> list:
    """Prefill and decode of four agents mixed, across block and window boundaries."""
    rng = np.random.default_rng(5)

    def ids(n: int) -> list[int]:
        return rng.integers(0, vocab, n).tolist()

    a, b, c, d = (runner.pool.open() for _ in range(4))
    return [
        [(a, ids(3)), (b, ids(scale))],
        [(a, ids(1)), (b, ids(1)), (c, ids(68))],
        [(a, ids(64)), (b, ids(1)), (c, ids(1)), (d, ids(1))],
        *([(x, ids(1)) for x in (d, b, a)] for _ in range(3)),
        [(a, ids(scale)), (b, ids(2)), (c, ids(1)), (d, ids(5))],
        [(a, ids(1)), (b, ids(1)), (c, ids(1)), (d, ids(1))],
    ]


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_every_class_says_what_it_says_alone(kind):
    runner = ModelRunner(tiny.make(kind), FP)
    # fp32 rounding over a few layers, relative to the largest logit
    feed_and_compare(runner, mixed_steps(runner, tiny.VOCAB, 150), 1e-4)


def test_smollm2_says_what_it_says_alone(smollm2):
    runner = ModelRunner(load_model(smollm2), FP)
    feed_and_compare(runner, mixed_steps(runner, 49152, 700), 2e-4)


def test_gemma3_with_its_windows_says_what_it_says_alone(gemma3):
    runner = ModelRunner(load_model(gemma3), FP)
    feed_and_compare(runner, mixed_steps(runner, 262144, 700), 5e-4)
    sliding = [i for i, window in enumerate(runner.pool.windows) if window]
    for context in runner.pool.contexts():
        for layer in sliding:
            held = sum(segment.layers[layer].num_tokens for segment in context.segments)
            assert held <= 512 + 64


def test_a_model_that_bypasses_its_cache_is_refused():
    model = tiny.make("llama")
    layer = model.model.layers[1].self_attn

    class Bypassing(type(layer)):
        def __call__(self, x, mask=None, cache=None):
            return super().__call__(x, "causal", None)

    layer.__class__ = Bypassing
    with pytest.raises(ModelError, match="attend through its cache"):
        ModelRunner(model, FP)


def test_recurrent_layers_are_refused(monkeypatch):
    from mlx_lm.models.cache import ArraysCache

    model = tiny.make("llama")
    monkeypatch.setattr(type(model.model), "make_cache", lambda self: [ArraysCache(2)] * 2)
    with pytest.raises(ModelError, match="attention layers only"):
        ModelRunner(model, FP)


def test_agents_at_rest_keep_no_more_than_their_own():
    """Runs of many agents are computed from one stack; whoever leaves it takes a copy."""
    model = tiny.make("llama")
    runner = ModelRunner(model, EngineConfig())
    start = mx.get_active_memory()
    contexts = [runner.pool.open() for _ in range(12)]
    for context in contexts:
        runner.run([(context, list(range(1, 90)))])
    while contexts:
        for _ in range(2):
            runner.run([(context, [7]) for context in contexts])
        resting = contexts.pop(len(contexts) // 2)
        runner.pool.release(resting)
    runner.run([(runner.pool.contexts()[0], [7])])
    gc.collect()
    held = mx.get_active_memory() - start
    assert held < 1.05 * runner.pool.used_bytes + 100_000


def test_agents_that_are_gone_keep_nothing():
    """Whose runs were computed from one stack, too."""
    runner = ModelRunner(tiny.make("llama"), EngineConfig())
    contexts = [runner.pool.open() for _ in range(4)]
    for context in contexts:
        runner.run([(context, list(range(1, 90)))])
    for _ in range(2):
        runner.run([(context, [7]) for context in contexts])
    segments = [weakref.ref(segment) for c in contexts for segment in c.segments]
    for context in contexts:
        runner.pool.close(context)
    del context, contexts
    gc.collect()
    assert len(segments) == 4
    assert not any(segment() for segment in segments)
