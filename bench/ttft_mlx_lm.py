"""mlx-lm's time to the first token, on the same weights in the same dtype and the same BLAS."""

import time
from typing import Any

import mlx.core as mx
from mlx_lm.generate import stream_generate
from mlx_lm.utils import dequantize_model, load

from edgecortex.bench.side import serve
from edgecortex.bench.text import prompts
from edgecortex.models.adapter import Tokenizer, compute_dtype


def cold(path: str, tokens: int, new_tokens: int) -> dict[str, Any]:
    """The first token after a prompt, by mlx-lm's own loop; a short answer warms it up."""
    model, tokenizer = load(path)[:2]
    if (dtype := compute_dtype()) is not None:
        model.set_dtype(dtype)
        model = dequantize_model(model)
    mx.eval(model.parameters())
    tokenizer.eos_token_ids = set()
    ids = prompts(Tokenizer(tokenizer), [tokens + new_tokens])[0]
    next(stream_generate(model, tokenizer, ids[:1], max_tokens=1))
    start = time.perf_counter()
    next(stream_generate(model, tokenizer, ids, max_tokens=1))
    return {"ttft_s": time.perf_counter() - start, "prompt_tokens": len(ids)}


if __name__ == "__main__":
    serve({"cold": cold})
