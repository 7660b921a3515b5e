"""Landmarks of a real model's context: what rules promise, on keys and queries as they are."""

import numpy as np
import pytest

from edgecortex import Engine
from edgecortex.bench.text import english
from edgecortex.kv.context import Trace
from edgecortex.warp.landmarks import RULES, SINKS, View, hausdorff
from edgecortex.warp.synapse import NUM_QUERIES, view_of

K = 64
LAYERS = (0, 7, 14, 22, 29)


@pytest.fixture(scope="module")
def views(real: Engine) -> list[View]:
    """Of some layers, after 600 tokens of English."""

    def read() -> list[View]:
        runner, model = real.core.runner, real.core.model
        context = runner.pool.open()
        context.trace = Trace(len(runner.pool.caches), NUM_QUERIES, NUM_QUERIES)
        ids = model.tokenizer.encode(english()[:4000], first=True)[:600]
        runner.run([(context, ids)])
        try:
            return [view_of(runner, context, layer) for layer in LAYERS]
        finally:
            runner.pool.close(context)

    return real.call(read)


def error(view: View, rule: str) -> float:
    """How far what landmarks say is from what all tokens say, in units of the latter, over the
    queries of a view: attention as it is defined, in float64."""
    marks, off, size = RULES[rule](view, K), 0.0, 0.0
    for h, (q, k, v) in enumerate(zip(view.queries, view.keys, view.values, strict=True)):
        bias = 0.0 if marks.bias is None else marks.bias[h]
        truth, said = weighted(q, k, v, 0.0), weighted(q, k[marks.kept[h]], marks.values[h], bias)
        off += float(((truth - said) ** 2).sum())
        size += float((truth**2).sum())
    return off / size


def weighted(q: np.ndarray, k: np.ndarray, v: np.ndarray, bias: np.ndarray | float) -> np.ndarray:
    scores = q.astype(np.float64) @ k.T.astype(np.float64) + bias
    weights = 2.0 ** (scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True) @ v.astype(np.float64)


@pytest.mark.parametrize("rule", RULES)
def test_every_head_has_landmarks_of_its_own(views: list[View], rule: str) -> None:
    for view in views:
        kept = RULES[rule](view, K).kept
        assert kept.shape == (3, K)
        assert (np.diff(kept, axis=1) > 0).all()
        assert (kept[:, :SINKS] == np.arange(SINKS)).all()


MATCHING = ("matched", "scales")


@pytest.mark.parametrize("rule", MATCHING)
def test_what_is_matched_stands_for_all_best(views: list[View], rule: str) -> None:
    """With the 64 of 600 tokens that it keeps, in every layer."""
    for view in views:
        rivals = {other: error(view, other) for other in RULES if other not in MATCHING}
        assert error(view, rule) < min(rivals.values()), rivals


def test_coverage_reaches_farther_than_attention_alone(views: list[View]) -> None:
    for view in views:
        marks = [RULES[rule](view, K) for rule in ("coverage", "attention")]
        spread, plain = (hausdorff(view, each) for each in marks)
        assert spread < plain
