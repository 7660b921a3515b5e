"""Which benchmarks there are: what each is about, its settings, and how long it takes."""

from dataclasses import dataclass, field
from typing import Any

Settings = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """`settings` and `quick` are arguments of the `measure` of the module of the same name;
    `seconds` and `quick_seconds` a rough time for either, with the default model on two cores."""

    title: str
    seconds: float
    quick_seconds: float
    settings: Settings = field(default_factory=dict)
    quick: Settings = field(default_factory=dict)

    def chosen(self, quick: bool) -> Settings:
        return dict(self.quick if quick else self.settings)

    def expected_s(self, quick: bool) -> float:
        return self.quick_seconds if quick else self.seconds


BENCHES = {
    "ttft": Bench(
        "Time to the first token: context read anew, on disk, in memory; and mlx-lm's",
        1200,
        80,
        {"contexts": [512, 1024, 2048, 4096, 8192], "repeat": 3},
        {"contexts": [512], "repeat": 5, "whole": False},
    ),
    "decode": Bench(
        "Many agents decoding together, against mlx-lm on the same weights",
        1260,
        75,
        {"repeat": 3, "slow": True},
        {"repeat": 1, "slow": False, "num_steps": 3},
    ),
    "memory": Bench(
        "What KV takes on disk, and how many agents of Gemma 3 12B fit in 10.2 GB of memory",
        180,
        22,
        {"quick": False},
        {"quick": True},
    ),
    "quality": Bench(
        "What each KV format costs in perplexity and KL, against full precision",
        1800,
        20,
        {"windows": {1024: 16, 4096: 4}},
        {"windows": {512: 1}, "rivals": False},
    ),
    "council": Bench(
        "Streams on a River's landmarks: what each takes, and what they cost the River",
        1400,
        80,
        {"quick": False},
        {"quick": True},
    ),
    "synapse": Bench(
        "What a few landmarks are worth, against as many sinks and recent tokens",
        900,
        54,
        {"contexts": 20, "tokens": 4096, "kept": 128, "text": ""},
        {"contexts": 2, "tokens": 2048, "kept": 128, "text": ""},
    ),
    "injection": Bench(
        "What an injected thought does, against the same words pasted; and the gate",
        200,
        25,
        {"contexts": 20, "text": ""},
        {"contexts": 2, "text": ""},
    ),
    "compare": Bench(
        "The same work on EdgeCortex and on others, side by side",
        1500,
        95,
        {"quick": False},
        {"quick": True},
    ),
    "roofline": Bench(
        "How near to the machine's own limits reading and decoding come",
        400,
        75,
        {"quick": False},
        {"quick": True},
    ),
    "workflow": Bench(
        "Agents kept from phase to phase: times to the first token, against new ones",
        570,
        30,
        {"repeat": 3, "names": ["prisoners-dilemma", "experts"]},
        {"repeat": 1, "names": ["prisoners-dilemma"]},
    ),
    "blas": Bench("Time to read 512 tokens, with our BLAS and with the MLX wheel's own", 60, 45),
}
