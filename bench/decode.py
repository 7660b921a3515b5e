"""How fast many agents decode together, held against mlx-lm on the same weights and BLAS.

Each side runs in a process of its own, in turns: ours, mlx-lm, ours, mlx-lm, … What our agents
say has to be what the model says: a fast wrong answer does not count.
"""

import json
import sys
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from edgecortex.bench.report import Report, Row, make_report, median, spread
from edgecortex.bench.side import BLOCKS, answer, run
from edgecortex.errors import EdgeCortexError
from edgecortex.models import resolve

WARM_UP = 5  # steps of either side that are not timed; then
NUM_STEPS = 48  # are, in a scenario
# Prompt lengths of the agents, in tokens.
SCENARIOS = {
    "alone": [512],
    "one": [64],
    "equal16": [64] * 16,
    "mixed16": [1024] + [64] * 15,
}
GAP, MIXED = "gap", "mixed16"
MOST_REGRET = 0.05  # nats a token: KV in 4 bits costs a tenth of it, and a wrong token several
SLOW = "slow"  # what a side is given to measure all: the gap, and mlx-lm's mixed batch


def measure(
    model: str,
    repeat: int,
    progress: Callable[[str], None],
    slow: bool = True,
    num_steps: int = NUM_STEPS,
) -> Report:
    """Runs both sides `repeat` times; figures are medians.

    Args:
        num_steps: that are timed in a scenario, in blocks that count as rounds.
        slow: measure also what takes minutes: what a long prompt does to agents that decode, and
            mlx-lm's batch of prompts of unequal length.

    Raises:
        EdgeCortexError: a side failed, or ours does not say what the model says.
    """
    path = str(resolve(model))
    rows: list[Row] = []
    for turn in range(repeat):
        for side in ("ours", "mlx_lm"):
            progress(f"{side}, round {turn + 1} of {repeat}")
            found = _run(side, path, num_steps, slow)
            check(path, found)
            rows += [{"side": side, **row, "round": turn * BLOCKS + row["round"]} for row in found]
    settings = {"model": model, "repeat": repeat, "num_steps": num_steps, "blocks": BLOCKS}
    settings |= {"warm_up": WARM_UP, "scenarios": SCENARIOS}
    figures = _figures(rows)
    return make_report("decode", settings, figures, rows, spread(figures, list(_rounds(rows))))


def _run(side: str, path: str, num_steps: int, slow: bool) -> list[Row]:
    more = [SLOW] if slow else []
    return list(answer(f"the {side} side", f"bench.decode_{side}", path, str(num_steps), *more))


def _rounds(rows: list[Row]) -> Iterator[dict[str, float]]:
    """Figures of each block of ours, and of each of them with each one of mlx-lm's: none belongs
    to a certain other."""
    blocks: dict[str, dict[int, list[Row]]] = {"ours": {}, "mlx_lm": {}}
    for row in rows:
        blocks[row["side"]].setdefault(row["round"], []).append(row)
    for ours, theirs in product(blocks["ours"].values(), blocks["mlx_lm"].values()):
        both = _figures([*ours, *theirs])
        yield {name: value for name, value in both.items() if name.endswith("_over_mlx_lm")}
    yield from map(_figures, blocks["ours"].values())


def check(path: str, rows: list[Row]) -> None:
    """Puts into the rows, in the place of what was `said`, how far that is from what the model
    would say.

    Raises:
        EdgeCortexError: it is something else.
    """
    said = {row["scenario"]: row.pop("said") for row in rows if "said" in row}
    found = run("said", "regrets", path=path, lengths=SCENARIOS, said=said) if said else {}
    for row in rows:
        if row["scenario"] in found:
            row["regret_nats"] = regret = found[row["scenario"]]
            if not regret <= MOST_REGRET:
                raise EdgeCortexError(
                    f"{row['scenario']}: expected tokens within {MOST_REGRET} nats of the "
                    f"likeliest ones, got {regret:.2f}: a fast wrong answer does not count"
                )


def _figures(rows: list[Row]) -> dict[str, float]:
    """Those that the rows allow."""

    def value(side: str, scenario: str, key: str = "tokens_per_s") -> float | None:
        of_it = [r for r in rows if (r["side"], r["scenario"]) == (side, scenario)]
        found = [row[key] for row in of_it if key in row]
        return float(median(found)) if found else None

    ours, peer = "ours", "mlx_lm"
    ratios = {
        "decode.alone_over_mlx_lm": (value(ours, "alone"), value(peer, "alone")),
        "decode.equal16_over_1": (value(ours, "equal16"), value(ours, "one")),
        "decode.equal16_over_mlx_lm": (value(ours, "equal16"), value(peer, "equal16")),
        "decode.mixed16_over_equal16": (value(ours, MIXED), value(ours, "equal16")),
        "decode.mixed16_over_mlx_lm": (value(ours, MIXED), value(peer, MIXED)),
        "decode.prefix64_over_private": (value(ours, "prefix64"), value(ours, "private64")),
    }
    found = {name: a / b for name, (a, b) in ratios.items() if a and b}
    single = {
        "decode.prefix64_memory": value(ours, "prefix64", "memory_ratio"),
        "decode.gap_during_prefill": value(ours, GAP, "ratio"),
        "decode.overhead_pct": value(ours, "equal16", "overhead_pct"),
    }
    return found | {name: given for name, given in single.items() if given is not None}


def worker(measurements: Callable[..., list[dict[str, Any]]]) -> None:
    """The main function of a side: the model's folder, how many steps and what else to measure in,
    rows as JSON out."""
    path, num_steps, *more = sys.argv[1:]
    print(json.dumps(measurements(path, int(num_steps), *more)))
