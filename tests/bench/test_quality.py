"""The quality benchmark on short windows of the real model."""

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import pytest

from edgecortex.bench import quality
from edgecortex.bench.rivals import KEYS, RIVALS, VALUES, Rival, RivalReader
from edgecortex.bench.text import english
from edgecortex.config import EngineConfig
from edgecortex.errors import EdgeCortexError
from edgecortex.kv.format import FORMATS
from edgecortex.models.adapter import load_model
from edgecortex.runner import ModelRunner


def test_kv4_written_down_on_mlx_lm_says_the_same(smollm2: Path) -> None:
    """The engine's default format against its definition on mlx-lm's own cache."""
    loaded = load_model(smollm2)
    ids = loaded.tokenizer.encode(english()[:4000], first=False)[:300]
    ours = log_probs(quality.EngineReader(ModelRunner(loaded, EngineConfig())), ids)
    # Where fp32 sums in another order move a value across a rounding boundary, codes flip: the
    # engine differs by 2.5e-4 from itself if the prompt is cut elsewhere, by 5e-4 from this.
    assert divergence(ours, log_probs(RivalReader(loaded, Rival(KEYS, VALUES)), ids)) < 1e-3
    for rival in RIVALS.values():
        assert divergence(ours, log_probs(RivalReader(loaded, rival), ids)) > 1.5e-3


def log_probs(reader: quality.EngineReader | RivalReader, ids: Sequence[int]) -> mx.array:
    """(150, vocab), of the second half of 300 tokens."""
    reader.read(ids[:150], False)
    logits = reader.read(ids[150:], True)
    assert logits.shape == (150, 49152)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def divergence(ours: mx.array, theirs: mx.array) -> float:
    return (mx.exp(ours) * (ours - theirs)).sum(axis=-1).mean().item()  # type: ignore[return-value]


def test_report(smollm2: Path) -> None:
    report = quality.measure(str(smollm2), {256: 2}, lambda line: None)
    rows = {row["format"]: row for row in report["rows"]}
    assert set(rows) == {*FORMATS, *RIVALS}
    assert rows["fp"]["kl"] == rows["fp"]["ppl_pct"] == rows["fp"]["top1_changed_pct"] == 0
    assert rows["kv8"]["kl"] < rows["kv4"]["kl"] < rows["plain4"]["kl"] < 1
    assert rows["kv4"]["kl"] < rows["mlx-lm 4-bit"]["kl"]
    assert report["figures"]["quality.bits_per_value"] == rows["kv4"]["bits_per_value"] == 4.5
    assert report["figures"]["quality.kl"] == rows["kv4"]["kl"]


def test_too_little_text(smollm2: Path) -> None:
    with pytest.raises(EdgeCortexError, match="too few for 40 windows of 4,096"):
        quality.measure(str(smollm2), {4096: 40}, lambda line: None)
