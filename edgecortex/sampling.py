"""From logits to tokens, each answer by its own settings and its own randomness."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from edgecortex.config import SamplingParams


def sample(logits: mx.array, choices: Sequence[tuple[SamplingParams, int, int]]) -> list[int]:
    """One token for each row of logits (rows, vocab).

    `choices` holds each row's settings, its seed and the number of tokens it has so far: what
    is drawn depends on these alone, not on who else is in the batch.
    """
    tokens = mx.argmax(logits, axis=-1)
    for row, (params, seed, index) in enumerate(choices):
        if params.temperature > 0:
            tokens[row] = _draw(logits[row], params, seed, index)
    return list(map(int, np.array(tokens)))


def _draw(logits: mx.array, params: SamplingParams, seed: int, index: int) -> mx.array:
    logits = logits.astype(mx.float32)
    logits = (logits - logits.max()) / max(params.temperature, 1e-30)  # low ones: 0 and -inf
    if params.top_p < 1:
        logits = _nucleus(logits, params.top_p)
    return mx.random.categorical(logits, key=mx.random.key((seed << 20) + index))


def _nucleus(logits: mx.array, top_p: float) -> mx.array:
    """Keeps the smallest set of tokens whose probability reaches `top_p` (Holtzman et al.,
    arXiv 1904.09751)."""
    order = mx.argsort(-logits)
    ranked = mx.softmax(logits[order])
    before = mx.cumsum(ranked) - ranked
    cut = mx.where(before < top_p, logits[order], -mx.inf)
    return mx.put_along_axis(logits, order, cut, axis=0)
