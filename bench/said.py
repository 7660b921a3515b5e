"""Whether agents said what the model says: their greedy answers, read again in full precision."""

from pathlib import Path

import mlx.core as mx

from edgecortex.bench.side import serve
from edgecortex.bench.text import prompts
from edgecortex.models.adapter import load_model


def regrets(
    path: str, lengths: dict[str, list[int]], said: dict[str, list[list[int]]]
) -> dict[str, float]:
    """By how many nats the tokens that agents said fell short of the likeliest ones, on average.

    Args:
        lengths: of the prompts of each scenario's agents.
        said: what these agents said after them; some, such as the first and the last, are read.
    """
    model = load_model(Path(path))
    found = {}
    for name, answers in said.items():
        ids = prompts(model.tokenizer, lengths[name])
        chosen = sorted({0, len(ids) - 1})
        shorter = [_regret(model.reference(ids[i] + answers[i]), answers[i]) for i in chosen]
        found[name] = sum(shorter) / len(shorter)
    return found


def _regret(logits: mx.array, said: list[int]) -> float:
    """Of the newest tokens of a text with these logits (L, vocab), those that were `said`."""
    before = logits[-len(said) - 1 : -1].astype(mx.float32)
    chosen = mx.take_along_axis(before, mx.array(said)[:, None], axis=-1)[:, 0]
    return float((before.max(axis=-1) - chosen).mean())


if __name__ == "__main__":
    serve({"regrets": regrets})
