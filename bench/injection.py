"""What an injected thought does, held against the same words pasted as text; and the gate.

A fact that the context does not hold is given to it in each way, then asked for: how much
likelier the right answer gets is the effect. What it does to an unrelated continuation is the
harm.
"""

import random
import time
from collections.abc import Callable, Sequence
from itertools import chain
from statistics import mean, stdev

import mlx.core as mx
import numpy as np

from edgecortex import gate as kv_gate
from edgecortex.bench.report import ROUNDS, Report, Row, groups, make_report, median, spread
from edgecortex.bench.synapse import NAMES, WORDS
from edgecortex.bench.text import passages_within
from edgecortex.config import EngineConfig
from edgecortex.kv.context import Context, Trace
from edgecortex.kv.segment import KVSegment
from edgecortex.models import resolve
from edgecortex.models.adapter import load_model
from edgecortex.runner import ModelRunner
from edgecortex.warp import injection
from edgecortex.warp.gate import PLAIN_TEXT, ValidationGate, cosine
from edgecortex.warp.judge import REFERENCE
from edgecortex.warp.synapse import NUM_LANDMARKS, NUM_QUERIES, RIVER_STATES, collect

LENGTH = 1024  # tokens of context
UNRELATED = 64  # tokens of the continuation that are compared
THOUGHT = 48  # tokens of text that stand for a thought, for the gate
APART = 160  # tokens between a context's end and the thought that belongs to it
GATE = "the gate's"


def measure(model: str, contexts: int, text: str, progress: Callable[[str], None]) -> Report:
    """Injects into `contexts` passages of a text in each way, and lets the gate judge thoughts
    about them.

    Raises:
        EdgeCortexError: there is too little text.
    """
    loaded = load_model(resolve(model))
    config, _ = kv_gate.resolved(loaded, EngineConfig())
    runner = ModelRunner(loaded, config)
    parts = passages_within(loaded.tokenizer, contexts, LENGTH + APART + THOUGHT, text)
    gate = ValidationGate()
    gate.seen.add(runner.hidden_of(loaded.tokenizer.encode(PLAIN_TEXT, first=True)))
    found: dict[str, list[Row]] = {}
    judged: dict[str, list[list[tuple[float, bool]]]] = {}  # of each context
    for number, passage in enumerate(parts):
        progress(f"context {number + 1} of {contexts}")
        river = _river(runner, passage[:LENGTH])
        for name, row in _effects(runner, river, passage, number).items():
            found.setdefault(name, []).append(row)
        others = [
            parts[(number + step) % contexts] for step in (max(1, contexts // 3), contexts // 2)
        ]
        gate.seen.add(_states(river))
        for related, source in ((True, passage), *((False, other) for other in others)):
            thought = runner.hidden_of(source[LENGTH + APART :])
            for name, score in _scores(gate, thought, _states(river)).items():
                judged.setdefault(name, [[] for _ in parts])[number].append((score, related))
        runner.pool.close(river)
    rows, by_group = _rows(found, judged), [_rows(found, judged, at) for at in groups(contexts)]
    settings = {"model": model, "kv_format": config.kv_format, "contexts": contexts}
    settings |= {"tokens": LENGTH, "threshold": gate.threshold, "rounds": ROUNDS}
    figures = _figures(rows)
    ends = spread(figures, [_figures(group) for group in by_group])
    return make_report("injection", settings, figures, rows, ends)


def _rows(
    found: dict[str, list[Row]],
    judged: dict[str, list[list[tuple[float, bool]]]],
    at: slice = slice(None),
) -> list[Row]:
    """Effects and verdicts, over some of the contexts."""
    effects = [_summary(name, rows[at], found["pasted"][at]) for name, rows in found.items()]
    scored = {name: list(chain(*pairs[at])) for name, pairs in judged.items()}
    return [*effects, *({"score": name, **_auc(pairs)} for name, pairs in scored.items())]


def _figures(rows: list[Row]) -> dict[str, float]:
    forward = next(row for row in rows if row.get("way") == "forward")
    return {
        "injection.effect_share": forward["effect_share"],
        "injection.unrelated_kl": forward["unrelated_kl"],
        "gate.auc": next(row["auc"] for row in rows if row.get("score") == GATE),
    }


def _river(runner: ModelRunner, ids: Sequence[int]) -> Context:
    river = runner.pool.open()
    river.trace = Trace(len(runner.pool.caches), NUM_QUERIES, RIVER_STATES)
    for i in range(0, len(ids), 512):
        runner.run([(river, ids[i : i + 512])])
    return river


# The effect of a thought.


def _effects(
    runner: ModelRunner, river: Context, passage: Sequence[int], number: int
) -> dict[str, Row]:
    """Per way of telling the fact: the answer's log-probability in nats, the divergence of an
    unrelated continuation, and what it took."""
    encode, rng = runner.model.tokenizer.encode, random.Random(number)
    name, word = rng.choice(NAMES), rng.choice(WORDS)
    text = encode(REFERENCE.format(f"The password of {name} is {word}."), first=False)
    asked = encode(f"\n\nThe password of {name} is", first=False)
    told = encode(f" {word}", first=False)
    goes_on = list(passage[LENGTH : LENGTH + UNRELATED])
    rows: dict[str, Row] = {}
    plain: mx.array | None = None
    stream = _stream(runner, river, text)
    for way, tell in _ways(runner, river, stream, text).items():
        context, seconds = tell()
        answered = runner.pool.fork(context)
        logits = _log_probs(runner, answered, [*asked, *told])[len(asked) - 1 : -1]
        likely = float(mx.take_along_axis(logits, mx.array(told)[:, None], axis=1).sum())
        unrelated = _log_probs(runner, context, goes_on)
        plain = unrelated if plain is None else plain
        kl = float((mx.exp(plain) * (plain - unrelated)).sum(axis=-1).mean())
        rows[way] = {"log_p": likely, "unrelated_kl": kl, "seconds": seconds}
        for done in (answered, context):
            runner.pool.close(done)
    runner.pool.close(stream)
    for row in rows.values():
        row["effect"] = row["log_p"] - rows["nothing"]["log_p"]
    return rows


def _ways(
    runner: ModelRunner, river: Context, stream: Context, text: Sequence[int]
) -> dict[str, Callable[[], tuple[Context, float]]]:
    """Ways to tell a River what a Stream has read as its last."""
    pool = runner.pool

    def timed(change: Callable[[Context], None]) -> tuple[Context, float]:
        context = pool.fork(river)
        start = time.perf_counter()
        change(context)
        return context, time.perf_counter() - start

    def lay(context: Context, segment: KVSegment) -> None:
        pool.lay(context, segment, "thought")

    def graft(context: Context) -> None:
        lay(context, injection.moved(runner, stream, stream.num_own - len(text), context))

    return {
        "nothing": lambda: timed(void),
        "pasted": lambda: timed(lambda c: void(runner.run([(c, list(text))]))),
        "forward": lambda: timed(lambda c: lay(c, injection.forward(runner, c, text))),
        "graft": lambda: timed(graft),
    }


def void(_: object) -> None:
    """Lets a result go."""


def _stream(runner: ModelRunner, river: Context, text: Sequence[int]) -> Context:
    """A context that has read this on the River's landmarks."""
    stream = runner.pool.open()
    stream.base = river.position
    segment = collect(runner, river, "matched", NUM_LANDMARKS)
    runner.pool.lay(stream, segment, "synapse")
    runner.run([(stream, list(text))])
    return stream


def _log_probs(runner: ModelRunner, context: Context, ids: Sequence[int]) -> mx.array:
    logits = runner.run([(context, list(ids))], all_rows=True)[1]
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _summary(way: str, rows: list[Row], pasted: list[Row]) -> Row:
    effect = mean(row["effect"] for row in pasted)
    shares = [row["effect"] / effect for row in rows]
    return {
        "way": way,
        "log_p": mean(row["log_p"] for row in rows),
        "effect": mean(row["effect"] for row in rows),
        "effect_share": mean(shares),
        "effect_share_se": stdev(shares) / len(shares) ** 0.5 if len(shares) > 1 else 0.0,
        "unrelated_kl": mean(row["unrelated_kl"] for row in rows),
        "ms": 1000 * median([row["seconds"] for row in rows]),
    }


# The gate.


def _states(context: Context) -> np.ndarray:
    assert context.trace
    return np.array(context.trace.hidden.all().astype(mx.float32))


def _scores(gate: ValidationGate, thought: np.ndarray, main: np.ndarray) -> dict[str, float]:
    """Of the gate, and of what else could be asked."""
    centred = [gate.seen.standardized(states) for states in (thought, main)]
    return {
        "raw cosine of last tokens": cosine(thought[-1], main[-1]),
        "raw cosine of means": cosine(thought.mean(axis=0), main.mean(axis=0)),
        "standardized, of last tokens": cosine(centred[0][-1], centred[1][-1]),
        "standardized, of means": cosine(centred[0].mean(axis=0), centred[1].mean(axis=0)),
        GATE: gate.score(thought, main),
    }


def _auc(pairs: list[tuple[float, bool]]) -> Row:
    """The chance that a relevant thought scores above an irrelevant one, ties counting half; and
    the medians of both."""
    good, bad = ([score for score, related in pairs if related is want] for want in (True, False))
    wins = [(g > b) + 0.5 * (g == b) for g in good for b in bad]
    return {"auc": mean(wins), "relevant": median(good), "irrelevant": median(bad)}
