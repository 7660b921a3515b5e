"""What this machine can do at best, and how near to that reading and decoding come.

The rates of the machine and the engine's times are measured in one run. A step cannot be faster
than its weights are read from memory, nor than its products are computed; a restored context
cannot be there before its files are read.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from edgecortex import cpu
from edgecortex.bench import side, ttft_ours
from edgecortex.bench.asking import ask, finish
from edgecortex.bench.decode_ours import Agents, Ours
from edgecortex.bench.journal import work_folder
from edgecortex.bench.report import Report, Row, make_report, median, spread
from edgecortex.bench.text import prompts
from edgecortex.core import EngineCore
from edgecortex.errors import EdgeCortexError
from edgecortex.kv.blocks import Shape
from edgecortex.models import resolve
from edgecortex.models.adapter import LoadedModel

Progress = Callable[[str], None]
MEMORY_BYTES = 1 << 29  # of an array that is far larger than any cache
NUM_EXP = 1 << 24
SQUARES, LONG_S = (1024, 2048, 4096, 8192), 0.2  # sizes, until a product takes so long
ROWS = 16
REPEATS = 1  # of a measurement of the machine, after one to warm up
ROUNDS = 8  # of everything but what is on disk
PROMPT = 64  # tokens of an agent that decodes
HEADS = ("n_heads", "num_heads", "num_attention_heads", "n_head")  # what models call their number
FLOPS, BYTES, NUMBERS = "GFLOP/s", "GB/s", "G numbers/s"
MEMORY, PRODUCTS, FILES = "memory", "products", "files and a step"
DEFINITIONS = {
    "decode": f"seconds of a step of agents at {PROMPT} tokens; the limit is to read all weights "
    "from memory, or to compute the products with them, whichever takes longer",
    "prefill": "tokens per second of one prompt; the limit is the rate of a large square product "
    "over what a token needs: products with all weights but the output head's, and attention",
    "restored": "seconds to the first token of a context that is on disk and in the page cache; "
    "the limit is to read the same files plainly and take one decode step at that length",
    "share": "how much of the limit is reached; 1 is all that the machine can do. Of a mixture of "
    "experts all are counted, so there it may come out higher",
}


def measure(model: str, progress: Progress, *, quick: bool = False) -> Report:
    """Measures the machine and holds the engine against it; `quick` leaves out restored contexts,
    which `ttft` holds against their limit too.

    Raises:
        EdgeCortexError: a part failed.
    """
    return roofline(model, [512] if quick else [512, 2048, 4096], progress, restores=not quick)


def roofline(
    model: str,
    contexts: Sequence[int],
    progress: Progress,
    num_steps: int = 4,
    memory_bytes: int = MEMORY_BYTES,
    restores: bool = True,
) -> Report:
    """As `measure`, on contexts of these lengths in tokens, the longest last."""
    path = str(resolve(model))
    ours = Ours(path)
    core = ours.core()
    work = Work.of(ours.model, core.runner.shapes)
    progress("agents begin")
    agents = {count: ours.agents([PROMPT] * count) for count in (1, ROWS)}
    rows: list[Row] = [work.row()]
    for number in range(1, ROUNDS + 1):
        progress(f"the machine's products and memory, {number} of {ROUNDS}")
        machine = list(_machine(work, memory_bytes))
        rates = {row["rate_of"]: 1e9 * row["rate"] for row in machine}
        found = [*machine, *(_decode(work, rates, each, num_steps) for each in agents.items())]
        for tokens in contexts:
            progress(f"reading {tokens:,} tokens, {number} of {ROUNDS}")
            found.append(_prefill(core, work, rates, tokens))
        rows += [{"round": number, **row} for row in found]
    with work_folder() as folder:
        progress("the disk")
        rows += _disk(Path(folder), _kv_nbytes(core, contexts[-1]))
        if restores:
            rows += _restored(path, folder, contexts, progress)
    figures = _figures(rows, contexts)
    rounds = [[row for row in rows if row.get("round") == n] for n in range(1, ROUNDS + 1)]
    told = {name: text for name, text in DEFINITIONS.items() if restores or name != "restored"}
    settings = {"model": model, "contexts": list(contexts), "definitions": told}
    spreads = spread(figures, [_figures(of_it, contexts) for of_it in rounds])
    return make_report("roofline", settings, figures, rows, spreads)


def _figures(rows: Sequence[Row], contexts: Sequence[int]) -> dict[str, float]:
    names = {
        "decode1": "decode, 1",
        "decode16": f"decode, {ROWS}",
        "prefill": f"prefill, {contexts[-1]:,}",
    }
    shares = {
        name: [row["share"] for row in rows if row.get("limit_of") == of]
        for name, of in names.items()
    }
    return {f"roofline.{name}_share": median(values) for name, values in shares.items()}


# What a model has to do.


@dataclass(frozen=True)
class Work:
    """`weight_bytes` are read in every step. `num_weights` are multiplied with each token, and
    `num_head`, of the output head, with each one that is sampled from. `attention` has of each
    layer the window, and operations per token and attended token."""

    weight_bytes: int
    num_weights: int
    num_head: int
    widest: tuple[int, int]
    attention: tuple[tuple[int | None, int], ...]
    dtype: mx.Dtype

    @classmethod
    def of(cls, loaded: LoadedModel, shapes: Sequence[Shape]) -> "Work":
        """Counts a model's weights; `shapes` are those of its layers' KV."""
        maps = {name: m for name, m in loaded.model.named_modules() if _is_map(m)}
        tables = [name for name, m in maps.items() if _is_table(m)]
        heads = [name for name in maps if name.endswith("lm_head")] or tables  # it may serve as one
        head = [maps[name] for name in heads]
        body = [m for name, m in maps.items() if name not in (*tables, *heads)]
        per_token = [
            2 * _num_heads(layer) * (k_dim + v_dim)
            for layer, (_, k_dim, v_dim, _) in zip(loaded.model.layers, shapes, strict=True)
        ]
        return cls(
            weight_bytes=sum(x.nbytes for m in (*body, *head) for x in _arrays(m)),
            num_weights=sum(map(_num_weights, body)),
            num_head=sum(map(_num_weights, head)),
            widest=max((m.weight.shape[-2], _num_inputs(m)) for m in body),
            attention=tuple(zip(loaded.windows(), per_token, strict=True)),
            dtype=shapes[0][3],
        )

    def step_ops(self, num_tokens: int) -> int:
        """Operations with weights in a step in which each token is sampled from."""
        return 2 * num_tokens * (self.num_weights + self.num_head)

    def prompt_ops(self, num_tokens: int) -> int:
        """Operations to read a prompt, attention included."""
        attended = sum(ops * _num_attended(num_tokens, window) for window, ops in self.attention)
        return 2 * (num_tokens * self.num_weights + self.num_head) + attended

    def row(self) -> Row:
        return {
            "what": "model",
            "weight_bytes": self.weight_bytes,
            "weights_multiplied": self.num_weights,
            "of_the_head": self.num_head,
        }


def _is_table(module: nn.Module) -> bool:
    return isinstance(module, (nn.Embedding, nn.QuantizedEmbedding))


def _is_map(module: nn.Module) -> bool:
    return "weight" in module and module.weight.ndim > 1


def _arrays(module: Any) -> list[mx.array]:
    return [x for x in module.values() if isinstance(x, mx.array)]


def _num_weights(module: Any) -> int:
    """Numbers, not words that several are packed in."""
    size = int(module.weight.size)
    return size * 32 // module.bits if "scales" in module else size


def _num_inputs(module: Any) -> int:
    return _num_weights(module) // (module.weight.size // module.weight.shape[-1])


def _num_heads(layer: Any) -> int:
    """
    Raises:
        EdgeCortexError: the layer does not say it.
    """
    attention = getattr(layer, "self_attn", None)
    found = [number for name in HEADS if (number := getattr(attention, name, None))]
    if not found:
        raise EdgeCortexError(
            f"cannot tell how many heads {type(layer).__name__} has: expected a self_attn with "
            f"one of {', '.join(HEADS)}"
        )
    return int(found[0])


def _num_attended(num_tokens: int, window: int | None) -> int:
    """How many tokens all tokens of a prompt attend together."""
    full = min(num_tokens, window or num_tokens)
    return full * (full + 1) // 2 + (num_tokens - full) * full


# What the machine can do.


def _machine(work: Work, memory_bytes: int) -> Iterator[Row]:
    """Rates, the best of some tries."""
    yield _rate("products, square", FLOPS, *_squares(work.dtype))
    yield _rate(f"products, {ROWS} rows", FLOPS, *_few_rows(work, memory_bytes))
    read, copy = _memory(memory_bytes)
    yield _rate("memory, read", BYTES, memory_bytes, read)
    yield _rate("memory, copy", BYTES, 2 * memory_bytes, copy)
    for name, function in (("exp", mx.exp), ("exp2, our own", cpu.exp2)):
        yield _rate(name, NUMBERS, NUM_EXP, _exp(function))


def _rate(of: str, unit: str, amount: int, seconds: float) -> Row:
    return {"what": "machine", "rate_of": of, "rate": amount / seconds / 1e9, "unit": unit}


def _best(function: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs, after one to warm up."""
    return min(side.seconds(function) for _ in range(REPEATS + 1))


def _squares(dtype: mx.Dtype) -> tuple[int, float]:
    """Operations and seconds of a product of square matrices, at the size with the best rate."""
    found: list[tuple[int, float]] = []
    for size in SQUARES:
        a = _random((size, size)).astype(dtype)
        mx.eval(a)
        found.append((2 * size**3, _best(partial(_product, a, a))))
        if found[-1][1] > LONG_S:
            break
    return max(found, key=lambda part: part[0] / part[1])


def _random(shape: tuple[int, int]) -> mx.array:
    return mx.random.uniform(-1, 1, shape)


def _product(a: mx.array, b: mx.array) -> None:
    mx.eval(a @ b)


def _few_rows(work: Work, memory_bytes: int) -> tuple[int, float]:
    """The same of a few rows with as many matrices of the model's as do not fit in a cache."""
    out, width = work.widest
    count = max(1, memory_bytes // 4 // (out * width * work.dtype.size))
    x = _random((ROWS, width)).astype(work.dtype)
    matrices = [_random((out, width)).astype(work.dtype) for _ in range(count)]
    mx.eval(x, matrices)
    seconds = _best(lambda: mx.eval([x @ matrix.T for matrix in matrices]))
    return 2 * ROWS * out * width * count, seconds


def _memory(num_bytes: int) -> tuple[float, float]:
    """Seconds to read an array (for its largest number) and to copy it.

    MLX's CPU build does either in one thread, so there numpy does it in as many as there are cores.
    """
    if not cpu.on_cpu():
        x = mx.ones((num_bytes // 4,))
        mx.eval(x)
        read, copy = _best(lambda: mx.eval(x.max())), _best(lambda: mx.eval(-x))
    else:
        num_threads = os.cpu_count() or 1
        a = np.array_split(np.ones(num_bytes // 4, np.float32), num_threads)
        b = [np.empty_like(part) for part in a]
        with ThreadPoolExecutor(num_threads) as pool:
            read = _best(lambda: list(pool.map(np.max, a)))
            copy = _best(lambda: list(pool.map(np.copyto, b, a)))
    return read, copy


def _exp(function: Callable[[mx.array], mx.array]) -> float:
    """Seconds for numbers that are made anew each time, as `exp2` may overwrite them."""
    seconds = []
    for _ in range(REPEATS + 1):
        x = mx.random.uniform(-1, 0, (NUM_EXP,))
        mx.eval(x)
        seconds.append(side.seconds(partial(_evaluate, function, x)))
    return min(seconds)


def _evaluate(function: Callable[[mx.array], mx.array], x: mx.array) -> None:
    mx.eval(function(x))


def _disk(folder: Path, num_bytes: int) -> list[Row]:
    """Reading a file of so many bytes, from the page cache and without it."""
    file = folder / "plain" / "file"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(os.urandom(num_bytes))
    states = {"disk, page cache": False}
    if hasattr(os, "posix_fadvise"):
        states["disk, page cache dropped"] = True
    rows = []
    for of, dropped in states.items():
        seconds = median(ttft_ours.read([str(file)], dropped) for _ in range(REPEATS + 1))
        rows.append(_rate(of, BYTES, num_bytes, seconds))
    return rows


# How near the engine comes.


def _limit(of: str, bound: str, limit: float, measured: float, unit: str) -> Row:
    share = measured / limit if unit == "tokens/s" else limit / measured
    row = {"what": "limit", "limit_of": of, "bound_by": bound, "limit": limit}
    return {**row, "measured": measured, "unit": unit, "share": share}


def _decode(work: Work, rates: dict[str, float], of: tuple[int, Agents], num_steps: int) -> Row:
    """A step of so many agents, in a block of steps."""
    count, agents = of
    memory_s = work.weight_bytes / rates["memory, read"]
    products_s = work.step_ops(count) / rates["products, square"]
    bound = MEMORY if memory_s > products_s else PRODUCTS
    step_s = count / agents.block(num_steps)["tokens_per_s"]
    return _limit(f"decode, {count}", bound, max(memory_s, products_s), step_s, "s")


def _prefill(core: EngineCore, work: Work, rates: dict[str, float], tokens: int) -> Row:
    request = ask(core, prompts(core.model.tokenizer, [tokens])[0], 1)
    finish(core, request)
    core.release(request.agent)
    limit = tokens * rates["products, square"] / work.prompt_ops(tokens)
    measured = tokens / request.generation.stats.ttft_s
    return _limit(f"prefill, {tokens:,}", PRODUCTS, limit, measured, "tokens/s")


def _kv_nbytes(core: EngineCore, tokens: int) -> int:
    """Bytes of a context of this length."""
    context = core.pool.open()
    nbytes = core.pool.nbytes(context) + core.pool.growth(context, tokens)
    core.pool.close(context)
    return nbytes


def _restored(path: str, folder: str, contexts: Sequence[int], progress: Progress) -> Iterator[Row]:
    """Contexts on disk, each restored in a new process."""
    progress(f"storing {contexts[-1]:,} tokens")
    stores = f"{folder}/stores"
    side.run("ttft_ours", "save", makes=stores, path=path, store=stores, contexts=list(contexts))
    for tokens in contexts:
        progress(f"restoring {tokens:,} tokens")
        about: Row = {"tokens": tokens, "new_tokens": 1, "logits": f"{folder}/{tokens}.npy"}
        found = side.run(
            "ttft_ours", "warm", path=path, store=f"{stores}/{tokens}", dropped=False, **about
        )
        read_s = side.run("ttft_ours", "read", files=found["files"], dropped=False)
        limit = read_s + found["step_s"]
        yield _limit(f"restored, {tokens:,}", FILES, limit, found["ttft_s"], "s")
