"""Settings of an engine and of one answer."""

from dataclasses import dataclass
from pathlib import Path

from edgecortex.errors import ConfigError
from edgecortex.kv.format import AUTO, FORMATS


def _check(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise ConfigError(f"{name} must be {expected}, got {got!r}")


@dataclass(frozen=True)
class SamplingParams:
    """How one answer is sampled.

    `temperature` 0 is greedy. `top_p` keeps the smallest set of tokens with that probability.
    `seed` (32 bits) makes a sampled answer repeatable, whoever else is in the batch; None
    draws one.
    `stop` strings end the answer and are not part of it.

    Raises:
        ConfigError: a value out of its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(0 <= self.temperature <= 100, "temperature", "between 0 and 100", self.temperature)
        _check(0 < self.top_p <= 1, "top_p", "above 0 and at most 1", self.top_p)
        _check(self.max_tokens >= 1, "max_tokens", "at least 1", self.max_tokens)
        in_range = self.seed is None or 0 <= self.seed < 1 << 32
        _check(in_range, "seed", "between 0 and 4,294,967,295", self.seed)
        _check(all(self.stop), "stop", "strings of at least one character", self.stop)


@dataclass(frozen=True)
class EngineConfig:
    """How an engine runs.

    `kv_format` names how KV is stored ("auto": as measured best for the model),
    `kv_budget_bytes` bounds it (None: half of the device's memory), `context_length` caps the
    model's own limit. While others decode, the share of a prefill in a step is kept so small
    that a step takes at most `max_gap` times as long as without; alone it takes `prefill_chunk`
    tokens a step. Beside side agents the others keep `river_share` of the speed that they have
    alone.

    With `use_store` KV is kept on disk too, in `store_path` (None: the usual folder), up to
    `store_max_bytes` (None: without end) beside what sessions hold. With `share_prefixes` a prompt
    may begin with what other agents have in memory.

    Raises:
        ConfigError: a value out of its range.
    """

    kv_format: str = AUTO
    kv_budget_bytes: int | None = None
    context_length: int | None = None
    prefill_chunk: int = 512
    max_gap: float = 2.5
    river_share: float = 0.8
    max_batch: int = 256
    share_prefixes: bool = True
    use_store: bool = True
    store_path: Path | None = None
    store_max_bytes: int | None = 8 << 30

    def __post_init__(self) -> None:
        names = [AUTO, *FORMATS]
        _check(self.kv_format in names, "kv_format", f"one of {names}", self.kv_format)
        for name, least in (
            ("kv_budget_bytes", 1),
            ("context_length", 16),
            ("prefill_chunk", 1),
            ("max_batch", 1),
            ("store_max_bytes", 0),
        ):
            value = getattr(self, name)
            _check(value is None or value >= least, name, f"at least {least}", value)
        _check(self.max_gap > 1, "max_gap", "above 1", self.max_gap)
        in_range = 0 < self.river_share <= 1
        _check(in_range, "river_share", "above 0 and at most 1", self.river_share)
