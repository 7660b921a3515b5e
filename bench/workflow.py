"""What agents that are kept from phase to phase save: the workflows that come along, each run kept
and with new agents in every phase, the time to the first token of both."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgecortex import workflow
from edgecortex.bench.report import Report, Row, make_report, median, spread
from edgecortex.bench.side import answer
from edgecortex.errors import EdgeCortexError

SPEEDUPS = {
    "prisoners-dilemma": "workflow.prisoners_dilemma_speedup",
    "experts": "workflow.experts_speedup",
}
DEFINITIONS = {
    "ttft_kept_s": "mean seconds to the first token of a phase's turns, whose agents go on from "
    "the KV of earlier phases; ttft_cold_s: of new agents, who read all that was said before",
    "saved": "tokens that earlier phases saved a phase from reading",
    "same_text": "whether all answers were word for word the same both times; they may differ "
    "where two tokens are as good as equally likely",
    "figure": "cold over kept, of all turns of the phases that earlier ones saved tokens",
}


def measure(
    model: str, progress: Callable[[str], None], *, repeat: int, names: Sequence[str]
) -> Report:
    """Runs `edgecortex workflow --json` on workflows of these names, in new processes.

    Raises:
        EdgeCortexError: a run failed, or nothing was saved.
    """
    paths = workflow.built_in()
    rows: list[Row] = []
    for turn in range(1, repeat + 1):
        for name in names:
            progress(f"{name}, round {turn} of {repeat}")
            rows += [{"workflow": name, "round": turn, **row} for row in _run(paths[name], model)]
    rounds = [_figures(names, rows, turn) for turn in range(1, repeat + 1)]
    figures = {name: median(found[name] for found in rounds) for name in rounds[0]}
    settings = {"model": model, "repeat": repeat, "names": list(names), "definitions": DEFINITIONS}
    return make_report("workflow", settings, figures, rows, spread(figures, rounds))


def _figures(names: Sequence[str], rows: Sequence[Row], turn: int) -> dict[str, float]:
    found = {}
    for name in names:
        of_it = [row for row in rows if (row["workflow"], row["round"]) == (name, turn)]
        helped = [row for row in of_it if row["saved"] > 0]
        if not helped:
            raise EdgeCortexError(f"expected {name} to save tokens, got none in any phase")
        cold, kept = (
            sum(row["turns"] * row[f"ttft_{state}_s"] for row in helped)
            for state in ("cold", "kept")
        )
        found[SPEEDUPS[name]] = cold / kept
    return found


def _run(path: Path, model: str) -> list[Row]:
    command = ["workflow", str(path), "--json", "--model", model]
    found: dict[str, Any] = answer(f"the workflow {path.stem!r}", "cli.main", *command)
    return [
        {
            "phase": phase["name"],
            "turns": phase["num_turns"],
            "reused": phase["num_reused_tokens"],
            "read": phase["num_read_tokens"],
            "saved": phase["num_saved_tokens"],
            "ttft_kept_s": phase["ttft_kept_s"],
            "ttft_cold_s": phase["ttft_cold_s"],
            "same_text": phase["same_text"],
        }
        for phase in found["phases"]
    ]
