"""Our side of the comparison, a job in each process. Its variants are KV formats."""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from edgecortex import gate
from edgecortex.bench import ttft_ours
from edgecortex.bench.asking import archive_in, ask, context_of, finish, open_core
from edgecortex.bench.compare_mlx_lm import peak_mb
from edgecortex.bench.quality import EngineReader, Reader, _compare
from edgecortex.bench.rivals import RIVALS, RivalReader
from edgecortex.bench.side import rates, serve, size_of
from edgecortex.config import EngineConfig
from edgecortex.core import EngineCore
from edgecortex.models.adapter import load_model
from edgecortex.runner import ModelRunner

RIVAL = "mlx-lm 4-bit"

# The jobs: see `compare`. The first three are of the engine's default format, with a store.


def save(path: str, variant: str, store: str, prompts: list[list[int]]) -> list[dict[str, Any]]:
    core, rows = open_core(path, f"{store}/unused", max(map(len, prompts))), []
    ttft_ours._keep_store(core)
    for ids in prompts:
        request, folder = ask(core, ids, 1), Path(store) / str(len(ids))
        finish(core, request)
        context = context_of(request, len(ids))
        archive = archive_in(core, folder)
        archive.save(context, tail=True).result()
        archive.close()
        nbytes = core.pool.nbytes(context)
        held = {"kv_bytes": nbytes, "in_16_bits_bytes": nbytes}
        rows.append({"tokens": len(ids), **held, "disk_bytes": size_of(folder)})
        core.release(request.agent)
    core.close()
    return rows


def cold(
    path: str, variant: str, store: str, ids: list[int], num_tokens: int, logits: str
) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=store) as empty:
        found = ttft_ours.cold(path, empty, len(ids) - 1, 1, logits)
    return {"ttft_s": found["ttft_s"], "peak_mb": peak_mb()}


def restored(
    path: str, variant: str, store: str, ids: list[int], num_tokens: int, logits: str
) -> dict[str, float]:
    stored = str(Path(store) / str(len(ids) - 1))
    found = ttft_ours.warm(path, stored, len(ids) - 1, 1, logits, dropped=False)
    return {"ttft_s": found["ttft_s"], "peak_mb": peak_mb()}


def decode(
    path: str, variant: str, scenarios: dict[str, list[list[int]]], num_steps: int, max_s: float
) -> list[dict[str, Any]]:
    model = load_model(Path(path))
    model.tokenizer.eos_token_ids = set()  # every agent decodes to the end
    config, _ = gate.resolved(model, EngineConfig(kv_format=variant, use_store=False))
    core = EngineCore(model, config)
    return [
        {"scenario": name, **_decode(core, prompts, num_steps, max_s)}
        for name, prompts in scenarios.items()
    ]


def _decode(
    core: EngineCore, prompts: list[list[int]], num_steps: int, max_s: float
) -> dict[str, Any]:
    begun = time.perf_counter()
    requests = [ask(core, ids, 4096) for ids in prompts]
    said = [request.generation.token_ids for request in requests]
    while not all(said):
        core.step()
    first = time.perf_counter() - begun

    def step() -> int:
        before = sum(map(len, said))
        core.step()
        return sum(map(len, said)) - before

    speed = {"first_tokens_s": first, "tokens_per_s": rates(step, num_steps, max_s)}
    nbytes = core.pool.used_bytes
    for request in requests:
        core.release(request.agent)
    return {**speed, "kv_bytes": nbytes, "peak_mb": peak_mb(), "said": said}


def kl(path: str, windows: list[list[int]]) -> dict[str, float]:
    """KL per token to full precision, in nats, over the second half of each window: of our
    default format, and of mlx-lm's 4-bit KV read by mlx-lm's own attention."""
    loaded = load_model(Path(path))
    ours = gate.choose(loaded).kv_format
    starts: dict[str, Callable[[], Reader]] = {
        name: partial(EngineReader, ModelRunner(loaded, EngineConfig(kv_format=format)))
        for name, format in (("fp", "fp"), ("ours", ours))
    }
    starts[RIVAL] = partial(RivalReader, loaded, RIVALS[RIVAL])
    parts = [_compare(starts, ids) for ids in windows]
    tokens = sum(part["fp"]["tokens"] for part in parts)
    return {name: sum(part[name]["kl"] for part in parts) / tokens for name in ("ours", RIVAL)}


if __name__ == "__main__":
    serve({job.__name__: job for job in (save, cold, restored, decode, kl)})
