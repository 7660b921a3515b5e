"""`edgecortex run`: one answer to one prompt."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from edgecortex.cli import options
from edgecortex.errors import PromptError

if TYPE_CHECKING:
    from edgecortex import Generation


def run(
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt. Text on stdin is added to it.")
    ] = None,
    model: options.Model = options.DEFAULT_MODEL,
    system: options.System = None,
    temp: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    max_tokens: options.MaxTokens = 512,
    seed: options.Seed = None,
    kv_format: options.KVFormatName = options.DEFAULT_FORMAT,
    kv_budget: options.KVBudget = None,
    no_cache: options.NoCache = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: text, tokens and timings.")
    ] = False,
) -> None:
    """Answer one prompt. Only the answer goes to stdout."""
    sampling = options.sampling_of(temp, top_p, max_tokens, seed)
    config = options.engine_config(kv_format, kv_budget, no_cache)
    text = _whole_prompt(prompt)
    with options.load_engine(model, config) as engine:
        generation = options.make_agent(engine, system, sampling).chat(text)
        if as_json:
            print(json.dumps(_record(model, generation), ensure_ascii=False))
            return
        for piece in generation:
            print(piece, end="", flush=True)
        print()


def _whole_prompt(argument: str | None) -> str:
    """The argument, then what is on stdin.

    Raises:
        PromptError: there is neither, or it is not UTF-8.
    """
    piped = "" if sys.stdin.isatty() else options.decoded(sys.stdin.buffer.read())
    text = "\n\n".join(part for part in (argument, piped.strip("\n")) if part)
    if not text.strip():
        raise PromptError("the prompt is empty: expected text as an argument or on stdin")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError("the prompt is not text: expected UTF-8 in the argument") from error
    return text


def _record(model: str, generation: "Generation") -> dict[str, object]:
    text, stats = generation.text(), generation.stats
    return {
        "model": model,
        "text": text,
        "token_ids": generation.token_ids,
        "finish_reason": stats.finish_reason,
        "num_prompt_tokens": stats.num_prompt_tokens,
        "num_memory_tokens": stats.num_memory_tokens,
        "num_disk_tokens": stats.num_disk_tokens,
        "num_generated_tokens": stats.num_generated_tokens,
        "ttft_s": stats.ttft_s,
        "decode_s": stats.decode_s,
        "prefill_tokens_per_s": stats.prefill_tokens_per_s,
        "decode_tokens_per_s": stats.decode_tokens_per_s,
    }
