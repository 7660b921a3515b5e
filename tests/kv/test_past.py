"""What prompts read back of sealed runs, in whatever pieces."""

from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecortex.config import EngineConfig
from edgecortex.kv.attention import cut
from edgecortex.kv.past import STEP, Past
from edgecortex.runner import ModelRunner
from edgecortex.warp import injection
from tests import tiny

IDS = [3 + (7 * i * i + 5 * i) % 90 for i in range(100)]


def run(length: int, seed: int) -> tuple[mx.array, mx.array]:
    """Keys (2, 4, L) and values (2, L, 3)."""
    rng = np.random.default_rng(seed)
    return mx.array(rng.random((2, 4, length))), mx.array(rng.random((2, length, 3)))


def joined(runs: list[tuple[mx.array, mx.array]]) -> tuple[np.ndarray, np.ndarray]:
    keys, values = zip(*runs, strict=True)
    return np.concatenate(keys, axis=2), np.concatenate(values, axis=1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 2 * STEP), min_size=1, max_size=6))
def test_past_is_all_that_was_appended(lengths: list[int]) -> None:
    past, runs = Past(), [run(n, i) for i, n in enumerate(lengths)]
    for each in runs:
        past.append(*each)
    assert past.num_tokens == sum(lengths)
    for found, expected in zip(past.keys_and_values(), joined(runs), strict=True):
        np.testing.assert_array_equal(np.array(found), expected)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=5), st.data())
def test_cut_takes_the_tokens_asked_for(lengths: list[int], data: st.DataObject) -> None:
    runs = [run(n, i) for i, n in enumerate(lengths)]
    start = data.draw(st.integers(0, sum(lengths)))
    stop = data.draw(st.integers(start, sum(lengths)))
    found = cut(runs, start, stop)
    if start == stop:
        assert found == []
        return
    keys, values = joined(runs)
    for ours, expected in zip(
        joined(found), (keys[..., start:stop], values[:, start:stop]), strict=True
    ):
        np.testing.assert_array_equal(ours, expected)


def test_nothing_is_cut_from_nothing() -> None:
    assert cut([], 0, 0) == []
    with pytest.raises(AssertionError):
        Past().keys_and_values()


@pytest.fixture
def runner() -> Iterator[ModelRunner]:
    runner = ModelRunner(tiny.make("llama"), EngineConfig(kv_format="kv4"))
    yield runner
    runner.pool.check()


def held(runner: ModelRunner) -> list[int]:
    """Tokens that each context's past has, in the first layer."""
    return [layers[0].num_tokens for layers in runner.pool.pasts._held.values()]


def test_past_is_kept_from_share_to_share(runner: ModelRunner) -> None:
    speaks, reads, other = (runner.pool.open() for _ in range(3))
    runner.run([(speaks, [5, 6])])
    for num_sealed in (0, 64, 64, 128, 192):
        runner.run([(speaks, [7]), (reads, [8] * 40)])
        assert held(runner) == [num_sealed]
        runner.run([(speaks, [7])])  # steps without a share in between
        runner.run([(other, [7, 7])])
        assert held(runner) == [num_sealed]
    runner.run([(reads, [8] * 64)])  # nobody else speaks any more
    assert held(runner) == [256]
    runner.run([(speaks, [7]), (reads, [9])])
    assert held(runner) == []


def test_past_goes_with_who_leaves(runner: ModelRunner) -> None:
    speaks, reads = runner.pool.open(), runner.pool.open()
    runner.run([(speaks, [7]), (reads, [8] * 100)])
    assert held(runner) == [64]
    runner.pool.close(reads)
    assert held(runner) == []


@pytest.mark.parametrize("num_laid", [60, 64, 128])
def test_no_past_outlives_what_is_laid(num_laid: int) -> None:
    """As many foreign tokens as a window has let go of are not those."""
    said = []
    for beside in (True, False):
        runner = ModelRunner(tiny.make("gemma3_text"), EngineConfig(kv_format="fp"))
        speaks, reads, thinks = (runner.pool.open() for _ in range(3))
        speech = [(speaks, [7])] if beside else []
        runner.run([(thinks, IDS * 3)])
        thought = injection.gather(runner, thinks, thinks.num_own - num_laid)
        for ids in (IDS * 2, IDS[:64]):
            runner.run([*speech, (reads, ids)])
        runner.pool.lay(reads, thought, "thought")
        said.append(np.array(runner.run([*speech, (reads, IDS[:16])])[1])[-1])
    np.testing.assert_allclose(said[0], said[1], atol=1e-3)


def test_no_past_outlives_what_it_was_of(runner: ModelRunner) -> None:
    """Who stops reading half-way may go on with as many tokens of another prompt."""
    speaks, reads, other, plain = (runner.pool.open() for _ in range(4))
    runner.run([(other, IDS)])
    runner.run([(speaks, [7]), (reads, [8] * 100)])
    runner.pool.release(reads)
    runner.pool.truncate(reads, 0)
    num_shared = runner.pool.format.num_sinks + 64
    assert runner.pool.share(other, reads, num_shared)
    rest = IDS[num_shared:]
    logits = np.array(runner.run([(speaks, [7]), (reads, rest)])[1])
    expected = np.array(runner.run([(plain, IDS)])[1])
    np.testing.assert_allclose(logits[1:], expected, atol=1e-4)


@pytest.mark.parametrize("with_share", [True, False])
def test_no_past_is_kept_without_room(runner: ModelRunner, with_share: bool) -> None:
    speaks, reads = runner.pool.open(), runner.pool.open()
    runner.run([(speaks, [7]), (reads, [8] * 100)])
    pasts = runner.pool.pasts
    runner.pool.max_bytes = runner.pool.used_bytes + pasts.nbytes - 1
    share = [(reads, [8] * 20)] if with_share else []
    runner.run([(speaks, [7]), *share])
    assert pasts.nbytes == 0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(2, 150), min_size=1, max_size=6), st.integers(0, 3_000_000))
def test_what_is_read_back_fits_in_what_is_free(shares: list[int], room: int) -> None:
    runner = ModelRunner(tiny.make("llama"), EngineConfig(kv_format="kv4"))
    pool = runner.pool
    speaks, reads = pool.open(), pool.open()
    runner.run([(speaks, [5] * 70)])
    for share in shares:
        pool.max_bytes = pool.used_bytes + room
        free = pool.free_bytes
        runner.run([(speaks, [7]), (reads, [8] * share)])
        assert pool.pasts.nbytes + pool.read_backs.nbytes <= free
