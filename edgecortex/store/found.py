"""What a store tells of itself."""

from dataclasses import dataclass, field

from edgecortex.store.index import Totals


@dataclass
class Stats:
    """What the store holds and takes."""

    path: str
    nbytes: int
    max_bytes: int | None
    num_pinned: int
    num_quarantined: int
    kinds: list[Totals]


@dataclass
class Checked:
    """What `verify` found."""

    num_entries: int = 0
    nbytes: int = 0
    damaged: list[str] = field(default_factory=list)
