"""Self-test of whole models: ragged steps, the store, attached segments, and an engine."""

import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np

from edgecortex import plain
from edgecortex.agent import Agent
from edgecortex.archive import Archive
from edgecortex.config import EngineConfig, SamplingParams
from edgecortex.engine import Engine
from edgecortex.errors import EdgeCortexError
from edgecortex.kv.blocks import BlockCodec, Snapshot
from edgecortex.kv.context import Context, Trace
from edgecortex.kv.segment import KVSegment, LayerKV
from edgecortex.models import tiny
from edgecortex.models.adapter import LoadedModel
from edgecortex.plain import Checks, Gap, worst
from edgecortex.runner import ModelRunner
from edgecortex.store.cache import PersistentKVCache
from edgecortex.warp.injection import gather
from edgecortex.warp.synapse import NUM_QUERIES, collect

BUDGET = 1 << 34
IDS = [3 + (7 * i * i + 5 * i) % 90 for i in range(400)]

# Of a logit, in roundings of one number and relative to the largest: every layer rounds a dozen
# times. Three times what was measured on a CPU; a token that is left out or read at another
# position moves logits by hundredths and tenths.
IN_ROUNDINGS = 100


def model_checks() -> Checks:
    """Several agents in one step against each alone, in mlx-lm's own attention on the CPU."""
    kinds = ("llama", "qwen2", "qwen3", "gemma3_text", "deepseek_v2")
    return {
        **{f"{kind}, float32": partial(_ragged, kind, None) for kind in kinds},
        "llama, float16": partial(_ragged, "llama", mx.float16),
        "llama, bfloat16": partial(_ragged, "llama", mx.bfloat16),
        "gemma3_text, bfloat16": partial(_ragged, "gemma3_text", mx.bfloat16),
        "llama, 4-bit weights": _ragged_in_4_bits,
    }


def store_checks() -> Checks:
    """Saved and loaded."""
    pairs = itertools.product(("llama", "gemma3_text", "deepseek_v2"), ("kv4", "fp"))
    checks = {f"{kind}, {format}": partial(_stored, kind, format, None) for kind, format in pairs}
    return checks | {"llama, kv8, bfloat16": partial(_stored, "llama", "kv8", mx.bfloat16)}


def segment_checks() -> Checks:
    """What one context sees of another's."""
    kinds = ("llama", "qwen3", "gemma3_text")
    return {
        **{f"{kind}: read and laid again": partial(_laid_again, kind) for kind in kinds},
        **{f"{kind}: a synapse of all tokens": partial(_synapse, kind) for kind in kinds},
        "llama: moved to other positions": _moved,
        "llama: one that weighs as two": _heavy,
    }


def engine_checks() -> Checks:
    """An engine's thread, and answers."""
    return {"arrays of both threads": _threads, "answers of a batch": _answers}


# Models.


@contextlib.contextmanager
def on_the_cpu() -> Iterator[None]:
    """MLX's plain operations on the CPU: compiled ones would ask for a compiler there."""
    mx.disable_compile()
    try:
        with mx.stream(mx.cpu):
            yield
    finally:
        mx.enable_compile()


def _alone(model: LoadedModel, token_ids: list[int]) -> np.ndarray:
    """Logits of every token (L, vocab), by mlx-lm's own attention."""
    with on_the_cpu():
        return plain.numbers(model.reference(token_ids))


def _made(kind: str, dtype: mx.Dtype | None) -> LoadedModel:
    # All experts: with some, rounding alone may choose another.
    more = {"num_experts_per_tok": 4} if kind == "deepseek_v2" else {}
    model = tiny.make(kind, **more)
    return tiny.in_dtype(model, dtype) if dtype else model


def _ragged(kind: str, dtype: mx.Dtype | None) -> Gap:
    model, truth = _made(kind, dtype), tiny.in_dtype(_made(kind, dtype), mx.float32)
    return _compared(model, truth, dtype or mx.float32)


def _ragged_in_4_bits() -> Gap:
    model, truth = (tiny.in_4_bits(_made("llama", mx.float16)) for _ in range(2))
    return _compared(model, tiny.in_dtype(truth, mx.float32), mx.float16)


def _compared(model: LoadedModel, truth: LoadedModel, dtype: mx.Dtype) -> Gap:
    """Prefill and decode of four agents mixed, across the ends of blocks and windows."""
    runner = _runner(model, "fp")
    a, b, c, d = (runner.pool.open() for _ in range(4))
    steps = (
        ((a, 3), (b, 150)),
        ((a, 1), (b, 1), (c, 68)),
        ((a, 64), (b, 1), (c, 1), (d, 1)),
        ((d, 1), (b, 1), (a, 1)),
        ((a, 100), (b, 2), (c, 1), (d, 5)),
        ((a, 1), (b, 1), (c, 1), (d, 1)),
    )
    gaps = []
    for step in steps:
        feed = [(x, IDS[x.num_own + x.slot : x.num_own + x.slot + n]) for x, n in step]
        contexts, logits = runner.run(feed)
        for i, context in enumerate(contexts):
            want = _alone(truth, context.token_ids)[-1]
            gaps.append(_logits(logits[i], want, dtype, f"after {context.num_own} tokens"))
    runner.pool.check()
    return worst(*gaps)


def _logits(got: mx.array, want: np.ndarray, dtype: mx.Dtype, where: str = "") -> Gap:
    found = plain.gap(got, want, plain.tolerance(IN_ROUNDINGS, dtype), where)
    return found._replace(error=found.error / float(np.abs(want).max()))


def _runner(model: LoadedModel, format: str) -> ModelRunner:
    return ModelRunner(model, EngineConfig(kv_format=format, kv_budget_bytes=BUDGET))


def _fed(runner: ModelRunner, *parts: list[int]) -> Context:
    context = runner.pool.open()
    for part in parts:
        runner.run([(context, part)])
    return context


def _said(runner: ModelRunner, context: Context, ids: list[int]) -> mx.array:
    """The logits of every one of the next tokens."""
    return runner.run([(context, ids)], all_rows=True)[1]


# The store.


def _stored(kind: str, format: str, dtype: mx.Dtype | None) -> Gap:
    """Every byte, and then what both contexts go on to say."""
    runner = _runner(_made(kind, dtype), format)
    codec = BlockCodec(runner.pool, runner.shapes)
    source, target = _fed(runner, IDS[:100], IDS[100:333]), runner.pool.open()
    with tempfile.TemporaryDirectory() as folder:
        archive = Archive(PersistentKVCache(Path(folder) / "store"), codec, kind)
        try:
            archive.save(source, tail=True).result()
            match = archive.match(source.token_ids)
            if match.num_tokens != source.num_own:
                raise EdgeCortexError(f"of {source.num_own} tokens {match.num_tokens} were stored")
            archive.load(target, source.token_ids, match)
        finally:
            archive.close()
    gaps = [_differing(codec.snapshot(source), codec.snapshot(target))]
    for token in IDS[333:336]:
        contexts, logits = runner.run([(source, [token]), (target, [token])])
        rows = {context: logits[i] for i, context in enumerate(contexts)}
        want = plain.numbers(rows[source])
        gaps.append(_logits(rows[target], want, dtype or mx.float32, "goes on"))
    return worst(*gaps)


def _differing(a: Snapshot, b: Snapshot) -> Gap:
    """How many numbers are not the same, bit by bit."""
    last = a.num_blocks - 1  # of a window the last block is there whatever its size
    pairs = [(a.block(i), b.block(i)) for i in range(a.num_blocks)]
    pairs += [(a.window(last), b.window(last)), (a.tail(), b.tail())]
    count = 0
    for mine, other in pairs:
        if mine.keys() != other.keys():
            raise EdgeCortexError(f"expected arrays {sorted(mine)}, got {sorted(other)}")
        count += sum(int((mine[name] != other[name]).sum()) for name in mine)
    return Gap(float(count), 0.0, "bytes")


# Segments.


def _laid_again(kind: str) -> Gap:
    """What is copied out of one context stands for it in another."""
    runner = _runner(tiny.make(kind), "fp")
    segment = gather(runner, _fed(runner, IDS[:70]), 0)
    return _stands_for(runner, segment, IDS[:70])


def _synapse(kind: str) -> Gap:
    """So do as many landmarks as there are tokens."""
    runner = _runner(tiny.make(kind), "fp")
    source = runner.pool.open()
    source.trace = Trace(len(runner.pool.caches), NUM_QUERIES, 1)
    runner.run([(source, IDS[:70])])
    return _stands_for(runner, collect(runner, source, "matched", 70), IDS[:70])


def _stands_for(runner: ModelRunner, segment: KVSegment, ids: list[int]) -> Gap:
    """Whether a context that sees a segment goes on as one that has read those tokens."""
    context = runner.pool.open()
    context.base = len(ids)
    runner.pool.lay(context, segment, "x")
    got = [_said(runner, context, IDS[70:90]), _said(runner, context, IDS[90:91])]
    want = _alone(runner.model, [*ids, *IDS[70:91]])[len(ids) :]
    return worst(
        _logits(got[0], want[:-1], mx.float32, "prefill"),
        _logits(got[1], want[-1:], mx.float32, "decode"),
    )


def _moved() -> Gap:
    """Keys turned by 40 positions, and back, against those of tokens that were read there."""
    runner = _runner(tiny.make("llama"), "fp")
    here, there = runner.pool.open(), runner.pool.open()
    there.base = 40
    runner.run([(here, IDS[:70]), (there, IDS[:70])])
    return worst(*_turned(runner, here, there, 40), *_turned(runner, there, here, -40))


def _turned(runner: ModelRunner, source: Context, target: Context, by: int) -> list[Gap]:
    got, want = gather(runner, source, 0, turn_by=by), gather(runner, target, 0)
    gaps = []
    for mine, other in zip(got.layers, want.layers, strict=True):
        keys = plain.numbers(other.k[0])
        # Fast sines of some GPUs have about eight good bits; a position is tenths.
        most = 2**-8 * float(np.abs(keys).max())
        gaps.append(plain.gap(mine.k[0], keys, most, f"keys, by {by}"))
    return gaps


def _heavy() -> Gap:
    """A token of weight two against two of it."""
    runner = _runner(tiny.make("llama"), "fp")
    source = gather(runner, _fed(runner, IDS[:40]), 0)
    twice = [
        LayerKV(x.format, _doubled(x.k, -1), _doubled(x.v, -2), x.v_dim) for x in source.layers
    ]
    for layer in source.layers:
        layer.bias = mx.ones((2, 40))
    said = []
    for layers, n in ((twice, 80), (source.layers, 40)):
        context = runner.pool.open()
        context.base = 200
        runner.pool.lay(context, KVSegment(layers, 200 - n, n), "x")
        parts = [_said(runner, context, ids) for ids in (IDS[:90], IDS[90:91], IDS[91:92])]
        said.append(mx.concatenate(parts))
    return _logits(said[1], plain.numbers(said[0]), mx.float32)


def _doubled(parts: tuple[mx.array, ...], axis: int) -> tuple[mx.array, ...]:
    return tuple(mx.concatenate([x, x], axis=axis) for x in parts)


# The engine.


@contextlib.contextmanager
def _engine() -> Iterator[Engine]:
    with tempfile.TemporaryDirectory() as folder:
        path = tiny.save(tiny.make("llama"), Path(folder))
        config = EngineConfig(kv_format="fp", kv_budget_bytes=BUDGET, use_store=False)
        with Engine.load(str(path), config=config) as engine:
            yield engine


def _threads() -> Gap:
    """What is evaluated in one thread is used in another."""

    def made() -> mx.array:
        x = mx.arange(1000) * 3
        mx.eval(x)
        return x

    numbers, mine = np.arange(1000) * 3, made()
    with _engine() as engine:
        device, here = engine.call(mx.default_device), mx.default_device()
        if device != here:
            raise EdgeCortexError(f"expected the engine on {here}, got it on {device}")
        theirs = engine.call(made)
        there = engine.call(lambda: np.array(mine + 1))
        return worst(
            plain.same(theirs + 1, numbers + 1, "the engine's, here"),
            Gap(float((there != numbers + 1).sum()), 0.0, "ours, in the engine"),
        )


def _answers() -> Gap:
    """Three agents at once, then with a fork: each token is the best to mlx-lm alone, too."""
    prompts = [" ".join(f"w{i}" for i in ids) for ids in (IDS[:150], IDS[50:53], IDS[7:76])]
    with _engine() as engine:
        agents = [engine.agent(sampling=SamplingParams(max_tokens=12)) for _ in prompts]
        spoken = _ask(agents, prompts)
        agents.append(agents[0].fork())
        spoken += _ask(agents, ["w5 w6 w7"] * 4)
    truth = tiny.make("llama")
    return worst(*(_shortfall(truth, ids, n) for ids, n in spoken))


def _ask(agents: list[Agent], texts: list[str]) -> list[tuple[list[int], int]]:
    """Every agent's token ids after it has answered, and how many of them are the answer's."""
    answers = [agent.chat(text) for agent, text in zip(agents, texts, strict=True)]
    for answer in answers:
        answer.text()
    return [
        (agent.conversation.token_ids, len(answer.token_ids))
        for agent, answer in zip(agents, answers, strict=True)
    ]


def _shortfall(truth: LoadedModel, ids: list[int], num_said: int) -> Gap:
    """By how much the worst of the newest tokens misses the best logit, relative to the largest."""
    if not num_said:
        raise EdgeCortexError("an answer has no tokens")
    logits = _alone(truth, ids[:-1])[-num_said:]
    chosen = np.take_along_axis(logits, np.array(ids)[-num_said:, None], axis=1)
    missed = float((logits.max(axis=1, keepdims=True) - chosen).max() / np.abs(logits).max())
    most = plain.tolerance(IN_ROUNDINGS, mx.float32)
    return Gap(missed, most, f"after {len(ids)} tokens")
