"""Side agents on one River: what each of them takes in memory, and how fast all are together.

They are made as users make them. None comes to an end while it is measured: no token ends an
answer. Every number of Streams has a process of its own, which gets the River's KV from disk.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgecortex.bench import side
from edgecortex.bench.journal import work_folder
from edgecortex.bench.report import Report, Row, make_report, median, spread
from edgecortex.config import EngineConfig
from edgecortex.kv.format import AUTO, KV4
from edgecortex.models import resolve

# The published measurements' model, of which only the vocabulary is another.
QWEN25_05B = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
QWEN = "Qwen2.5-0.5B's shape, random weights"
MANY = 100
PUBLISHED_MB = {10: 12, 50: 10, 100: 13}  # per agent of Qwen2.5-0.5B: Warp-Cortex, table 2
# By kind of rows: the figure, and the column that it is about.
FIGURES = {
    "memory": ("council.mb_per_stream_100", "mb_per_stream"),
    "speed": ("council.river_share_16", "river_share"),
    "thought": ("council.thought_gap", "gap"),
}
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is measured on a River of `river_tokens`: the memory of each of these numbers of
    `resident` Streams when each has `said` so many tokens (up to `MANY` Streams; beyond, the first
    of these numbers only), speeds beside these numbers of `busy` ones in so many `rounds` of
    `phase_tokens`, and as many rounds of one thought of `thought_tokens`, if any. `published` are
    numbers of Streams in the published measurements' shape."""

    river_tokens: int = 4096
    resident: tuple[int, ...] = (10, 50, 100, 1000)
    said: tuple[int, ...] = (8, 64)
    busy: tuple[int, ...] = (0, 4, 16, 100)
    rounds: int = 5
    phase_tokens: int = 64
    thought_tokens: int = 32
    published: tuple[int, ...] = (10, 50, 100)


QUICK = Plan(
    river_tokens=2048,
    resident=(100,),
    said=(8,),
    busy=(16,),
    rounds=6,
    phase_tokens=8,
    thought_tokens=0,
    published=(),
)
DEFINITIONS = {
    "streams": "in memory at the same time, all of them in the midst of a thought",
    "said": "tokens that each Stream has said after its prompt; a thought has 64 at most, "
    "unless told otherwise. The figure is about the first of these numbers",
    "mb_per_stream": "growth of the process since before the first Stream, all in, over their "
    "number; the River has answered once by then. What is larger of what the system and what MLX "
    "say counts. Nothing is given back for the measurement's sake. The last steps are rounds. 1 MB "
    "is 1,000,000 bytes",
    "mlx_cache_mb": "buffers that MLX keeps for later arrays, a part of the growth",
    "published_mb": "Warp-Cortex, table 2: growth of video memory per agent",
    "river_share": "the River's tokens per second while all Streams decode over those while they "
    "rest, in the same round",
    "thought": "of a Stream that gets its task while the River speaks, from then on until its "
    "thought is injected; landmarks are collected for it. The figure is the median of the rounds "
    "whose thought is accepted: one that the River has word for word is not injected again",
    "gap": "the longest time between two tokens of the River meanwhile over the median one alone",
    "begun_s": "until the landmarks were there; decided_s: until the thought was injected, "
    "inject_s of it in judging and injecting",
    "streams_alone_tok_s": "of all Streams together, while the River rests",
}


def measure(
    model: str, progress: Progress, *, quick: bool = False, plan: Plan | None = None
) -> Report:
    """Measures memory, then speed, then memory in the published measurements' shape.

    Args:
        quick: fewer Streams, fewer tokens in a round, a shorter River, and nothing in the
            published shape.

    Raises:
        EdgeCortexError: a part failed.
    """
    plan = plan or (QUICK if quick else Plan())
    path = str(resolve(model))
    with work_folder() as folder:
        own = _River(model, path, f"{folder}/own", AUTO, plan, progress)
        own.keep()
        rows = own.memory(plan.resident)
        rows += [row for count in plan.busy for row in own.beside(count)]
        rows += own.thoughts() if plan.thought_tokens else []
        if plan.published:
            progress(f"a model of {QWEN}")
            made = f"{folder}/qwen"
            shape = {"tokenizer_of": path, "shape": QWEN25_05B}
            side.run("council_geometry", "make", makes=made, folder=made, **shape)
            peer = _River(QWEN, made, f"{folder}/peer", KV4.name, plan, progress)
            peer.keep()
            rows += peer.memory(plan.published, PUBLISHED_MB)
    settings = {
        "model": model,
        "river_share": EngineConfig.river_share,
        "max_gap": EngineConfig.max_gap,
        **asdict(plan),
        "definitions": DEFINITIONS,
    }
    counted = _counted(rows, model)
    figures, rounds = _figures(counted), [_figures([row]) for row in counted]
    return make_report("council", settings, figures, rows, spread(figures, rounds))


@dataclass(frozen=True)
class _River:
    """One model's River, in a store of its own, and the jobs that measure on it."""

    model: str
    path: str
    store: str
    kv_format: str
    plan: Plan
    progress: Progress

    def keep(self) -> None:
        self.progress(f"{self.model}: reading a River of {self.plan.river_tokens:,} tokens")
        self._run("council_river", "keep", makes=self.store, tokens=self.plan.river_tokens)

    def memory(
        self, numbers: Sequence[int], published: Mapping[int, float] | None = None
    ) -> list[Row]:
        """Rows for each number of Streams, beside what was published of as many."""
        rows: list[Row] = []
        for count in numbers:
            self.progress(f"{self.model}: memory of {count:,} Streams")
            said = self.plan.said[: 1 if count > MANY else None]
            found = self._run("council_memory", "streams", count=count, said=list(said))
            more = {"published_mb": published[count]} if published and count in published else {}
            rows += [{"model": self.model, **row, **more} for row in found]
        return rows

    def beside(self, count: int) -> list[Row]:
        """The River's speed beside so many busy Streams, round by round."""
        self.progress(f"{self.model}: {count:,} busy Streams")
        sizes = {"rounds": self.plan.rounds, "tokens": self.plan.phase_tokens}
        found = self._run("council_speed", "beside", kv=False, streams=count, **sizes)
        return [{"model": self.model, **row} for row in found]

    def thoughts(self) -> list[Row]:
        """One thought after the other, beside the River."""
        self.progress(f"{self.model}: thoughts while the River speaks")
        sizes = {"tokens": self.plan.phase_tokens, "said": self.plan.thought_tokens}
        found = self._run("council_thought", "whole", kv=False, rounds=self.plan.rounds, **sizes)
        return [{"model": self.model, **row} for row in found]

    def _run(self, module: str, job: str, kv: bool = True, **arguments: Any) -> Any:
        format = {"kv_format": self.kv_format} if kv else {}
        return side.run(module, job, path=self.path, store=self.store, **format, **arguments)


def _counted(rows: Sequence[Row], model: str) -> list[Row]:
    """Those that figures are about: of 100 Streams in memory, when they have said the least, of
    16 busy ones, and of accepted thoughts."""
    memory = _of(rows, model, what="memory", streams=100)
    least = min((row["said"] for row in memory), default=0)
    speed = _of(rows, model, what="speed", streams=16)
    thoughts = _of(rows, model, what="thought", status="accepted")
    return [*(row for row in memory if row["said"] == least), *speed, *thoughts]


def _figures(counted: Sequence[Row]) -> dict[str, float]:
    """Medians of what was measured."""
    values: dict[str, list[float]] = {}
    for row in counted:
        name, key = FIGURES[row["what"]]
        values.setdefault(name, []).append(row[key])
    return {name: median(found) for name, found in values.items()}


def _of(rows: Sequence[Row], model: str, **wanted: object) -> list[Row]:
    wanted["model"] = model
    return [row for row in rows if wanted.items() <= row.items()]
