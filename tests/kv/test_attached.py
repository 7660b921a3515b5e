"""Foreign segments: seen from a token on, weighed, taken back, and told apart by name."""

import itertools
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from edgecortex.config import EngineConfig
from edgecortex.errors import ConfigError
from edgecortex.kv.context import Context, Trace, marks_of
from edgecortex.kv.segment import KVSegment, LayerKV
from edgecortex.runner import ModelRunner
from edgecortex.warp.injection import gather, name_of
from tests import tiny

IDS = [3 + (7 * i * i + 5 * i) % 90 for i in range(300)]
FOREIGN = [5 + (11 * i) % 80 for i in range(40)]


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def runner(request) -> ModelRunner:
    return ModelRunner(tiny.make(request.param), EngineConfig(kv_format="fp"))


def fed(runner: ModelRunner, *parts: list[int]) -> Context:
    context = runner.pool.open()
    for part in parts:
        runner.run([(context, part)])
    return context


def said(runner: ModelRunner, context: Context, ids: list[int]) -> np.ndarray:
    return np.array(runner.run([(context, ids)], all_rows=True)[1])


@pytest.fixture
def foreign(runner: ModelRunner) -> KVSegment:
    context = fed(runner, FOREIGN)
    segment = gather(runner, context, 0)
    runner.pool.close(context)
    return segment


@pytest.mark.parametrize("at", [10, 64, 68, 100])
@pytest.mark.parametrize("cuts", [(0, 130), (0, 100, 130), (0, 68, 69, 70, 130)])
def test_seen_from_a_token_on(runner, foreign, at, cuts):
    """However a prompt is cut, tokens before `at` are blind to what is laid there."""
    truth = fed(runner, IDS[:at])
    runner.pool.lay(truth, foreign, "x")
    expected = said(runner, truth, IDS[at:130])
    context = runner.pool.open()
    runner.pool.lay(context, foreign, "x", at=at)
    parts = [said(runner, context, IDS[a:b]) for a, b in itertools.pairwise(cuts)]
    np.testing.assert_allclose(np.concatenate(parts)[at:], expected, atol=2e-4)
    blind = fed(runner, IDS[:at])
    assert np.abs(said(runner, blind, IDS[at:130]) - expected).max() > 1e-2
    for each in (truth, context, blind):
        runner.pool.close(each)


def test_layers_of_unequal_length_are_refused(runner, foreign):
    """Tokens before it would see a part of it."""
    windows = runner.pool.windows
    one = next(i for i, window in enumerate(windows) if windows.count(window) > 1)
    layers = [x.cut(0, 20) if i == one else x for i, x in enumerate(foreign.layers)]
    uneven = KVSegment(layers, foreign.start, foreign.num_tokens)
    context = fed(runner, IDS[:10])
    with pytest.raises(ConfigError, match="as many tokens in every layer"):
        runner.pool.lay(context, uneven, "x")
    assert not context.attached
    assert not context.segments
    runner.pool.close(context)
    runner.pool.check()


def test_lifted_without_trace(runner, foreign):
    context = fed(runner, IDS[:100])
    runner.pool.lay(context, foreign, "x")
    said(runner, context, IDS[100:180])
    runner.pool.lift(context, "x")
    assert context.num_own <= 100
    assert not context.attached
    again = said(runner, context, IDS[context.num_own : 200])
    plain = fed(runner, IDS[:100])
    expected = said(runner, plain, IDS[100:200])
    np.testing.assert_allclose(again[-100:], expected, atol=2e-4)
    runner.pool.close(context)
    runner.pool.close(plain)
    runner.pool.check()


def test_a_bias_weighs_as_much_as_copies(runner, foreign):
    """Twice the same token and one that weighs two are the same, in prefill and in decoding."""
    if runner.pool.slides:
        pytest.skip("copies would lie outside the window")
    twice = [
        LayerKV(x.format, _doubled(x.k, -1), _doubled(x.v, -2), x.v_dim) for x in foreign.layers
    ]
    heavy = [LayerKV(x.format, x.k, x.v, x.v_dim) for x in foreign.layers]
    for layer in heavy:
        layer.bias = mx.ones((2, 40))
    answers = []
    for layers, n in ((twice, 80), (heavy, 40)):
        context = runner.pool.open()
        context.base = 200
        runner.pool.lay(context, KVSegment(layers, 200 - n, n), "x")
        parts = [
            said(runner, context, IDS[:90]),
            said(runner, context, [7]),
            said(runner, context, [9]),
        ]
        answers.append(np.concatenate(parts))
        runner.pool.close(context)
    np.testing.assert_allclose(*answers, atol=2e-4)


def _doubled(parts: tuple[mx.array, ...], axis: int) -> tuple[mx.array, ...]:
    return tuple(mx.concatenate([x, x], axis=axis) for x in parts)


def test_a_context_read_and_laid_again_says_the_same(runner):
    """What `gather` copies out of one context stands for it in another."""
    whole = fed(runner, IDS[:70])
    expected = said(runner, whole, IDS[70:90])
    source = fed(runner, IDS[:70])
    segment = gather(runner, source, 0)
    context = runner.pool.open()
    context.base = 70
    runner.pool.lay(context, segment, "x")
    np.testing.assert_allclose(said(runner, context, IDS[70:90]), expected, atol=2e-4)
    for each in (whole, source, context):
        runner.pool.close(each)


def test_names_tell_segments_apart(runner, foreign):
    other = KVSegment(foreign.layers, foreign.start + 1, foreign.num_tokens)
    changed = replace(foreign.layers[0].format)
    k = foreign.layers[0].k[0]
    flipped = LayerKV(changed, (k + (mx.arange(k.shape[-1]) == 3),), foreign.layers[0].v, 32)
    third = KVSegment([flipped, *foreign.layers[1:]], foreign.start, foreign.num_tokens)
    names = {name_of(segment) for segment in (foreign, other, third)}
    assert len(names) == 3
    assert name_of(KVSegment(foreign.layers, foreign.start, foreign.num_tokens)) in names


def test_marks_are_in_order_of_their_tokens(runner, foreign):
    context = fed(runner, IDS[:100])
    runner.pool.lay(context, foreign, "late")
    runner.pool.lay(context, foreign, "early", at=10)
    assert context.marks == marks_of(context.attached) == ((10, "early"), (100, "late"))
    context.show_attached_from(50)
    assert context.marks == ((10, "early"), (50, "late"))
    runner.pool.close(context)


@pytest.mark.parametrize("cuts", [(0, 50, 51, 52, 120), (0, 120), (0, 119, 120)])
def test_a_trace_holds_the_newest(runner, cuts):
    """Queries and hidden states of the last tokens, whatever steps they came in."""
    context = runner.pool.open()
    context.trace = Trace(len(runner.pool.caches), 20, 30)
    for a, b in itertools.pairwise(cuts):
        runner.run([(context, IDS[a:b])])
    states = np.array(context.trace.hidden.all())
    np.testing.assert_allclose(states, runner.hidden_of(IDS[:120])[-30:], atol=2e-4)
    for layer in range(len(runner.pool.caches)):
        assert context.trace.queries[layer].all().shape == (2, 2, 20, 32)
    held = sum(x.shape[2] for x in context.trace.queries[0].parts)
    assert held < 40
    runner.pool.close(context)
