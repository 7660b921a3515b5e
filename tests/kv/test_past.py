"""What prompts read back of sealed runs, in whatever pieces."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecortex.kv.attention import cut
from edgecortex.kv.past import STEP, Past


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
