"""What a store tells of itself, and what follows from it."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from edgecortex.store.index import Key, Totals

if TYPE_CHECKING:
    from edgecortex.store.sessions import Session


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


def without(session: "Session", gone: Collection[Key]) -> "Session":
    """A session that holds only the blocks before the first of its KV that is gone; nothing where
    a window needs more than that."""
    blocks = session.chain.blocks(session.token_ids[: session.num_kv_tokens])
    num_there = next((i for i, b in enumerate(blocks) if (b.id, b.kind) in gone), len(blocks))
    stop = 0 if session.num_windows else session.chain.stop(num_there)
    return replace(session, num_kv_tokens=stop)
