"""Whether a pool's books agree with what is held."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgecortex.kv.context import Context
from edgecortex.kv.segment import KVSegment

if TYPE_CHECKING:
    from edgecortex.kv.pool import BlockPool


def check(
    pool: "BlockPool",
    by_slot: Sequence[Context | None],
    segment_nbytes: Mapping[KVSegment, int],
) -> None:
    """Counts everything anew from the arrays themselves.

    Raises:
        AssertionError: the books do not agree with what is held, or that is over the budget.
    """
    contexts = pool.contexts()
    refs: dict[KVSegment, int] = {}
    for context in contexts:
        for segment in context.segments:
            refs[segment] = refs.get(segment, 0) + 1
    slab = sum(cache.nbytes for cache in pool.caches)
    held = sum(segment.nbytes for segment in refs)
    _agree("references", refs, {s: s.refs for s in segment_nbytes})
    _agree("slots", [by_slot[c.slot] is c for c in contexts], [True] * len(contexts))
    if slab:
        _agree("slab bytes", len(by_slot) * pool.row_nbytes, slab)
        _agree("used bytes", pool.used_bytes, slab + held)
    _agree("whether the budget holds", pool.free_bytes >= 0, True)


def idle_bytes(
    pool: "BlockPool",
    busy: Sequence[Context],
    by_slot: Sequence[Context | None],
    segment_nbytes: Mapping[KVSegment, int],
) -> int:
    """What would be free besides if all contexts but the `busy` ones were closed."""
    held = {segment for context in busy for segment in context.segments}
    alone = sum(n for segment, n in segment_nbytes.items() if segment not in held)
    rows = len(by_slot)
    for num_left in range(len(pool.contexts()) - 1, len(busy) - 1, -1):
        rows = num_left if num_left <= rows // 2 else rows  # as `close` repacks
    return alone + (len(by_slot) - rows) * pool.row_nbytes


def _agree(what: str, expected: object, got: object) -> None:
    if expected != got:
        raise AssertionError(f"KV pool: {what} disagree: expected {expected}, got {got}")
