"""Prefill with our BLAS against prefill with the one that MLX's wheel brings along."""

from typing import Any

from edgecortex.bench.report import Report, Row, make_report, median
from edgecortex.bench.side import answer
from edgecortex.errors import EdgeCortexError

NUM_TOKENS = 512
REPEATS = {"ours": 3, "wheel": 1}  # the wheel's takes a minute


def measure(model: str) -> Report:
    """Runs `edgecortex run --json` on a prompt of 512 tokens with either, each in a new process.

    Raises:
        EdgeCortexError: a run failed.
    """
    prompt = "the" + " the" * (NUM_TOKENS - _run("ours", model, "the")["num_prompt_tokens"])
    rows: list[Row] = [
        {"blas": blas, **_figures(_run(blas, model, prompt))}
        for blas, times in REPEATS.items()
        for _ in range(times)
    ]
    ours, wheel = (median(r["ttft_s"] for r in rows if r["blas"] == blas) for blas in REPEATS)
    settings = {"model": model, "prompt_tokens": NUM_TOKENS, "repeats": REPEATS}
    return make_report("blas", settings, {"blas.prefill512_speedup": wheel / ours}, rows)


def _figures(answer: dict[str, Any]) -> dict[str, float]:
    if answer["num_prompt_tokens"] != NUM_TOKENS:
        raise EdgeCortexError(
            f"expected a prompt of {NUM_TOKENS} tokens, got {answer['num_prompt_tokens']}: "
            "this model's tokenizer does not read ' the' as one token; choose another model"
        )
    return {key: answer[key] for key in ("ttft_s", "prefill_tokens_per_s")}


def _run(blas: str, model: str, prompt: str) -> dict[str, Any]:
    command = ["run", "--json", "--model", model, "--max-tokens", "1", prompt]
    variables = {"EDGECORTEX_BLAS": "off" if blas == "wheel" else ""}
    return dict(answer(f"a run with the BLAS {blas!r}", "cli.main", *command, **variables))
