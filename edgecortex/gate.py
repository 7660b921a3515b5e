"""Which KV format a model gets: the best of those in 4 bits, by measurement, or one in 8 bits."""

import textwrap
from dataclasses import dataclass, replace
from pydoc_data import topics

import mlx.core as mx
import numpy as np

from edgecortex.config import EngineConfig
from edgecortex.cpu import distribution
from edgecortex.errors import StoreError
from edgecortex.kv.context import Context
from edgecortex.kv.format import AUTO
from edgecortex.models.adapter import LoadedModel
from edgecortex.models.fingerprint import fingerprint
from edgecortex.runner import ModelRunner
from edgecortex.state import remember, remembered

CANDIDATES = ("kv4", "kv4u")
FALLBACK = "kv8"
MAX_KL = 0.03  # nats a token; stock 4-bit KV costs small models 0.03 to 0.3, and some nearly all
NUM_TOKENS, NUM_SCORED, CHUNK = 452, 320, 64  # 4 sinks and 7 blocks, of which 5 are scored
TOPIC = "typesseq"  # of the language reference that comes with Python: long enough, real English


@dataclass(frozen=True)
class Verdict:
    """The format, and what each candidate costs: KL to full precision, nats a token."""

    kv_format: str
    kl: dict[str, float]

    @property
    def notice(self) -> str:
        """What a user should know, or nothing."""
        if self.kv_format != FALLBACK:
            return ""
        return (
            f"4-bit KV changes this model's answers (KL {min(self.kl.values()):.2g}), "
            "so its KV takes 8 bits; --kv-format kv4 insists on 4"
        )


def choose(model: LoadedModel) -> Verdict:
    """Measures the candidates on a passage of text; a model's verdict is remembered."""
    known, name = remembered("kv-formats"), _name(model)
    kl = known.get(name)
    if not isinstance(kl, dict) or kl.keys() != set(CANDIDATES):
        kl = known[name] = measure(model)
        remember("kv-formats", known)
    best = min(kl, key=lambda candidate: kl[candidate])
    return Verdict(best if kl[best] <= MAX_KL else FALLBACK, kl)


def resolved(model: LoadedModel, config: EngineConfig) -> tuple[EngineConfig, str]:
    """A configuration with a format in place of "auto", and what a user should know of it."""
    if config.kv_format != AUTO:
        return config, ""
    verdict = choose(model)
    return replace(config, kv_format=verdict.kv_format), verdict.notice


def measure(model: LoadedModel) -> dict[str, float]:
    """KL of each candidate to full precision, in nats a token.

    What a token sees quantized is what it would see while decoding.
    """
    text = textwrap.dedent(topics.topics[TOPIC])
    ids = model.tokenizer.encode(text, first=True)[: min(NUM_TOKENS, model.context_length - 1)]
    runners = [ModelRunner(model, EngineConfig(kv_format=name)) for name in ("fp", *CANDIDATES)]
    readers = [(runner, runner.pool.open()) for runner in runners]
    start = len(ids) - min(NUM_SCORED, len(ids) // 2)
    for runner, context in readers:
        runner.run([(context, ids[:start])])
    sums = dict.fromkeys(CANDIDATES, 0.0)
    for at in range(start, len(ids), CHUNK):
        chunk = ids[at : at + CHUNK]
        (p, truth), *others = (_next(runner, context, chunk) for runner, context in readers)
        for name, (_, log_p) in zip(CANDIDATES, others, strict=True):
            sums[name] += np.array(p * (truth - log_p)).sum().item()
    return {name: total / (len(ids) - start) for name, total in sums.items()}


def _next(runner: ModelRunner, context: Context, ids: list[int]) -> tuple[mx.array, mx.array]:
    """Probabilities (len(ids), vocab) after each of the next tokens, and their logarithms."""
    return distribution(runner.run([(context, ids)], all_rows=True)[1])


def _name(model: LoadedModel) -> str:
    try:
        return fingerprint(model.path)
    except StoreError:
        return str(model.path)
