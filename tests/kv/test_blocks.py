"""A context taken apart into blocks, through bytes, and put together again."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecortex.config import EngineConfig
from edgecortex.kv.blocks import BlockCodec
from edgecortex.kv.context import Context
from edgecortex.kv.format import FORMATS
from edgecortex.runner import ModelRunner
from edgecortex.store.entry import Arrays, Chain, decode, encode
from tests import tiny

LENGTHS = st.sampled_from([1, 4, 5, 67, 68, 69, 131, 132, 133, 260, 333, 600, 1100])
KINDS = ("llama", "gemma3_text", "deepseek_v2")
SOURCES: dict[tuple[str, str], ModelRunner] = {}


def runner(kind: str, format: str) -> ModelRunner:
    """A model's runner, the same for every example."""
    if (kind, format) not in SOURCES:
        config = EngineConfig(kv_format=format, kv_budget_bytes=1 << 34)
        SOURCES[kind, format] = ModelRunner(tiny.make(kind), config)
    return SOURCES[kind, format]


def fed(runner: ModelRunner, length: int, step: int) -> Context:
    context = runner.pool.open()
    ids = np.random.default_rng(length).integers(0, tiny.VOCAB, length).tolist()
    for start in range(0, length, step):
        runner.run([(context, ids[start : start + step])])
    return context


def through_bytes(arrays: Arrays) -> Arrays:
    """As a file of the store has them."""
    entry = Chain("root", 4, 64).tail("parent", [1, 2, 3], 0)
    return decode(encode(entry, arrays))[1]


def put_together(runner: ModelRunner, source: Context) -> Context:
    codec = BlockCodec(runner.pool, runner.shapes)
    snapshot = codec.snapshot(source)
    loading = codec.loading(snapshot.num_blocks)
    for i in range(snapshot.num_blocks):
        loading.take_block(i, through_bytes(snapshot.block(i)))
    for i in range(max(0, snapshot.num_blocks - codec.num_windows), snapshot.num_blocks):
        if codec.num_windows:
            loading.take_window(i, through_bytes(snapshot.window(i)))
    loading.take_tail(through_bytes(snapshot.tail()))
    target = runner.pool.open()
    segments = loading.segments(runner.pool.format.num_sinks)
    runner.pool.restore(target, source.token_ids, segments, loading.layer_rows())
    runner.pool.check()
    return target


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(length=LENGTHS, step=st.sampled_from([64, 100, 600]))
def test_it_goes_on_as_before(kind: str, format: str, length: int, step: int) -> None:
    both = runner(kind, format)
    source = fed(both, length, step)
    target = put_together(both, source)
    for token in (5, 6, 7):
        contexts, logits = both.run([(source, [token]), (target, [token])])
        rows = {c: np.array(row) for c, row in zip(contexts, logits, strict=True)}
        # The same numbers, summed in runs that may be cut in other places.
        np.testing.assert_allclose(rows[target], rows[source], atol=1e-4, rtol=1e-4)
    both.pool.check()
    for context in (source, target):
        both.pool.close(context)


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_back_is_what_was_there_bit_by_bit(kind: str) -> None:
    both = runner(kind, "kv4")
    codec = BlockCodec(both.pool, both.shapes)
    first = codec.snapshot(fed(both, 700, 100))
    again = codec.snapshot(put_together(both, both.pool.contexts()[-1]))
    assert again.num_blocks == first.num_blocks == 10
    for i in range(10):
        assert_same(first.block(i), again.block(i))
    for i in range(10 - codec.num_windows, 10 if codec.num_windows else 0):
        assert_same(first.window(i), again.window(i))
    assert_same(first.tail(), again.tail())


def assert_same(a: Arrays, b: Arrays) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_arrays_of_another_shape_are_refused() -> None:
    other, mine = runner("deepseek_v2", "kv4"), runner("llama", "kv4")
    snapshot = BlockCodec(other.pool, other.shapes).snapshot(fed(other, 100, 100))
    loading = BlockCodec(mine.pool, mine.shapes).loading(1)
    with pytest.raises(ValueError, match="expected uint32"):
        loading.take_block(0, snapshot.block(0))
    with pytest.raises(KeyError):
        loading.take_tail({})


def test_bfloat16_keeps_its_bits() -> None:
    config = EngineConfig(kv_format="fp", kv_budget_bytes=1 << 34)
    model = tiny.make("llama")
    model.model.set_dtype(mx.bfloat16)
    both = ModelRunner(model, config)
    codec = BlockCodec(both.pool, both.shapes)
    source = fed(both, 150, 150)
    first, again = (codec.snapshot(c) for c in (source, put_together(both, source)))
    for i in range(first.num_blocks):
        assert_same(first.block(i), again.block(i))
    assert_same(first.tail(), again.tail())
    assert {x.dtype for x in first.tail().values()} == {np.dtype(np.uint16)}
