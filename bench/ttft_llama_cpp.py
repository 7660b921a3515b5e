"""llama.cpp's time to the first token, on the GGUF file itself."""

import os
import time
from typing import Any

from edgecortex.bench.side import serve
from edgecortex.bench.text import prompts
from edgecortex.models.adapter import Tokenizer


def cold(path: str, gguf: str, tokens: int, new_tokens: int) -> dict[str, Any]:
    """The first token after a prompt; a short prompt warms it up.

    Args:
        path: the folder that the file was imported into, for its tokenizer.
    """
    from llama_cpp import Llama
    from mlx_lm.utils import load_tokenizer

    ids = prompts(Tokenizer(load_tokenizer(path)), [tokens + new_tokens])[0]
    llama = Llama(gguf, n_ctx=len(ids) + 1, n_threads=os.cpu_count(), verbose=False)
    for prompt in (ids[:1], ids):
        llama.reset()
        start = time.perf_counter()
        llama.eval(prompt)
        llama.sample(temp=0.0)
        seconds = time.perf_counter() - start
    return {"ttft_s": seconds, "prompt_tokens": len(ids)}


if __name__ == "__main__":
    serve({"cold": cold})
