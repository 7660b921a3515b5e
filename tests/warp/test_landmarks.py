"""Rules for landmarks, against plain references of what each one promises."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecortex.warp.landmarks import RECENT, RULES, SINKS, Landmarks, View, hausdorff

HEADS, DIM = 2, 16
KS = [16, 17, 40, 64, 100]
ROUNDING = 1e-9  # squares of float32's error in values near 1; what is compared is mostly > 1e-4


def view(seed: int, length: int, num_queries: int = 24, v_dim: int = 12) -> View:
    """Keys in clumps, values of their own, and queries that look for some of the clumps."""
    rng = np.random.default_rng(seed)
    clumps = rng.normal(size=(HEADS, 6, DIM)) * 3
    member = rng.integers(0, 6, size=length)
    keys = clumps[:, member] + rng.normal(size=(HEADS, length, DIM))
    wanted = clumps[:, rng.integers(0, 6, size=num_queries)]
    queries = (wanted + rng.normal(size=wanted.shape)) / 4
    values = rng.normal(size=(HEADS, length, v_dim))
    return View(*(x.astype(np.float32) for x in (keys, values, queries)))


views = st.builds(view, st.integers(0, 10_000), st.integers(1, 300), st.integers(1, 40))
long_views = st.builds(view, st.integers(0, 10_000), st.integers(110, 300), st.integers(1, 40))


def attended(queries: np.ndarray, keys: np.ndarray, values: np.ndarray, bias=None) -> np.ndarray:
    """Attention of one head as it is defined, in float64; scores are powers of two."""
    scores = queries.astype(np.float64) @ keys.astype(np.float64).T
    scores += 0 if bias is None else bias
    weights = 2.0**scores
    return weights / weights.sum(axis=1, keepdims=True) @ values.astype(np.float64)


def error(view: View, kept: np.ndarray, values: np.ndarray, bias: np.ndarray | None) -> float:
    """How far what some tokens say is from what all say, over all heads and queries."""
    total = 0.0
    for h, q in enumerate(view.queries):
        truth = attended(q, view.keys[h], view.values[h])
        said = attended(q, view.keys[h][kept[h]], values[h], None if bias is None else bias[h])
        total += float(((truth - said) ** 2).mean())
    return total


# All rules.


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=60, deadline=None)
@given(view=views, k=st.sampled_from(KS))
def test_k_ascending_tokens_per_head_with_the_first_ones(rule: str, view: View, k: int) -> None:
    marks = RULES[rule](view, k)
    num_kept = min(k, view.num_tokens)
    assert marks.kept.shape == (HEADS, num_kept)
    assert (np.diff(marks.kept, axis=1) > 0).all()
    assert marks.kept.min() >= 0
    assert marks.kept.max() < view.num_tokens
    sinks = np.arange(min(SINKS, num_kept))
    assert (marks.kept[:, : len(sinks)] == sinks).all()
    assert marks.values.shape == (HEADS, num_kept, view.values.shape[2])
    assert np.isfinite(marks.values).all()
    if rule not in ("matched", "scales"):
        assert marks.bias is None
        for h in range(HEADS):
            np.testing.assert_array_equal(marks.values[h], view.values[h][marks.kept[h]])


@pytest.mark.parametrize("rule", ["matched", "scales", "coverage", "sinks+recent"])
@settings(max_examples=40, deadline=None)
@given(view=views, k=st.sampled_from(KS))
def test_the_newest_ones_too(rule: str, view: View, k: int) -> None:
    kept = RULES[rule](view, k).kept
    newest = np.arange(view.num_tokens)[-min(RECENT, k // 4) :]
    assert all(np.isin(newest, per_head).all() for per_head in kept)


@settings(max_examples=60, deadline=None)
@given(view=long_views, k=st.sampled_from(KS))
def test_attention_keeps_the_tokens_with_most_mass(view: View, k: int) -> None:
    kept = RULES["attention"](view, k).kept
    for h in range(HEADS):
        weights = 2.0 ** (view.queries[h].astype(np.float64) @ view.keys[h].astype(np.float64).T)
        mass = (weights / weights.sum(axis=1, keepdims=True)).sum(axis=0)
        others = np.setdiff1d(np.arange(view.num_tokens), kept[h])
        assert mass[kept[h][SINKS:]].min() >= mass[others].max() * (1 - 1e-3)


def test_the_weights_of_a_view_are_its_attention() -> None:
    shown = view(3, 90)
    shown = View(shown.keys * 40, shown.values, shown.queries)  # exponents that overflow by hand
    np.testing.assert_allclose(shown.weights.sum(axis=2), 1, rtol=1e-4)
    scores = shown.scores.astype(np.float64)
    weights = 2.0 ** (scores - scores.max(axis=2, keepdims=True))
    expected = weights / weights.sum(axis=2, keepdims=True)
    # Scores near 1,000 have 6e-5 of float32 rounding.
    np.testing.assert_allclose(shown.weights, expected, atol=2e-3)


# Coverage.


def start_of(view: View, h: int, k: int) -> list[int]:
    """What coverage begins with: the first, the newest, and for the rest of half of k mass."""
    mass = view.weights[h].sum(axis=0)
    recent = min(RECENT, k // 4)
    fixed = {*range(SINKS), *range(view.num_tokens - recent, view.num_tokens)}
    by_mass = [int(i) for i in np.argsort(-mass) if i not in fixed]
    return sorted([*fixed, *by_mass][: max(k // 2, len(fixed))])


def reach(keys: np.ndarray, kept: np.ndarray) -> float:
    """The Hausdorff distance of a cloud from some of its own points, as it is defined."""
    return float(np.linalg.norm(keys[:, None] - keys[kept][None], axis=2).min(axis=1).max())


@settings(max_examples=25, deadline=None)
@given(view=long_views, k=st.sampled_from([16, 40, 64]), seed=st.integers(0, 1000))
def test_coverage_beats_every_other_way_to_go_on(view: View, k: int, seed: int) -> None:
    """Farthest-point steps are within twice the best (Gonzalez, 1985), so within twice what
    attention mass or chance makes of the same start, and never worse than the start."""
    kept = RULES["coverage"](view, k).kept
    for h, keys in enumerate(view.keys.astype(np.float64)):
        start = start_of(view, h, k)
        assert set(start) <= set(kept[h].tolist())
        mass = view.weights[h].sum(axis=0)
        others = np.setdiff1d(np.arange(view.num_tokens), start)
        by_mass = others[np.argsort(-mass[others])][: k - len(start)]
        by_chance = np.random.default_rng(seed).choice(others, k - len(start), replace=False)
        covered = reach(keys, kept[h])
        assert covered <= reach(keys, np.array(start)) * (1 + 1e-4)
        for rival in (by_mass, by_chance):
            assert covered <= 2 * reach(keys, np.append(start, rival)) * (1 + 1e-4)


def test_coverage_reaches_farther_than_attention_alone() -> None:
    for k in (16, 40, 64):
        for seed in range(12):
            shown = view(seed, 250)
            plain, spread = (RULES[rule](shown, k) for rule in ("attention", "coverage"))
            assert hausdorff(shown, spread) < hausdorff(shown, plain)


def test_coverage_finds_what_nobody_asks_for() -> None:
    """A token far from all others is kept, though no query ever attended to it."""
    shown = view(5, 200)
    shown.keys[:, 120] = -50 * shown.queries.mean(axis=1)
    assert 120 in RULES["coverage"](shown, 16).kept[0]
    assert 120 not in RULES["attention"](shown, 16).kept[0]


def test_the_hausdorff_distance() -> None:
    shown = view(4, 60)
    marks = RULES["random"](shown, 16)
    pairs = zip(shown.keys, marks.kept, strict=True)
    expected = np.mean([reach(keys, kept) for keys, kept in pairs])
    assert hausdorff(shown, marks) == pytest.approx(expected, rel=1e-3)
    everything = np.tile(np.arange(60), (HEADS, 1))
    assert hausdorff(shown, Landmarks(everything, shown.values)) <= 0.02  # of a square's rounding


# Matching.


def as_they_are(view: View, kept: np.ndarray) -> np.ndarray:
    return np.take_along_axis(view.values, kept[..., None], axis=1)


@settings(max_examples=100, deadline=None)
@given(view=long_views, k=st.sampled_from(KS))
def test_matched_values_say_what_all_said_better_than_those_of_the_tokens(view, k) -> None:
    """At the same weights, for any queries: they are what least squares makes of the others."""
    marks = RULES["matched"](view, k)
    assert marks.bias is not None
    matched = error(view, marks.kept, marks.values, marks.bias)
    plain = error(view, marks.kept, as_they_are(view, marks.kept), marks.bias)
    assert matched <= plain + ROUNDING


@pytest.mark.parametrize("k", KS)
def test_matched_beats_all_that_keep_tokens_as_they_are(k: int) -> None:
    """Over the queries that it saw, the mean of twelve views: with the same tokens, or others."""
    views = [view(seed, 250, 40) for seed in range(12)]
    marked = [(v, RULES["matched"](v, k)) for v in views]
    matched = np.mean([error(v, m.kept, m.values, m.bias) for v, m in marked])
    same = [error(v, m.kept, as_they_are(v, m.kept), None) for v, m in marked]
    assert matched < 0.5 * np.mean(same)
    for rule in RULES.keys() - {"matched"}:
        others = [(v, RULES[rule](v, k)) for v in views]
        assert matched < 0.5 * np.mean([error(v, m.kept, m.values, None) for v, m in others])


@settings(max_examples=40, deadline=None)
@given(view=long_views, k=st.sampled_from(KS))
def test_weights_make_up_for_what_is_left_out(view: View, k: int) -> None:
    """What a query's landmarks add up to is nearer to the sum of all tokens than without."""
    marks = RULES["matched"](view, k)
    assert marks.bias is not None
    scores = view.scores.astype(np.float64)
    total = (2.0**scores).sum(axis=2)
    kept = np.take_along_axis(scores, marks.kept[:, None], axis=2)
    plain, weighted = ((2.0**x).sum(axis=2) for x in (kept, kept + marks.bias[:, None]))
    assert ((weighted / total - 1) ** 2).mean() <= ((plain / total - 1) ** 2).mean() + 1e-6


def test_every_scale_has_its_share() -> None:
    """Of 600 tokens the newest 32, then spans of 32, 64, 128, 256 and what is before."""
    shown = view(3, 600, 4)
    kept = RULES["scales"](shown, 64).kept
    for start, stop in itertools.pairwise([4, 88, 344, 472, 536, 568]):
        num_kept = ((kept >= start) & (kept < stop)).sum(axis=1)
        assert (num_kept >= 4).all()
        assert (num_kept <= 12).all()
