"""What a few landmarks are worth: the same question put to the whole context and to them.

Into each passage of real text a fact is planted. Then the text's own continuation is scored, and
the fact is asked for, once over all tokens and once over the landmarks of each rule.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import mean, stdev

import mlx.core as mx

from edgecortex import gate
from edgecortex.bench.journal import once
from edgecortex.bench.report import ROUNDS, Report, Row, groups, make_report, spread
from edgecortex.bench.text import passages
from edgecortex.config import EngineConfig
from edgecortex.kv.context import Context, Trace
from edgecortex.kv.segment import KVSegment
from edgecortex.models import resolve
from edgecortex.models.adapter import load_model
from edgecortex.runner import ModelRunner
from edgecortex.warp.landmarks import RULES, hausdorff
from edgecortex.warp.synapse import NUM_QUERIES, mark, sealed, view_of

SCORED = 128  # tokens of the continuation
NAMES = ("Varn", "Tolmouth", "Ester", "Quill", "Marrow", "Halden", "Orsa", "Pindle")
WORDS = ("lemon", "copper", "violin", "rabbit", "ladder", "pepper", "window", "button")
BASE = "sinks+recent"


def measure(
    model: str,
    contexts: int,
    tokens: int,
    kept: int,
    text: str,
    progress: Callable[[str], None],
) -> Report:
    """Compares all rules at `kept` landmarks out of `tokens`, over `contexts` passages of a text.

    Raises:
        EdgeCortexError: there is too little text.
    """
    loaded = load_model(resolve(model))
    config, _ = gate.resolved(loaded, EngineConfig())
    runner = ModelRunner(loaded, config)
    found: dict[str, list[Row]] = {}
    for number, passage in enumerate(
        passages(loaded.tokenizer, contexts, tokens + SCORED, text), 1
    ):
        progress(f"context {number} of {contexts}")
        part = partial(_passage, runner, passage, tokens, kept, number)
        for name, row in once(["synapse", number], part).items():
            found.setdefault(name, []).append(row)
    rows, by_group = _rows(found), [_figures(_rows(found, at)) for at in groups(contexts)]
    settings: Row = {"model": model, "kv_format": config.kv_format}
    settings |= {"contexts": contexts, "tokens": tokens, "kept": kept, "rounds": ROUNDS}
    figures = _figures(rows)
    return make_report("synapse", settings, figures, rows, spread(figures, by_group))


def _rows(found: dict[str, list[Row]], at: slice = slice(None)) -> list[Row]:
    """Per rule, over some of the contexts."""
    base, full = found[BASE][at], found["full"][at]
    return [_summary(name, rows[at], base, full) for name, rows in found.items()]


def _figures(rows: list[Row]) -> dict[str, float]:
    return {"synapse.gap_closed": next(r["gap_closed"] for r in rows if r["rule"] == "matched")}


def _passage(
    runner: ModelRunner, passage: Sequence[int], tokens: int, kept: int, number: int
) -> dict[str, Row]:
    """Per rule, and for the whole context: what the continuation and the fact cost, in nats."""
    pool, encode = runner.pool, runner.model.tokenizer.encode
    rng = random.Random(number)
    name, word = rng.choice(NAMES), rng.choice(WORDS)
    fact = encode(f"\n\nThe password of {name} is {word}.\n\n", first=False)
    asked = encode(f"\n\nThe password of {name} is", first=False)
    at = rng.randrange(tokens // 4, tokens * 3 // 4)
    text = [*passage[:at], *fact, *passage[at : tokens - len(fact)]]
    goes_on = list(passage[tokens - len(fact) : tokens - len(fact) + SCORED])
    told = encode(f" {word}", first=False)
    river = pool.open()
    river.trace = Trace(len(pool.caches), NUM_QUERIES, 1)
    for i in range(0, tokens, 512):
        newest = runner.run([(river, text[i : i + 512])])[1][0]

    def score(open_one: Callable[[], Context]) -> Row:
        costs = []
        for ids, first in ((goes_on, 0), ([*asked, *told], len(asked))):
            context = open_one()
            logits = runner.run([(context, ids)], all_rows=True)[1]
            pool.close(context)
            before = mx.concatenate([newest[None], logits[:-1]])
            before -= mx.logsumexp(before, axis=-1, keepdims=True)
            chosen = mx.take_along_axis(before, mx.array(ids)[:, None], axis=1)[first:]
            costs.append(-float(chosen.mean()))
        return {"nll": costs[0], "fact_nll": costs[1], "collect_s": 0.0, "hausdorff": 0.0}

    views = [view_of(runner, river, layer) for layer in range(len(pool.caches))]
    rows = {"full": score(lambda: pool.fork(river))}
    for rule in RULES:
        unread = [replace(view) for view in views]  # a view keeps what was worked out of it
        start = time.perf_counter()
        marks = [mark(view, rule, kept) for view in unread]
        seconds = time.perf_counter() - start
        layers = [sealed(pool, i, *pair) for i, pair in enumerate(zip(views, marks, strict=True))]
        segment = KVSegment(layers, river.position - kept, kept)
        rows[rule] = score(lambda segment=segment: _seeing(runner, river, segment))  # type: ignore
        rows[rule]["collect_s"] = seconds
        rows[rule]["hausdorff"] = mean(map(hausdorff, views, marks))
    pool.close(river)
    return rows


def _seeing(runner: ModelRunner, river: Context, segment: KVSegment) -> Context:
    """A context that has landmarks in place of the River's tokens."""
    context = runner.pool.open()
    context.base = river.position
    runner.pool.lay(context, segment, "synapse")
    return context


def _summary(name: str, rows: list[Row], base: list[Row], full: list[Row]) -> Row:
    """Means over the contexts, and the standard error of the share of the gap that is closed."""
    gap = mean(b["nll"] - f["nll"] for b, f in zip(base, full, strict=True))
    closed = [(b["nll"] - r["nll"]) / gap for b, r in zip(base, rows, strict=True)]
    fact = mean(b["fact_nll"] - f["fact_nll"] for b, f in zip(base, full, strict=True))
    return {
        "rule": name,
        "nll": mean(row["nll"] for row in rows),
        "gap_closed": mean(closed),
        "gap_closed_se": stdev(closed) / len(closed) ** 0.5 if len(closed) > 1 else 0.0,
        "contexts_better_than_base": sum(share > 0 for share in closed),
        "fact_nll": mean(row["fact_nll"] for row in rows),
        "fact_gap_closed": mean(b["fact_nll"] for b in base) / fact
        - mean(row["fact_nll"] for row in rows) / fact,
        "hausdorff": mean(row["hausdorff"] for row in rows),
        "collect_s": mean(row["collect_s"] for row in rows),
    }
