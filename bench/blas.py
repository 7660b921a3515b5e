"""Prefill with our BLAS against prefill with the one that MLX's wheel brings along."""

from collections.abc import Callable
from typing import Any

from edgecortex.bench.report import Report, Row, make_report, median, spread
from edgecortex.bench.side import answer
from edgecortex.errors import EdgeCortexError

NUM_TOKENS = 512
REPEATS = {"ours": 3, "wheel": 1}  # the wheel's takes a minute


def measure(model: str, progress: Callable[[str], None]) -> Report:
    """Runs `edgecortex run --json` on a prompt of 512 tokens with either, each in a new process.

    Raises:
        EdgeCortexError: a run failed.
    """
    prompt = "the" + " the" * (NUM_TOKENS - _run("ours", model, "the")["num_prompt_tokens"])
    rows: list[Row] = []
    for blas, times in REPEATS.items():
        for turn in range(1, times + 1):
            progress(f"BLAS {blas!r}, round {turn} of {times}")
            rows.append({"blas": blas, "round": turn, **_figures(_run(blas, model, prompt))})
    ours, wheel = (median(r["ttft_s"] for r in rows if r["blas"] == blas) for blas in REPEATS)
    settings = {"model": model, "prompt_tokens": NUM_TOKENS, "repeats": REPEATS}
    figures = {"blas.prefill512_speedup": wheel / ours}
    rounds = [
        {"blas.prefill512_speedup": wheel / row["ttft_s"]} for row in rows if row["blas"] == "ours"
    ]
    return make_report("blas", settings, figures, rows, spread(figures, rounds))


def _figures(answer: dict[str, Any]) -> dict[str, float]:
    if answer["num_prompt_tokens"] != NUM_TOKENS:
        raise EdgeCortexError(
            f"expected a prompt of {NUM_TOKENS} tokens, got {answer['num_prompt_tokens']}: "
            "this model's tokenizer does not read ' the' as one token; choose another model"
        )
    return {key: answer[key] for key in ("ttft_s", "prefill_tokens_per_s")}


def _run(blas: str, model: str, prompt: str) -> dict[str, Any]:
    # Without the store: the second round would find there what the first one read.
    command = ["run", "--json", "--no-cache", "--model", model, "--max-tokens", "1", prompt]
    variables = {"EDGECORTEX_BLAS": "off" if blas == "wheel" else ""}
    return dict(answer(f"a run with the BLAS {blas!r}", "cli.main", *command, **variables))
