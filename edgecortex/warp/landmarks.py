"""Which tokens of one layer stand for all of them.

A rule takes a `View` and how many to keep. Shapes: keys (n_kv_heads, L, head_dim), queries
(n_kv_heads, R, head_dim) with the rows of all query heads of a KV head stacked and scaled so
that scores are powers of two. Every KV head of every layer keeps tokens of its own.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

SINKS = 4  # the first tokens, which take the attention that nothing else wants
RECENT = 64  # the newest ones, or half of a smaller number
RIDGE = 0.1  # of the mean diagonal
ROUNDS = 50


@dataclass(frozen=True)
class View:
    """A layer's keys, values (n_kv_heads, L, v_head_dim) and the newest queries."""

    keys: np.ndarray
    values: np.ndarray
    queries: np.ndarray

    @property
    def num_tokens(self) -> int:
        return int(self.keys.shape[1])

    @cached_property
    def scores(self) -> np.ndarray:
        """(n_kv_heads, R, L)."""
        return np.asarray(self.queries @ self.keys.swapaxes(1, 2))

    @property
    def log_total(self) -> np.ndarray:
        """(n_kv_heads, R, 1): the logarithm of what a query's weights add up to."""
        return self._attention[1]

    @property
    def weights(self) -> np.ndarray:
        """(n_kv_heads, R, L): the attention of each query."""
        return self._attention[0]

    @cached_property
    def _attention(self) -> tuple[np.ndarray, np.ndarray]:
        most = self.scores.max(axis=2, keepdims=True)
        weights = np.exp2(self.scores - most)
        total = weights.sum(axis=2, keepdims=True)
        weights /= total
        return weights, most + np.log2(total)


@dataclass(frozen=True)
class Landmarks:
    """Per KV head the numbers of the tokens kept (n_kv_heads, k), ascending; their values, and
    what is added to their scores (n_kv_heads, k), None where they stand for themselves alone."""

    kept: np.ndarray
    values: np.ndarray
    bias: np.ndarray | None = None


Rule = Callable[[View, int], Landmarks]


def recency(view: View, k: int) -> Landmarks:
    """The first tokens and the newest ones."""
    length = view.num_tokens
    sinks = np.arange(min(SINKS, k, length))
    kept = np.concatenate([sinks, np.arange(max(len(sinks), length - k + len(sinks)), length)])
    return _as_they_are(view, np.tile(kept, (len(view.keys), 1)))


def chance(view: View, k: int) -> Landmarks:
    """The first tokens and random ones."""
    random = np.random.default_rng(view.keys[0, -1].astype(np.float32).view(np.uint32))
    return _as_they_are(view, _top(random.random(view.keys.shape[:2]), k, 0))


def attention(view: View, k: int) -> Landmarks:
    """Those with most attention mass (Warp-Cortex, section 3.3: the sum of A_i alone)."""
    return _as_they_are(view, _top(view.weights.sum(axis=1), k, 0))


def key_difference(view: View, k: int) -> Landmarks:
    """Those whose keys are least like the mean key (KeyDiff, arXiv 2504.15364), and the first."""
    unit = view.keys / np.linalg.norm(view.keys, axis=2, keepdims=True)
    mean = unit.mean(axis=1, keepdims=True)
    return _as_they_are(view, _top(-(unit * mean).sum(axis=2), k, 0))


def coverage(view: View, k: int) -> Landmarks:
    """Half by attention mass and recency, half by farthest-point steps over the keys, which
    shrink the Hausdorff distance (Warp-Cortex, section 3.3: the hybrid sampler)."""
    kept = _top(view.weights.sum(axis=1), k // 2, min(RECENT, k // 4))
    return _as_they_are(view, np.stack([_spread(*x, k) for x in zip(view.keys, kept, strict=True)]))


def matched(view: View, k: int) -> Landmarks:
    """The first, the newest, and those that any query attends to most; then each is given the
    weight and the value with which all together do what the whole context did for the queries
    (attention matching, arXiv 2602.16284)."""
    return _matching(view, _top(view.weights.max(axis=1), k, min(RECENT, k // 2)))


def scales(view: View, k: int) -> Landmarks:
    """The same at several scales: of spans that double in length towards the beginning, about as
    many tokens each."""
    score, recent = view.weights.max(axis=1), min(RECENT, k // 2)
    starts = [view.num_tokens - recent]
    while starts[-1] > SINKS:
        starts.append(max(SINKS, 2 * starts[-1] - view.num_tokens))
    each = -(-(k - SINKS - recent) // max(1, len(starts) - 1))
    for stop, start in itertools.pairwise(starts):
        best = start + _best(score[:, start:stop], min(each, stop - start))
        np.put_along_axis(score, best, np.take_along_axis(score, best, axis=1) + 1, axis=1)
    return _matching(view, _top(score, k, recent))


def _matching(view: View, kept: np.ndarray) -> Landmarks:
    scores = np.take_along_axis(view.scores, kept[:, None], axis=2)
    bias = np.log2(_shares(np.exp2(scores - view.log_total)))
    scores += bias[:, None]
    weights = np.exp2(scores - _log_sum(scores))
    values = np.take_along_axis(view.values, kept[..., None], axis=1)
    missing = view.weights @ view.values - weights @ values
    gram = weights.swapaxes(1, 2) @ weights
    ridge = RIDGE * np.trace(gram, axis1=1, axis2=2)[:, None, None] / kept.shape[1]
    gram += ridge * np.eye(kept.shape[1], dtype=gram.dtype)
    values = values + np.linalg.solve(gram, weights.swapaxes(1, 2) @ missing)
    return Landmarks(kept, values, bias)


RULES: dict[str, Rule] = {
    "matched": matched,
    "sinks+recent": recency,
    "random": chance,
    "attention": attention,
    "keydiff": key_difference,
    "coverage": coverage,
    "scales": scales,
}


def hausdorff(view: View, marks: Landmarks) -> float:
    """How far the farthest key is from the nearest landmark's, the mean of all KV heads."""
    worst = [
        _distances(k, k[kept]).min(axis=1).max()
        for k, kept in zip(view.keys, marks.kept, strict=True)
    ]
    return float(np.mean(worst))


def _as_they_are(view: View, kept: np.ndarray) -> Landmarks:
    return Landmarks(kept, np.take_along_axis(view.values, kept[..., None], axis=1))


def _top(score: np.ndarray, k: int, recent: int) -> np.ndarray:
    """(n_kv_heads, k): the first tokens, the `recent` newest, and the best of the others."""
    score, k = score.copy(), min(k, score.shape[1])
    score[:, :SINKS] = np.inf
    score[:, score.shape[1] - recent :] = np.inf
    return np.sort(_best(score, k), axis=1)


def _best(score: np.ndarray, k: int) -> np.ndarray:
    """(n_kv_heads, k): where the highest are."""
    return np.argpartition(-score, k - 1, axis=1)[:, :k]


def _spread(keys: np.ndarray, kept: np.ndarray, k: int) -> np.ndarray:
    """The tokens kept and, up to `k`, again and again the one farthest from all of them."""
    chosen, k = list(kept), min(k, len(keys))
    distance = _distances(keys, keys[kept]).min(axis=1)
    while len(chosen) < k:
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, _distances(keys, keys[chosen[-1:]])[:, 0])
    return np.sort(np.array(chosen))


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(len(a), len(b)), Euclidean."""
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(squares, 0)))


def _shares(parts: np.ndarray) -> np.ndarray:
    """Positive w (n_kv_heads, k) with parts (n_kv_heads, R, k) @ w near 1, by multiplicative
    updates (Lee and Seung, 2001)."""
    gram = parts.swapaxes(1, 2) @ parts
    wanted = parts.sum(axis=1)
    w = np.ones_like(wanted)
    for _ in range(ROUNDS):
        w *= wanted / np.maximum((gram @ w[..., None])[..., 0], 1e-12)
    return np.clip(w, 1e-3, 1e4)


def _log_sum(scores: np.ndarray) -> np.ndarray:
    most = scores.max(axis=2, keepdims=True)
    return np.asarray(most + np.log2(np.exp2(scores - most).sum(axis=2, keepdims=True)))
