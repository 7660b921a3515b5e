"""How fast many agents decode together, held against mlx-lm on the same weights and BLAS.

Both sides decode in one process, in turns, a few steps each: what slows a machine down for a while
slows both. What our agents say has to be what the model says: a fast wrong answer does not count.
"""

from collections.abc import Callable
from itertools import groupby
from typing import Any

from edgecortex.bench.report import Report, Row, make_report, median, spread
from edgecortex.bench.side import run
from edgecortex.errors import EdgeCortexError
from edgecortex.models import resolve

WARM_UP = 5  # steps of either side that are not timed; then
NUM_STEPS = 8  # are, in each block, which is a round; and
ROUNDS = 6  # of these has a process: of fewer, the least and the most say little of another run's
# Prompt lengths of the agents, in tokens.
SCENARIOS = {
    "alone": [512],
    "one": [64],
    "equal16": [64] * 16,
    "mixed16": [1024] + [64] * 15,
}
GAP, MIXED = "gap", "mixed16"
MOST_REGRET = 0.05  # nats a token: KV in 4 bits costs a tenth of it, and a wrong token several


def measure(
    model: str,
    repeat: int,
    progress: Callable[[str], None],
    slow: bool = True,
    num_steps: int = NUM_STEPS,
) -> Report:
    """Has both sides decode in `repeat` processes; figures are medians.

    Args:
        num_steps: of a block.
        slow: measure also what takes minutes: 64 agents on one prefix and on copies of it, what a
            long prompt does to agents that decode, and mlx-lm's batch of prompts of unequal length.

    Raises:
        EdgeCortexError: it failed, or ours does not say what the model says.
    """
    path = str(resolve(model))
    rows: list[Row] = []
    for turn in range(repeat):
        progress(f"both sides in turns, {turn + 1} of {repeat}")
        found = _turns(path, num_steps, slow)
        progress(f"reading again what was said, {turn + 1} of {repeat}")
        check(path, **found)
        rows += [{**row, "round": turn * ROUNDS + row["round"]} for row in found["rows"]]
    settings = {"model": model, "repeat": repeat, "num_steps": num_steps}
    settings |= {"rounds": ROUNDS, "warm_up": WARM_UP, "scenarios": SCENARIOS}
    rounds = [_figures(list(of_it)) for _, of_it in groupby(sorted(rows, key=_round), _round)]
    figures = {
        name: median(round_[name] for round_ in rounds if name in round_)
        for name in dict.fromkeys(name for round_ in rounds for name in round_)
    }
    return make_report("decode", settings, figures, rows, spread(figures, rounds))


def _turns(path: str, num_steps: int, slow: bool) -> dict[str, Any]:
    found: dict[str, Any] = run("decode_turns", "turns", path=path, num_steps=num_steps, slow=slow)
    return found


def _round(row: Row) -> int:
    return int(row["round"])


def check(path: str, rows: list[Row], said: dict[str, list[list[int]]]) -> None:
    """Puts into our rows how far what was `said` is from what the model would say.

    Raises:
        EdgeCortexError: it is something else.
    """
    found = run("said", "regrets", path=path, lengths=SCENARIOS, said=said)
    for row in rows:
        if row["side"] == "ours" and row["scenario"] in found:
            row["regret_nats"] = regret = found[row["scenario"]]
            if not regret <= MOST_REGRET:
                raise EdgeCortexError(
                    f"{row['scenario']}: expected tokens within {MOST_REGRET} nats of the "
                    f"likeliest ones, got {regret:.2f}: a fast wrong answer does not count"
                )


def _figures(rows: list[Row]) -> dict[str, float]:
    """Those that the rows of a round allow."""

    def value(side: str, scenario: str, key: str = "tokens_per_s") -> float | None:
        wanted = {"side": side, "scenario": scenario}
        of_it = [row[key] for row in rows if wanted.items() <= row.items() and key in row]
        return of_it[0] if of_it else None

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
