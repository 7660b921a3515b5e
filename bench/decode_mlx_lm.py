"""mlx-lm's side of the decode benchmark: `python -m edgecortex.bench.decode_mlx_lm FOLDER`.

Its own model, caches and loops, on the same weights in the same dtype and the same BLAS.
"""

import time
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, stream_generate
from mlx_lm.utils import dequantize_model, load

from edgecortex.bench.decode import MIXED, SCENARIOS, SLOW, WARM_UP, worker
from edgecortex.bench.side import rates, rates_of
from edgecortex.bench.text import prompts
from edgecortex.models.adapter import Tokenizer, compute_dtype

MAX_SECONDS = 20.0


def measurements(path: str, num_steps: int, *more: str) -> list[dict[str, Any]]:
    """All scenarios, the slow one too if `more` says so: one agent through `stream_generate`, more
    through `BatchGenerator`."""
    model, tokenizer = load(path)[:2]
    if (dtype := compute_dtype()) is not None:
        model.set_dtype(dtype)
        model = dequantize_model(model)
    tokenizer.eos_token_ids = set()
    mx.eval(model.parameters())
    rows = []
    for name, lengths in SCENARIOS.items():
        if name == MIXED and SLOW not in more:
            continue
        ids = prompts(Tokenizer(tokenizer), lengths)
        one = len(lengths) == 1
        found, nbytes = (
            _alone(model, tokenizer, ids[0], num_steps) if one else _together(model, ids, num_steps)
        )
        rows += [
            {"scenario": name, "tokens_per_s": rate, "kv_bytes": nbytes, "round": number}
            for number, rate in enumerate(found, 1)
        ]
    return rows


def _alone(model: Any, tokenizer: Any, ids: list[int], num_steps: int) -> tuple[list[float], int]:
    """Tokens per second in each block, and bytes of KV."""
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    most = WARM_UP + num_steps + 1
    times = [
        time.perf_counter()
        for _ in stream_generate(model, tokenizer, ids, max_tokens=most, prompt_cache=cache)
    ]
    return rates_of(times[WARM_UP:]), sum(layer.nbytes for layer in cache)


def _together(model: Any, ids: list[list[int]], num_steps: int) -> tuple[list[float], int]:
    """The same of a batch."""
    generator = BatchGenerator(model, max_tokens=4096, completion_batch_size=len(ids))
    generator.insert(ids)
    spoken: set[int] = set()
    while len(spoken) < len(ids):
        spoken |= {response.uid for response in generator.next_generated()}
    for _ in range(WARM_UP):
        generator.next_generated()
    found = rates(lambda: len(generator.next_generated()), num_steps, MAX_SECONDS)
    return found, generator.prompt_cache_nbytes


if __name__ == "__main__":
    worker(measurements)
