"""The gate on states made for the purpose: what it standardizes, and what it lets through."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecortex.errors import ConfigError
from edgecortex.warp.gate import RunningStates, ValidationGate, cosine

DIM = 32


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def topic(seed: int, n: int, noise: float = 0.5) -> np.ndarray:
    """(n, DIM) states about one thing: a direction of their own, and the one that all share."""
    common, own = rng(1).normal(size=DIM) * 20, rng(seed).normal(size=DIM)
    return common + own + noise * rng(1000 + seed + n).normal(size=(n, DIM))


def seen_of(*batches: np.ndarray) -> RunningStates:
    seen = RunningStates()
    for batch in batches:
        seen.add(batch)
    return seen


# Running states.


@given(
    st.integers(0, 10_000),
    st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) >= 3),
    st.floats(-1000, 1000),
    st.floats(0.01, 1000),
)
def test_states_in_batches_are_standardized_as_all_together(seed, sizes, mean, spread) -> None:
    states = (mean + spread * rng(seed).normal(size=(sum(sizes), DIM))).astype(np.float32)
    seen = seen_of(*np.split(states, np.cumsum(sizes)[:-1]))
    assert seen.count == sum(sizes)
    whole = states.astype(np.float64)
    expected = (whole - whole.mean(axis=0)) / np.maximum(whole.std(axis=0), 1e-6)
    # A mean of 1,000 in units of a spread of 0.001 leaves 10 of float64's 16 digits.
    np.testing.assert_allclose(seen.standardized(states), expected, rtol=1e-6, atol=1e-6)


def test_nothing_seen_changes_nothing() -> None:
    states = topic(3, 4)
    np.testing.assert_array_equal(RunningStates().standardized(states), states)


def test_a_channel_that_never_changes_says_nothing() -> None:
    states = topic(3, 50)
    states[:, 5] = 7.0
    standardized = seen_of(states).standardized(states)
    np.testing.assert_allclose(standardized[:, 5], 0, atol=1e-3)
    assert np.isfinite(standardized).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_states_that_are_no_numbers_are_not_counted_in(bad: float) -> None:
    """One overflow must not spoil the gate for everybody after it."""
    good, broken = topic(3, 20), topic(4, 3)
    broken[1, 2] = bad
    seen, expected = seen_of(good, broken), seen_of(good, broken[[0, 2]])
    assert seen.count == 22
    np.testing.assert_allclose(seen.standardized(good), expected.standardized(good))


# The verdict.


def plain_score(seen: RunningStates, thought: np.ndarray, main: np.ndarray) -> float:
    a, b = seen.standardized(thought), seen.standardized(main)
    return float(np.mean([max(cosine(x, y) for y in b) for x in a]))


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 6))
def test_the_score_is_the_mean_of_best_cosines(seed: int, n: int, m: int) -> None:
    thought, main = rng(seed).normal(size=(n, DIM)), rng(seed + 1).normal(size=(m, DIM))
    gate = ValidationGate(0.5, seen_of(topic(2, 40)))
    assert gate.score(thought, main) == pytest.approx(plain_score(gate.seen, thought, main))
    assert -1 - 1e-9 <= gate.score(thought, main) <= 1 + 1e-9


def test_what_belongs_passes_and_what_does_not_does_not() -> None:
    """Raw cosines would let everything through: all states crowd around a common direction."""
    main, same, other = topic(5, 60), topic(5, 8), topic(6, 8)
    gate = ValidationGate(0.5, seen_of(*(topic(seed, 40) for seed in range(5, 25))))
    assert min(cosine(x, main[-1]) for x in (same[-1], other[-1])) > 0.9
    accepted, rejected = gate.judge(same, main), gate.judge(other, main)
    assert (accepted.accepted, rejected.accepted) == (True, False)
    assert accepted.score > 0.6 > 0.4 > rejected.score


def test_a_thought_that_is_what_was_said_scores_one() -> None:
    main = topic(5, 30)
    gate = ValidationGate(0.99, seen_of(main, topic(7, 30)))
    verdict = gate.judge(main[10:20], main)
    assert verdict.accepted
    assert verdict.score == pytest.approx(1)


@pytest.mark.parametrize("threshold", [-1.0, 0.5])
@pytest.mark.parametrize("where", ["thought", "main"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_rejected(threshold: float, where: str, bad: float) -> None:
    states = {"thought": topic(5, 4), "main": topic(5, 6)}
    states[where][:] = bad
    gate = ValidationGate(threshold, seen_of(topic(5, 40)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's own: inf / inf
        verdict = gate.judge(**states)
    assert np.isnan(verdict.score)
    assert not verdict.accepted


@given(st.floats(-1, 1), st.integers(0, 100))
def test_at_the_threshold_is_in(threshold: float, seed: int) -> None:
    thought, main = rng(seed).normal(size=(3, DIM)), rng(seed + 1).normal(size=(3, DIM))
    verdict = ValidationGate(threshold).judge(thought, main)
    assert verdict.accepted == (verdict.score >= threshold)
    assert ValidationGate(verdict.score).judge(thought, main).accepted


@pytest.mark.parametrize("threshold", [-1.001, 1.001, float("nan"), float("inf")])
def test_no_threshold(threshold: float) -> None:
    with pytest.raises(ConfigError, match=f"threshold must be between -1 and 1, got {threshold}"):
        ValidationGate(threshold)
