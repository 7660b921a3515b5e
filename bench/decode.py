"""How fast many agents decode together, held against mlx-lm on the same weights and BLAS.

Each side runs in a process of its own, in turns: ours, mlx-lm, ours, mlx-lm, …
"""

import json
import sys
from collections.abc import Callable
from typing import Any

from edgecortex.bench.report import Report, Row, make_report, median, spread
from edgecortex.bench.side import answer
from edgecortex.models import resolve

NUM_STEPS = 48  # that either side times
# Prompt lengths of the agents, in tokens.
SCENARIOS = {
    "alone": [512],
    "one": [64],
    "equal16": [64] * 16,
    "mixed16": [1024] + [64] * 15,
}

GAP = "gap"


def measure(model: str, repeat: int, progress: Callable[[str], None], gap: bool = True) -> Report:
    """Runs both sides `repeat` times; figures are medians.

    Args:
        gap: measure also what a long prompt does to agents that decode, which takes longest.

    Raises:
        EdgeCortexError: a side failed.
    """
    path = str(resolve(model))
    rows: list[Row] = []
    for turn in range(repeat):
        for side in ("ours", "mlx_lm"):
            progress(f"{side}, round {turn + 1} of {repeat}")
            rows += [{"round": turn + 1, "side": side, **row} for row in _run(side, path, gap)]
    settings = {"model": model, "repeat": repeat, "scenarios": SCENARIOS}
    figures = _figures(rows)
    rounds = [_figures([r for r in rows if r["round"] == turn + 1]) for turn in range(repeat)]
    return make_report("decode", settings, figures, rows, spread(figures, rounds))


def _run(side: str, path: str, gap: bool) -> list[Row]:
    more = [GAP] if gap and side == "ours" else []
    return list(answer(f"the {side} side", f"bench.decode_{side}", path, *more))


def _figures(rows: list[Row]) -> dict[str, float]:
    def value(side: str, scenario: str, key: str = "tokens_per_s") -> float:
        found = [r[key] for r in rows if (r["side"], r["scenario"]) == (side, scenario)]
        return float(median(found))

    ours, peer = "ours", "mlx_lm"
    figures = {
        "decode.alone_over_mlx_lm": value(ours, "alone") / value(peer, "alone"),
        "decode.equal16_over_1": value(ours, "equal16") / value(ours, "one"),
        "decode.equal16_over_mlx_lm": value(ours, "equal16") / value(peer, "equal16"),
        "decode.mixed16_over_equal16": value(ours, "mixed16") / value(ours, "equal16"),
        "decode.mixed16_over_mlx_lm": value(ours, "mixed16") / value(peer, "mixed16"),
        "decode.prefix64_memory": value(ours, "prefix64", "memory_ratio"),
        "decode.prefix64_over_private": value(ours, "prefix64") / value(ours, "private64"),
        "decode.overhead_pct": value(ours, "equal16", "overhead_pct"),
    }
    if any(row["scenario"] == GAP for row in rows):
        figures["decode.gap_during_prefill"] = value(ours, GAP, "ratio")
    return figures


def worker(measurements: Callable[..., list[dict[str, Any]]]) -> None:
    """The main function of a side: the model's folder and what else to measure in, rows as JSON
    out."""
    print(json.dumps(measurements(*sys.argv[1:])))
