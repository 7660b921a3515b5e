"""llama.cpp's side of the comparison, on the GGUF file itself, a job in each process.

It is driven by its C functions, as `llama_cpp` binds them: the agents of a batch are sequences of
one context. This module imports nothing heavy, so that the process's memory is llama.cpp's.
"""

import ctypes
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgecortex.bench.side import rates, serve

BATCH = 512  # tokens at a time
Part = tuple[int, Sequence[int]]  # a sequence, and its next tokens


class Llama:
    """A model and a context for `num_agents` sequences of up to `num_tokens` tokens each.

    Args:
        variant: of the KV cache: `f16`, or `q4_0` with flash attention, which it needs for values.
    """

    def __init__(self, gguf: str, variant: str, num_tokens: int, num_agents: int = 1) -> None:
        import llama_cpp

        self._lib: Any = llama_cpp
        self._lib.llama_backend_init()
        options = self._lib.llama_model_default_params()
        model = self._lib.llama_model_load_from_file(gguf.encode(), options)
        vocab = self._lib.llama_model_get_vocab(model)
        self._num_logits = self._lib.llama_vocab_n_tokens(vocab)
        context = self._context(variant, num_tokens, num_agents)
        self._ctx = self._lib.llama_init_from_model(model, context)
        self._batch = self._lib.llama_batch_init(BATCH, 0, 1)
        self._at = [0] * num_agents
        self.feed([(0, [0])])  # its first step is slow
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._ctx), True)
        self._at[0] = 0

    def _context(self, variant: str, num_tokens: int, num_agents: int) -> Any:
        context = self._lib.llama_context_default_params()
        context.n_ctx = num_agents * -(-num_tokens // 256) * 256
        context.n_seq_max = num_agents
        context.n_batch = context.n_ubatch = BATCH
        context.n_threads = context.n_threads_batch = os.cpu_count() or 1
        if variant == "q4_0":
            context.type_k = context.type_v = self._lib.GGML_TYPE_Q4_0
            context.flash_attn_type = self._lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        return context

    def feed(self, parts: Sequence[Part], all_rows: bool = False) -> np.ndarray:
        """Feeds sequences their next tokens. Returns: logits (rows, vocab) after the last token
        of each, or after every token."""
        flat = []
        for agent, ids in parts:
            at, last = self._at[agent], len(ids) - 1
            flat += [(ids[i], at + i, agent, all_rows or i == last) for i in range(len(ids))]
            self._at[agent] += len(ids)
        return np.concatenate(
            [self._decode(flat[i : i + BATCH]) for i in range(0, len(flat), BATCH)]
        )

    def _decode(self, flat: list[tuple[int, int, int, bool]]) -> np.ndarray:
        batch = self._batch
        batch.n_tokens = len(flat)
        for i, (token, at, agent, wanted) in enumerate(flat):
            batch.token[i], batch.pos[i], batch.logits[i] = token, at, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, agent
        if code := self._lib.llama_decode(self._ctx, batch):
            sys.exit(f"llama_decode gave {code}")
        rows = [self._logits(i) for i, part in enumerate(flat) if part[3]]
        return np.array(rows, np.float32).reshape(-1, self._num_logits)

    def _logits(self, row: int) -> np.ndarray:
        pointer = self._lib.llama_get_logits_ith(self._ctx, row)
        return np.ctypeslib.as_array(pointer, (self._num_logits,)).copy()

    def say(self, ids: Sequence[int], num_tokens: int) -> tuple[float, np.ndarray]:
        """A greedy answer: the time of its first token, and logits (num_tokens, vocab).

        The last token is read by itself, as mlx-lm does and as after a restored context: with
        others beside it, its activations would be rounded to 8 bits in another way.
        """
        if ids[:-1]:
            self.feed([(0, ids[:-1])])
        rows = [self.feed([(0, ids[-1:])])[0]]
        best = int(rows[0].argmax())
        first = time.perf_counter()
        while len(rows) < num_tokens:
            rows.append(self.feed([(0, [best])])[0])
            best = int(rows[-1].argmax())
        return first, np.stack(rows)

    def nbytes(self) -> int:
        """Bytes of the KV of all sequences."""
        sizes = [self._lib.llama_state_seq_get_size(self._ctx, i) for i in range(len(self._at))]
        return sum(sizes)

    def save(self, file: str, ids: Sequence[int]) -> None:
        """Writes the state of the one sequence."""
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        if not self._lib.llama_state_save_file(self._ctx, file.encode(), tokens, len(ids)):
            sys.exit(f"llama_state_save_file cannot write {file}")

    def load(self, file: str, num_tokens: int) -> None:
        """Reads the state of so many tokens back."""
        tokens, count = (ctypes.c_int32 * num_tokens)(), ctypes.c_size_t(0)
        found = self._lib.llama_state_load_file(
            self._ctx, file.encode(), tokens, num_tokens, ctypes.byref(count)
        )
        if not found or count.value != num_tokens:
            sys.exit(f"llama_state_load_file: expected {num_tokens} tokens, got {count.value}")
        self._at[0] = num_tokens


def peak_mb() -> float:
    """The most memory that this process had at once."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError:  # there it is in bytes, as on a Mac
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return next(int(line.split()[1]) * 1024e-6 for line in lines if line.startswith("VmHWM:"))


# The jobs. All but `kl` are the same for every side: see `compare`.


def save(path: str, variant: str, store: str, prompts: list[list[int]]) -> list[dict[str, Any]]:
    rows = []
    for ids in prompts:
        llama, file = Llama(path, variant, len(ids) + 1), Path(store) / f"{len(ids)}.state"
        llama.feed([(0, ids)])
        llama.save(str(file), ids)
        held = {"kv_bytes": llama.nbytes(), "in_16_bits_bytes": llama.nbytes()}
        rows.append({"tokens": len(ids), **held, "disk_bytes": file.stat().st_size})
    return rows


def cold(
    path: str, variant: str, store: str, ids: list[int], num_tokens: int, logits: str
) -> dict[str, float]:
    llama = Llama(path, variant, len(ids) + num_tokens)
    start = time.perf_counter()
    first, rows = llama.say(ids, num_tokens)
    np.save(logits, rows)
    return {"ttft_s": first - start, "peak_mb": peak_mb()}


def restored(
    path: str, variant: str, store: str, ids: list[int], num_tokens: int, logits: str
) -> dict[str, float]:
    llama = Llama(path, variant, len(ids) + num_tokens)
    start = time.perf_counter()
    llama.load(str(Path(store) / f"{len(ids) - 1}.state"), len(ids) - 1)
    first, rows = llama.say(ids[-1:], num_tokens)
    np.save(logits, rows)
    return {"ttft_s": first - start, "peak_mb": peak_mb()}


def decode(
    path: str, variant: str, scenarios: dict[str, list[list[int]]], num_steps: int, max_s: float
) -> list[dict[str, Any]]:
    return [
        {"scenario": name, **_decode(path, variant, prompts, num_steps, max_s)}
        for name, prompts in scenarios.items()
    ]


def _decode(
    path: str, variant: str, prompts: list[list[int]], num_steps: int, max_s: float
) -> dict[str, Any]:
    agents = range(len(prompts))
    longest = max(map(len, prompts)) + num_steps + 1
    llama = Llama(path, variant, longest, len(prompts))
    begun = time.perf_counter()
    said = [[int(llama.feed([(i, prompts[i])])[0].argmax())] for i in agents]
    first = time.perf_counter() - begun

    def step() -> int:
        best = llama.feed([(i, said[i][-1:]) for i in agents]).argmax(axis=-1)
        for i in agents:
            said[i].append(int(best[i]))
        return len(prompts)

    speed = {"first_tokens_s": first, "tokens_per_s": rates(step, num_steps, max_s)}
    return {**speed, "kv_bytes": llama.nbytes(), "peak_mb": peak_mb(), "said": said}


def kl(path: str, windows: list[list[int]]) -> dict[str, float]:
    """KL per token, in nats, of q4_0 to f16, over the second half of each window."""
    return {"llama.cpp q4_0": float(np.mean([_kl(path, ids) for ids in windows]))}


def _kl(path: str, ids: list[int]) -> float:
    fed, scored = ids[:-1], len(ids) // 2
    readers = [Llama(path, variant, len(ids)) for variant in ("f16", "q4_0")]
    truth, other = (_log_p(llama.feed([(0, fed)], all_rows=True)[-scored:]) for llama in readers)
    return float((np.exp(truth) * (truth - other)).sum(axis=-1).mean())


def _log_p(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return x


if __name__ == "__main__":
    serve({job.__name__: job for job in (save, cold, restored, decode, kl)})
