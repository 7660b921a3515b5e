"""mlx-lm's agents in the decode benchmark, in a process that both sides share.

Its own model, caches and loops, on the same weights in the same dtype and the same BLAS.
"""

from typing import Any

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

    def agents(self, lengths: list[int]) -> "Alone | Together":
        """Those with prompts of these lengths, warm."""
        ids = prompts(Tokenizer(self.tokenizer), lengths)
        if len(ids) == 1:
            return Alone(self.model, self.tokenizer, ids[0])
        return Together(self.model, ids)


class _Agents:
    """Agents that have all said something."""

    def __init__(self) -> None:
        for _ in range(WARM_UP):
            self._step()

    def _step(self) -> int:
        raise NotImplementedError

    def _nbytes(self) -> int:
        raise NotImplementedError

    def block(self, num_steps: int) -> Row:
        """How fast they decode in so many steps, after one that is not timed: it was computed
        ahead, as the one after the last is."""
        self._step()
        tokens_per_s = rate(self._step, num_steps)
        mx.synchronize(generation_stream)
        return {"tokens_per_s": tokens_per_s, "kv_bytes": self._nbytes()}


class Alone(_Agents):
    def __init__(self, model: Any, tokenizer: Any, ids: list[int]) -> None:
        self._cache = make_prompt_cache(model)
        self._tokens = stream_generate(
            model, tokenizer, ids, max_tokens=MAX_TOKENS, prompt_cache=self._cache
        )
        super().__init__()

    def _step(self) -> int:
        next(self._tokens)
        return 1

    def _nbytes(self) -> int:
        return sum(layer.nbytes for layer in self._cache)


class Together(_Agents):
    def __init__(self, model: Any, ids: list[list[int]]) -> None:
        self._generator = BatchGenerator(
            model, max_tokens=MAX_TOKENS, completion_batch_size=len(ids)
        )
        self._generator.insert(ids)
        spoken: set[int] = set()
        while len(spoken) < len(ids):
            spoken |= {response.uid for response in self._generator.next_generated()}
        super().__init__()

    def _step(self) -> int:
        return len(self._generator.next_generated())

    def _nbytes(self) -> int:
        return int(self._generator.prompt_cache_nbytes)
