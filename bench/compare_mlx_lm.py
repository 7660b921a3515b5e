"""mlx-lm's side of the comparison, a job in each process: its own model, caches and loops, on the
same weights in the same dtype and the same BLAS.

Its variants are the plain KV cache, which its command line uses, and `4-bit`: that of `--kv-bits
4`, where the prompt is read with plain KV and quantized then, for reading it quantized is slower.
"""

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_reduce
from mlx_lm.generate import BatchGenerator, generate_step, stream_generate
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache
from mlx_lm.utils import dequantize_model, load

from edgecortex.bench.compare_llama_cpp import peak_mb as resident_peak_mb
from edgecortex.bench.side import rates, rates_of, serve
from edgecortex.cpu import on_cpu
from edgecortex.models.adapter import compute_dtype

QUANTIZED = "4-bit"
GROUP_SIZE, BITS = 64, 4  # what its options are by default, and the bits asked for


def peak_mb() -> float:
    """The most memory that this process had at once: on the device, where that is no CPU."""
    return resident_peak_mb() if on_cpu() else mx.get_peak_memory() / 1e6


class Side:
    """The model, warm."""

    def __init__(self, path: str) -> None:
        model, self.tokenizer = load(path)[:2]
        if (dtype := compute_dtype()) is not None:
            model.set_dtype(dtype)
            model = dequantize_model(model)
        mx.eval(model.parameters())
        self.model: Any = model
        self.tokenizer.eos_token_ids = set()  # every answer goes on to the end
        next(stream_generate(model, self.tokenizer, [0], max_tokens=1))

    def read(self, ids: Sequence[int]) -> list[Any]:
        """A plain cache of these tokens, as `mlx_lm.cache_prompt` makes it."""
        cache = make_prompt_cache(self.model)
        for _ in generate_step(mx.array(list(ids)), self.model, max_tokens=0, prompt_cache=cache):
            pass
        mx.eval([layer.state for layer in cache])
        return cache

    def say(
        self, ids: Sequence[int], num_tokens: int, cache: list[Any], variant: str
    ) -> tuple[list[float], np.ndarray]:
        """A greedy answer: when each token came, and log-probabilities (num_tokens, vocab)."""
        options: dict[str, Any] = {"max_tokens": num_tokens, "prompt_cache": cache}
        if variant == QUANTIZED:
            options |= {"kv_bits": BITS, "quantized_kv_start": len(ids) - 1}
        times, rows = [], []
        for response in stream_generate(self.model, self.tokenizer, list(ids), **options):
            times.append(time.perf_counter())
            rows.append(np.array(response.logprobs.astype(mx.float32)))
        return times, np.stack(rows)


# The jobs. All but `judge` are the same for every side: see `compare`.


def save(path: str, variant: str, store: str, prompts: list[list[int]]) -> list[dict[str, Any]]:
    side, rows = Side(path), []
    for ids in prompts:
        cache, file = side.read(ids), _file(store, len(ids))
        if variant == QUANTIZED:
            cache = [layer.to_quantized(group_size=GROUP_SIZE, bits=BITS) for layer in cache]
            mx.eval([layer.state for layer in cache])
        save_prompt_cache(str(file), cache)
        held = {"kv_bytes": _nbytes(cache), "in_16_bits_bytes": _in_16_bits(cache)}
        rows.append({"tokens": len(ids), **held, "disk_bytes": file.stat().st_size})
    return rows


def _file(store: str, num_tokens: int) -> Path:
    return Path(store) / f"{num_tokens}.safetensors"


def _nbytes(cache: list[Any]) -> int:
    return sum(layer.nbytes for layer in cache)


def _in_16_bits(cache: list[Any]) -> int:
    """What the same cache takes where a model computes in 16-bit floats."""
    arrays = [(layer.keys, layer.values) for layer in cache]
    return int(tree_reduce(lambda total, x: total + _held_in_16_bits(x), arrays, 0))


def _held_in_16_bits(x: mx.array) -> int:
    return x.nbytes // 2 if x.dtype == mx.float32 else x.nbytes


def cold(
    path: str, variant: str, store: str, ids: list[int], num_tokens: int, logits: str
) -> dict[str, float]:
    side = Side(path)
    start = time.perf_counter()
    times, rows = side.say(ids, num_tokens, make_prompt_cache(side.model), variant)
    np.save(logits, rows)
    return {"ttft_s": times[0] - start, "peak_mb": peak_mb()}


def restored(
    path: str, variant: str, store: str, ids: list[int], num_tokens: int, logits: str
) -> dict[str, float]:
    side = Side(path)
    start = time.perf_counter()
    cache = load_prompt_cache(str(_file(store, len(ids) - 1)))
    times, rows = side.say(ids[-1:], num_tokens, cache, variant)
    np.save(logits, rows)
    return {"ttft_s": times[0] - start, "peak_mb": peak_mb()}


def decode(
    path: str, variant: str, scenarios: dict[str, list[list[int]]], num_steps: int, max_s: float
) -> list[dict[str, Any]]:
    """One agent by the usual loop; more by `BatchGenerator`, which has plain KV only."""
    side, rows = Side(path), []
    for name, prompts in scenarios.items():
        if len(prompts) == 1:
            found = _alone(side, variant, prompts[0], num_steps)
        else:
            found = _together(side, prompts, num_steps, max_s)
        rows.append({"scenario": name, **found, "peak_mb": peak_mb()})
    return rows


def _alone(side: Side, variant: str, ids: list[int], num_steps: int) -> dict[str, Any]:
    cache, begun = make_prompt_cache(side.model), time.perf_counter()
    times, rows = side.say(ids, num_steps + 1, cache, variant)
    speed = {"first_tokens_s": times[0] - begun, "tokens_per_s": rates_of(times)}
    return {**speed, "kv_bytes": _nbytes(cache), "said": [rows.argmax(axis=-1).tolist()]}


def _together(side: Side, prompts: list[list[int]], num_steps: int, max_s: float) -> dict[str, Any]:
    generator = BatchGenerator(side.model, max_tokens=4096, completion_batch_size=len(prompts))
    said: dict[int, list[int]] = {uid: [] for uid in generator.insert(prompts)}

    def step() -> int:
        responses = generator.next_generated()
        for response in responses:
            said[response.uid].append(response.token)
        return len(responses)

    begun = time.perf_counter()
    while not all(said.values()):
        step()
    first = time.perf_counter() - begun
    speed = {"first_tokens_s": first, "tokens_per_s": rates(step, num_steps, max_s)}
    return {**speed, "kv_bytes": generator.prompt_cache_nbytes, "said": list(said.values())}


def judge(path: str, cases: list[tuple[list[int], list[list[int]]]]) -> list[list[list[float]]]:
    """How far answers are from the model's own in full precision, each read as it was said.

    Args:
        cases: prompts, with some answers to each.

    Returns: for each answer by how many nats its tokens are less likely than the likeliest there:
        the most, and the mean.
    """
    side, found = Side(path), []
    for prompt, answers in cases:
        cache = side.read(prompt[:-1])
        found.append([_regret(side, copy.deepcopy(cache), prompt[-1], said) for said in answers])
    return found


def _regret(side: Side, cache: list[Any], last: int, said: list[int]) -> list[float]:
    logits = side.model(mx.array([[last, *said[:-1]]]), cache=cache)[0].astype(mx.float32)
    chosen = mx.take_along_axis(logits, mx.array(said)[:, None], axis=-1)[:, 0]
    gaps = np.array(logits.max(axis=-1) - chosen)
    return [float(gaps.max()), float(gaps.mean())]


if __name__ == "__main__":
    serve({job.__name__: job for job in (save, cold, restored, decode, judge)})
