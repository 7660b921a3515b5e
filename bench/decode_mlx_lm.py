"""mlx-lm's agents in the decode benchmark, in a process that both sides share.

Its own model, caches and loops, on the same weights in the same dtype and the same BLAS. Where it
raises the limit of wired memory, on a Mac, both sides have that.
"""

from collections.abc import Callable

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, generation_stream, stream_generate
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import dequantize_model, load

from edgecortex.bench.decode import WARM_UP
from edgecortex.bench.report import Row
from edgecortex.bench.side import rate
from edgecortex.bench.text import prompts
from edgecortex.models.adapter import Tokenizer, compute_dtype

MAX_TOKENS = 4096


class Theirs:
    """The model: one agent speaks through `stream_generate`, more through `BatchGenerator`."""

    def __init__(self, path: str) -> None:
        self.model, self.tokenizer = load(path)[:2]
        if (dtype := compute_dtype()) is not None:
            self.model.set_dtype(dtype)
            self.model = dequantize_model(self.model)
        self.tokenizer.eos_token_ids = set()
        mx.eval(self.model.parameters())

    def agents(self, lengths: list[int]) -> "Agents":
        """Those with prompts of these lengths, warm."""
        ids = prompts(Tokenizer(self.tokenizer), lengths)
        return self._alone(ids[0]) if len(ids) == 1 else self._together(ids)

    def _alone(self, ids: list[int]) -> "Agents":
        cache = make_prompt_cache(self.model)
        tokens = stream_generate(
            self.model, self.tokenizer, ids, max_tokens=MAX_TOKENS, prompt_cache=cache
        )

        def step() -> int:
            # It stops within a `with` of its stream, which would be everybody's from there on.
            with mx.stream(mx.default_stream(mx.default_device())):
                next(tokens)
            return 1

        return Agents(step, lambda: sum(layer.nbytes for layer in cache))

    def _together(self, ids: list[list[int]]) -> "Agents":
        generator = BatchGenerator(
            self.model, max_tokens=MAX_TOKENS, completion_batch_size=len(ids)
        )
        generator.insert(ids)
        spoken: set[int] = set()
        while len(spoken) < len(ids):
            spoken |= {response.uid for response in generator.next_generated()}
        return Agents(
            lambda: len(generator.next_generated()), lambda: generator.prompt_cache_nbytes
        )


class Agents:
    """Agents that speak: `step` has each say a token and returns how many did, `nbytes` the bytes
    of their KV."""

    def __init__(self, step: Callable[[], int], nbytes: Callable[[], int]) -> None:
        self._step, self._nbytes = step, nbytes
        for _ in range(WARM_UP):
            step()

    def block(self, num_steps: int) -> Row:
        """How fast they decode in so many steps, after one that is not timed. What it says was
        computed ahead: before it comes what the last block has left, and after the last step one
        more is computed, not timed either."""
        self._step()
        self._step()
        tokens_per_s = rate(self._step, num_steps)
        mx.synchronize(generation_stream)
        return {"tokens_per_s": tokens_per_s, "kv_bytes": self._nbytes()}
