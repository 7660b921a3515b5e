"""The synapse: what it holds, who shares it, and when it is made anew."""

from collections.abc import Iterator

import numpy as np
import pytest

from edgecortex import Engine, EngineConfig
from edgecortex.errors import ConfigError
from edgecortex.kv.context import Context, Trace
from edgecortex.kv.segment import KVSegment
from edgecortex.runner import ModelRunner
from edgecortex.warp.cortex import CortexConfig
from edgecortex.warp.landmarks import RULES
from edgecortex.warp.synapse import NUM_QUERIES, Synapse, collect, mark, trace, view_of
from tests import scripted, tiny
from tests.scripted import limit, until

IDS = [3 + (7 * i * i + 5 * i) % 90 for i in range(700)]


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def runner(request) -> ModelRunner:
    """A model whose layers see everything, and one of which half see 80 tokens."""
    return ModelRunner(tiny.make(request.param), EngineConfig(kv_format="fp"))


@pytest.fixture
def read(runner: ModelRunner) -> Iterator[object]:
    """Makes contexts that have read the first tokens of `IDS`, traced."""
    opened: list[Context] = []

    def make(num_tokens: int) -> Context:
        context = runner.pool.open()
        context.trace = Trace(len(runner.pool.caches), NUM_QUERIES, NUM_QUERIES)
        opened.append(context)
        runner.run([(context, IDS[:num_tokens])])
        return context

    yield make
    for context in opened:
        runner.pool.close(context)
    runner.pool.check()
    assert runner.pool.used_bytes == 0


def on(runner: ModelRunner, segment: KVSegment, base: int, ids: list[int]) -> np.ndarray:
    """The logits after these tokens on a segment that ends at position `base`."""
    context = runner.pool.open()
    context.base = base
    runner.pool.lay(context, segment, "synapse")
    parts = [np.array(runner.run([(context, ids[:40])], all_rows=True)[1])]
    parts += [np.array(runner.run([(context, [token])])[1]) for token in ids[40:]]
    runner.pool.close(context)
    return np.concatenate(parts)


# What it holds.


@pytest.mark.parametrize("rule", RULES)
def test_a_segment_of_k_tokens_ends_where_its_context_does(runner, read, rule) -> None:
    context = read(300)
    segment = collect(runner, context, rule, 64)
    assert (segment.start, segment.num_tokens, segment.stop) == (300 - 64, 64, 300)
    for cache, layer in zip(runner.pool.caches, segment.layers, strict=True):
        assert layer.num_tokens == min(64, cache.window or 64)
        assert (layer.bias is not None) == (rule in ("matched", "scales"))
    logits = on(runner, segment, 300, IDS[300:345])
    assert np.isfinite(logits).all()
    assert (np.array(context.token_ids) == IDS[:300]).all()


@pytest.mark.parametrize("rule", RULES)
def test_more_landmarks_than_tokens_are_all_tokens(runner, read, rule) -> None:
    """So a Stream sees exactly what its River does."""
    context = read(50)
    segment = collect(runner, context, rule, 64)
    assert (segment.start, segment.num_tokens) == (0, 50)
    expected = np.array(runner.run([(context, IDS[50:95])], all_rows=True)[1])
    np.testing.assert_allclose(on(runner, segment, 50, IDS[50:95]), expected, atol=2e-4)


def test_landmarks_of_a_layer_with_a_window_lie_in_it(runner, read) -> None:
    """The tokens kept there are among those that the next token would see."""
    context = read(300)
    for layer, cache in enumerate(runner.pool.caches):
        view = view_of(runner, context, layer)
        assert view.num_tokens == (300 if cache.window is None else cache.window - 1)
        assert mark(view, "coverage", 64).kept.max() < view.num_tokens


def test_a_view_is_what_the_model_attended_with(runner, read) -> None:
    """A token's own weights, worked out from a view, give what its layer said: here by the sum
    over the last query's head groups of weights that add up to one each."""
    context = read(200)
    view = view_of(runner, context, 0)
    heads, rows, _ = view.queries.shape
    assert (heads, rows) == (2, 2 * NUM_QUERIES)
    np.testing.assert_allclose(view.weights.sum(axis=2), 1, rtol=1e-4)


def test_few_queries_are_enough(runner, read) -> None:
    context = read(100)
    context.trace = Trace(len(runner.pool.caches), NUM_QUERIES, NUM_QUERIES)
    runner.run([(context, [7])])
    for rule in RULES:
        assert collect(runner, context, rule, 64).num_tokens == 64


# When it is made anew.


def test_kept_until_the_context_has_gone_on(runner, read) -> None:
    context = read(200)
    synapse = Synapse(num_landmarks=16, refresh=30)
    first = synapse.segment(runner, context)
    for token in IDS[200:229]:
        runner.run([(context, [token])])
        assert synapse.segment(runner, context) is first
    runner.run([(context, IDS[229:230])])
    second = synapse.segment(runner, context)
    assert second is not first
    assert (first.stop, second.stop) == (200, 230)
    assert synapse.segment(runner, context) is second


def test_made_anew_where_the_context_takes_another_course(runner, read) -> None:
    context = read(200)
    synapse = Synapse(num_landmarks=16, refresh=256)
    first = synapse.segment(runner, context)
    synapse.forget(position=200)
    assert synapse.segment(runner, context) is first
    synapse.forget(position=199)
    second = synapse.segment(runner, context)
    assert second is not first
    runner.pool.truncate(context, 150)
    assert context.position < 200
    assert synapse.segment(runner, context) is not second


def test_collected_while_the_context_goes_on(runner, read) -> None:
    """A layer at a time, each as of its own moment; all of them end where the last one did."""
    context, synapse = read(200), Synapse(num_landmarks=None)
    fed = 200
    while not synapse.grow(runner, context):
        runner.run([(context, IDS[fed : fed + 1])])
        fed += 1
    assert fed == 200 + len(runner.pool.caches) - 1
    segment = synapse.segment(runner, context)
    assert (segment.stop, segment.num_tokens) == (fed, 64)
    segment.check_lengths(runner.pool.windows)
    for number, layer in enumerate(segment.layers):
        again = read(200 + number)
        alone = collect(runner, again, synapse.rule, 64).layers[number]
        for ours, theirs in zip(layer.arrays(), alone.arrays(), strict=True):
            np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=1e-3)


@pytest.mark.parametrize("tell", [False, True])
def test_collected_anew_where_the_context_takes_another_course(runner, read, tell) -> None:
    """In the midst of it; whether the synapse is told before the context is as long again."""
    context, synapse = read(200), Synapse(num_landmarks=16)
    assert not synapse.grow(runner, context)
    runner.pool.truncate(context, 150)
    if tell:
        synapse.forget(context.position)
        runner.run([(context, IDS[:250])])
    calls = 1
    while not synapse.grow(runner, context):
        calls += 1
    assert calls == len(runner.pool.caches)
    assert synapse.segment(runner, context).stop == context.position


def test_as_many_as_the_length_asks_for(runner, read) -> None:
    adaptive, fixed = Synapse(num_landmarks=None), Synapse(num_landmarks=100)
    for num_tokens, expected in ((100, 64), (300, 64), (2048, 64), (2080, 65), (8192, 256)):
        context = Context(0)
        context.token_ids = [0] * num_tokens
        assert (adaptive.budget(context), fixed.budget(context)) == (expected, 100)
    context = read(100)
    assert adaptive.segment(runner, context).num_tokens == 64


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rule": "best"}, "rule must be one of matched, .*, got 'best'"),
        ({"num_landmarks": 15}, "num_landmarks must be at least 16, got 15"),
        ({"refresh": 0}, "refresh must be at least 1, got 0"),
    ],
)
def test_values_out_of_range(wrong, message) -> None:
    for make in (Synapse, CortexConfig):
        with pytest.raises(ConfigError, match=message):
            make(**wrong)


# Who shares it.

NOTES = "The river is wide and slow, and the boats are late again. " * 6


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with scripted.engine() as engine:
        yield engine


def test_one_segment_for_all_streams(engine: Engine) -> None:
    river = engine.agent(system=NOTES)
    river.think_with(CortexConfig(sampling=limit(2000)))
    river.chat("Well?", limit(5)).text()
    before = engine.call(lambda: engine.core.pool.used_bytes)
    streams = [river.spawn(f"Think of {i}.") for i in range(6)]
    until(engine, lambda: all(stream.thought.status == "thinking" for stream in streams))

    def attached() -> list[KVSegment]:
        contexts = [engine.core.contexts.get(stream) for stream in streams]
        return [laid.segment for context in contexts if context for laid in context.attached]

    segments = engine.call(attached)
    assert len(segments) == 6
    assert {id(segment) for segment in segments} == {id(segments[0])}
    assert segments[0].refs == 6
    engine.call(engine.core.pool.check)
    rows = 6 * engine.core.pool.row_nbytes
    assert engine.call(lambda: engine.core.pool.used_bytes) - before <= (
        rows + segments[0].nbytes + 6 * 2 * engine.core.pool.row_nbytes
    )
    for count, stream in enumerate(streams, 1):
        stream.close()
        assert stream.result(30).status == "cancelled"
        assert segments[0].refs == 6 - count
    river.close()
    until(engine, lambda: engine.core.pool.used_bytes == 0)


def test_rivers_have_synapses_of_their_own(engine: Engine) -> None:
    rivers = [engine.agent(system=f"{i}: {NOTES}") for i in range(2)]
    for river in rivers:
        river.think_with(CortexConfig(sampling=limit(2000)))
        river.chat("Well?", limit(5)).text()
    streams = [river.spawn("Think of it.") for river in rivers]
    until(engine, lambda: all(stream.thought.status == "thinking" for stream in streams))
    segments = [scripted.context_of(stream).attached[0].segment for stream in streams]
    assert segments[0] is not segments[1]
    for agent in (*streams, *rivers):
        agent.close()


@pytest.mark.parametrize("num_tokens", [40, 100, 128, 300])
def test_a_context_that_was_not_traced_is_read_again(num_tokens: int) -> None:
    """Its newest tokens, or all of a short one, at their places: as when it was read first."""
    with scripted.engine() as engine:
        river, core = engine.agent(system="x" * num_tokens, sampling=limit(3)), engine.core
        river.chat("Tell me of it.").text()

        def traced() -> tuple[np.ndarray, np.ndarray]:
            context = core.contexts.get(river)
            assert context
            with core.pool.kept(context):
                assert trace(core.runner, context)
                assert not trace(core.runner, context)
            assert context.trace
            read = np.array(context.trace.hidden.all())
            return read, core.runner.hidden_of(context.token_ids)[-len(read) :]

        read, expected = engine.call(traced)
        assert len(read) >= min(NUM_QUERIES, num_tokens)
        np.testing.assert_allclose(read, expected, atol=1e-4)
