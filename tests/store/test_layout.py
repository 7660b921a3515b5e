"""A real block, tail and thought as files of an earlier time hold them.

Where these tests fail the layout has changed, and stored KV would be read as something else: the
format needs another version. `python -m tests.store.test_layout` writes files of the new one.
"""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import mlx.core as mx
import numpy as np

from edgecortex.config import EngineConfig
from edgecortex.kv.blocks import BlockCodec
from edgecortex.kv.segment import KVSegment, LayerKV
from edgecortex.runner import ModelRunner
from edgecortex.store.entry import Arrays, Chain, Entry, decode, encode, thought
from tests import tiny

FOLDER = Path(__file__).parent / "golden" / "layout"
LAYERS, HEADS, DIM = 2, 2, 32
IDS = list(range(71))  # four sinks, a block of 64, and three tokens more
THOUGHT = slice(100, 102)


def numbers(layer: int, kind: str, tokens: slice) -> np.ndarray:
    """Keys or values (HEADS, L, DIM) of which no two rows or columns are alike: sixteen levels
    that all occur in each group, so that four bits hold them exactly."""
    heads, t, dims = np.ogrid[:HEADS, tokens, :DIM]
    mixed = (5 * t + 3 * dims + 2 * (t // 16) * (dims // 16 + 1) + 7 * heads + 4 * layer) % 16
    return (mixed / 8 - (1 if kind == "k" else 0.5)).astype(np.float32)


@lru_cache(1)
def codec() -> BlockCodec:
    config = EngineConfig(kv_format="kv4", kv_budget_bytes=1 << 28)
    runner = ModelRunner(tiny.make("llama"), config)
    return BlockCodec(runner.pool, runner.shapes)


def entries() -> tuple[Entry, Entry, Entry]:
    chain = Chain.of("golden model", codec().stored_as)
    (block,) = chain.blocks(IDS)
    return block, chain.tail(block.id, IDS[68:], 68), thought("0" * 31 + "1", chain.root)


def pair(layer: int, tokens: slice, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    k, v = (mx.array(numbers(layer, kind, tokens)).astype(dtype) for kind in "kv")
    return k, v


def columns(layer: int, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    """What a context of these tokens has in its row: the sinks and the tail."""
    k, v = (mx.concatenate([x[:, :4], x[:, 68:]], 1) for x in pair(layer, slice(71), dtype))
    return k, v


def laid_out() -> list[Arrays]:
    """The block, the tail and the thought as they are laid out now."""
    format, pool, layers = codec().format, codec().pool, range(LAYERS)
    sealed = [LayerKV.seal(*pair(i, slice(4, 68), mx.float32), format) for i in layers]
    context = pool.open()
    rows = [columns(i, mx.float32) for i in layers]
    pool.restore(context, IDS, [KVSegment(sealed, 4, 64)], rows)
    mx.eval([cache.arrays() for cache in pool.caches])
    snapshot, plain = codec().snapshot(context), replace(format, bits=None)
    seen = [LayerKV.seal(*pair(i, THOUGHT, mx.bfloat16), plain) for i in layers]
    return [snapshot.block(0), snapshot.tail(), codec().thought(KVSegment(seen, 100, 2))]


def stored(entry: Entry) -> Arrays:
    found, arrays = decode((FOLDER / entry.file_name).read_bytes())
    assert found == entry
    return arrays


def check_segment(segment: KVSegment, tokens: slice) -> None:
    for i, layer in enumerate(segment.layers):
        k, v = layer.keys(mx.float32, DIM), layer.values(mx.float32)
        np.testing.assert_allclose(np.array(k), numbers(i, "k", tokens), atol=2e-3)
        np.testing.assert_allclose(np.array(v), numbers(i, "v", tokens), atol=2e-3)


def test_the_files_have_the_names_under_which_they_are_looked_for() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {entry.file_name for entry in entries()}


def test_a_block_and_a_tail_are_read_as_what_they_were() -> None:
    block, tail, _ = entries()
    loading = codec().loading(1)
    loading.take_block(0, stored(block))
    loading.take_tail(stored(tail))
    (segment,) = loading.segments(4)
    check_segment(segment, slice(4, 68))
    for i, row in enumerate(loading.layer_rows()):
        for found, expected in zip(row, columns(i, mx.float32), strict=True):
            np.testing.assert_array_equal(np.array(found.astype(mx.float32)), np.array(expected))


def test_a_thought_is_read_as_what_it_was() -> None:
    segment = codec().segment_of(stored(entries()[2]), 100, 2)
    assert (segment.start, segment.num_tokens) == (100, 2)
    check_segment(segment, THOUGHT)


def test_the_same_is_laid_out_in_the_same_way() -> None:
    for entry, arrays in zip(entries(), laid_out(), strict=True):
        before = stored(entry)
        assert arrays.keys() == before.keys()
        for name, x in arrays.items():
            assert (x.dtype, x.shape) == (before[name].dtype, before[name].shape)
            exact = x.dtype != np.float16  # how scales are fitted is no part of the layout
            np.testing.assert_allclose(x, before[name], 0 if exact else 1e-2, err_msg=name)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for entry, arrays in zip(entries(), laid_out(), strict=True):
        (FOLDER / entry.file_name).write_bytes(encode(entry, arrays))
