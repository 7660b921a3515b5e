"""What storing KV in fewer bits costs: perplexity and divergence from full precision.

Windows of real English text are read once with the KV of each format, and the second half of a
window (at most 512 tokens) is scored. What a token sees quantized is what it would see while
decoding, so this is the quality of generation and not only of prefill.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import mlx.core as mx

from edgecortex import gate
from edgecortex.bench.journal import once
from edgecortex.bench.report import Report, Row, make_report, median
from edgecortex.bench.rivals import RIVALS, RivalReader
from edgecortex.bench.text import english
from edgecortex.config import EngineConfig
from edgecortex.cpu import distribution
from edgecortex.errors import EdgeCortexError
from edgecortex.kv.format import FORMATS
from edgecortex.models import resolve
from edgecortex.models.adapter import LoadedModel, load_model
from edgecortex.runner import ModelRunner

MAX_SCORED = 512
CHUNK = 128  # scored tokens at a time: a row of logits may be a megabyte


class Reader(Protocol):
    """A context of one window, read chunk by chunk."""

    def read(self, ids: Sequence[int], scored: bool) -> mx.array:
        """Feeds tokens. Returns: logits (len(ids), vocab) if `scored`, else of any rows."""

    def bits_per_value(self) -> float:
        """Bits a sealed value takes, scales and biases included; 0 if that is not known."""


class EngineReader:
    """One of the engine's own formats."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        for old in runner.pool.contexts():
            runner.pool.close(old)
        self._context = runner.pool.open()

    def read(self, ids: Sequence[int], scored: bool) -> mx.array:
        return self._runner.run([(self._context, ids)], all_rows=scored)[1]

    def bits_per_value(self) -> float:
        bits, values = 0, 0
        for segment in self._context.segments:
            for cache, layer in zip(self._runner.pool.caches, segment.layers, strict=True):
                heads, k_dim, v_dim, _ = cache.shape()
                bits += 8 * layer.nbytes
                values += layer.num_tokens * heads * (k_dim + v_dim)
        return bits / values


def measure(
    model: str, windows: dict[int, int], progress: Callable[[str], None], rivals: bool = True
) -> Report:
    """Compares all formats of the engine, and their rivals, with full precision.

    Args:
        windows: how many windows to read, by their length in tokens.
        rivals: whether rivals read the shortest.

    Raises:
        EdgeCortexError: the text is too short for them.
    """
    loaded = load_model(resolve(model))
    default = gate.choose(loaded).kv_format
    starts = _readers(loaded)
    rows: list[Row] = []
    for length, count in windows.items():
        parts = defaultdict[str, list[Row]](list)
        for number, ids in enumerate(_passages(loaded, length, count), 1):
            progress(f"{length:,} tokens, window {number} of {count}")
            with_rivals = rivals and length == min(windows)
            chosen = starts if with_rivals else _without_rivals(starts)
            found = once(["quality", length, number], partial(_compare, chosen, ids))
            for name, part in found.items():
                parts[name].append(part)
        rows += [_summary(name, length, parts[name], parts["fp"]) for name in parts]
    ours = [row for row in rows if row["format"] == default]
    figures = {
        "quality.kl": max(row["kl"] for row in ours),
        "quality.ppl_pct": max(row["ppl_pct"] for row in ours),
        "quality.bits_per_value": max(row["bits_per_value"] for row in ours),
    }
    settings = {"model": model, "format": default, "windows": windows, "scored": "2nd half"}
    return make_report("quality", settings, figures, rows)


def _readers(loaded: LoadedModel) -> dict[str, Callable[[], Reader]]:
    """Each format's way to begin a window. Full precision comes first: it is the measure."""
    names = sorted(FORMATS, key=lambda name: name != "fp")
    runners = {name: ModelRunner(loaded, EngineConfig(kv_format=name)) for name in names}
    engine = {name: partial(EngineReader, runner) for name, runner in runners.items()}
    return engine | {name: partial(RivalReader, loaded, rival) for name, rival in RIVALS.items()}


def _without_rivals(starts: dict[str, Callable[[], Reader]]) -> dict[str, Callable[[], Reader]]:
    return {name: start for name, start in starts.items() if name not in RIVALS}


def _passages(loaded: LoadedModel, length: int, count: int) -> list[list[int]]:
    """Passages of equal length, spread evenly over the text."""
    ids = loaded.tokenizer.encode(english(), first=False)
    start = loaded.tokenizer.encode("", first=True)[:1]
    apart = (len(ids) - length) // max(1, count - 1)
    if apart < length - len(start) and count > 1:
        raise EdgeCortexError(
            f"the text has {len(ids):,} tokens, too few for {count} windows of {length:,}"
        )
    return [start + ids[i * apart : i * apart + length - len(start)] for i in range(count)]


def _chunks(length: int) -> Iterator[tuple[int, int, bool]]:
    """(start, stop, whether it is scored) of the tokens that are fed: all but the last."""
    first_scored = length - 1 - min(MAX_SCORED, length // 2)
    for start in range(0, first_scored, MAX_SCORED):
        yield start, min(start + MAX_SCORED, first_scored), False
    for start in range(first_scored, length - 1, CHUNK):
        yield start, min(start + CHUNK, length - 1), True


def _compare(starts: dict[str, Callable[[], Reader]], ids: list[int]) -> dict[str, Row]:
    """One window through all formats: sums over its scored tokens."""
    readers = {name: start() for name, start in starts.items()}
    sums = {name: defaultdict[str, float](float) for name in readers}
    for start, stop, scored in _chunks(len(ids)):
        truth: tuple[mx.array, mx.array] | None = None
        for name, reader in readers.items():
            logits = reader.read(ids[start:stop], scored)
            if not scored:
                continue
            p, log_p = distribution(logits)
            truth = truth or (p, log_p)
            for key, value in _scores(*truth, log_p, ids[start + 1 : stop + 1]).items():
                sums[name][key] += value
    for name, reader in readers.items():
        sums[name]["bits"] = reader.bits_per_value()
    return {name: dict(values) for name, values in sums.items()}


def _scores(p: mx.array, truth: mx.array, log_p: mx.array, targets: list[int]) -> Row:
    """Sums over tokens of negative log-likelihood, KL to the truth (probabilities `p` and their
    logarithms) and changed top tokens."""
    nll = -mx.take_along_axis(log_p, mx.array(targets)[:, None], axis=-1).sum()
    kl = (p * (truth - log_p)).sum()
    changed = (truth.argmax(axis=-1) != log_p.argmax(axis=-1)).sum()
    return {"tokens": len(targets), "nll": nll.item(), "kl": kl.item(), "changed": changed.item()}


def _summary(name: str, length: int, parts: list[Row], base: list[Row]) -> Row:
    """A format's row of the table, over all windows of one length."""

    def mean(rows: list[Row], key: str) -> float:
        return float(sum(row[key] for row in rows) / sum(row["tokens"] for row in rows))

    nll, fp_nll = mean(parts, "nll"), mean(base, "nll")
    return {
        "tokens": length,
        "windows": len(parts),
        "format": name,
        "bits_per_value": parts[0]["bits"],
        "ppl": math.exp(nll),
        "ppl_pct": 100 * (math.exp(nll - fp_nll) - 1),
        "kl": mean(parts, "kl"),
        "kl_median_window": median(part["kl"] / part["tokens"] for part in parts),
        "top1_changed_pct": 100 * mean(parts, "changed"),
    }
