"""What goes when the store has to fit, and what never does."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecortex.errors import StoreError
from edgecortex.store.cache import PersistentKVCache
from edgecortex.store.entry import Entry
from tests.store.blocks import (
    CHAIN,
    arrays_of,
    check_agreement,
    check_reads,
    entries_of,
    keys,
    on_disk,
    opened,
    stored,
    tokens,
)

Key = tuple[str, str]


def context(seed: int, num_windows: int = 0) -> list[Entry]:
    """Three blocks and a tail."""
    return entries_of(tokens(seed, 33), num_windows)


def size_of(store: PersistentKVCache, entries: list[Entry]) -> int:
    return sum(on_disk(store)[key] for key in keys(entries))


def left(store: PersistentKVCache, entries: list[Entry]) -> list[Entry]:
    there = on_disk(store)
    return [entry for entry in entries if (entry.id, entry.kind) in there]


def test_the_least_recently_used_context_goes_whole_before_any_of_the_next(
    tmp_path: Path,
) -> None:
    contexts = [context(seed) for seed in range(4)]
    with opened(tmp_path) as store:
        for entries in contexts:
            store.put(stored(entries))
        store.touch(contexts[0])
        order = [*contexts[1], *contexts[2], *contexts[3], *contexts[0]]
        for num_left in range(len(order), -1, -1):
            store.shrink(keep(store, num_left))
            assert len(on_disk(store)) == num_left
            for i, entries in enumerate([contexts[1], contexts[2], contexts[3], contexts[0]]):
                gone = min(max(len(order) - num_left - 4 * i, 0), 4)
                assert left(store, entries) == entries[: 4 - gone]
            check_agreement(store)


def test_what_goes_at_once_is_what_would_go_one_by_one(tmp_path: Path) -> None:
    contexts = [context(seed) for seed in range(4)]
    with opened(tmp_path) as store:
        for entries in contexts:
            store.put(stored(entries))
        going = [*contexts[0], *contexts[1][2:]]
        nbytes = size_of(store, going)
        assert store.shrink(store.index.nbytes() - nbytes) == nbytes
        assert [left(store, entries) for entries in contexts] == [
            [],
            contexts[1][:2],
            contexts[2],
            contexts[3],
        ]


def test_what_goes_while_more_is_written_is_written_again(tmp_path: Path) -> None:
    first, second = entries_of(tokens(1, 12)), entries_of(tokens(2, 12))

    def evict_and_make() -> dict[str, np.ndarray]:
        assert other.shrink(0) > 0
        return arrays_of(second[0])

    with opened(tmp_path) as store, opened(tmp_path) as other:
        store.put(stored(first))
        store.put([*stored(first), (second[0], evict_and_make)])
        check_reads(store, [*first, *second])
        check_agreement(store)


def test_what_cannot_be_removed_is_still_counted(tmp_path: Path) -> None:
    """Removing and forgetting are one step, so that nobody puts anything in between."""
    entries = entries_of(tokens(1, 12))
    with opened(tmp_path) as store:
        store.put(stored(entries))
        before = store.index.sizes()
        store.path_of(entries[0]).unlink()
        store.path_of(entries[0]).mkdir()
        with pytest.raises(StoreError, match="cannot write the store"):
            store.shrink(0)
        assert store.index.sizes() == before
        store.tidy()
        assert (on_disk(store), store.index.sizes()) == ({}, {})


def keep(store: PersistentKVCache, num_entries: int) -> int:
    """A limit under which one entry has to go, if there are more than so many."""
    return store.index.nbytes() - (len(on_disk(store)) > num_entries)


def test_what_was_put_again_or_matched_and_touched_is_used_last(tmp_path: Path) -> None:
    a, b, c = (context(seed) for seed in range(3))
    with opened(tmp_path) as store:
        for entries in (a, b, c, a):
            store.put(stored(entries))
        store.touch(store.match(CHAIN, tokens(1, 33), 0).entries)
        store.shrink(store.index.nbytes() - 1)
        assert (left(store, a), left(store, b), left(store, c)) == (a, b, c[:3])


def test_windows_can_go_and_then_their_blocks(tmp_path: Path) -> None:
    entries = context(1, num_windows=2)
    with opened(tmp_path) as store:
        store.put(stored(entries))
        assert store.shrink(0) > 0
        assert on_disk(store) == {}
        check_agreement(store)


def test_a_window_goes_though_more_is_built_on_its_block(tmp_path: Path) -> None:
    """It serves only contexts that end near it."""
    ids = tokens(1, 52)
    early, late = entries_of(ids[:20], 2, tail=False), entries_of(ids, 2, tail=False)
    with opened(tmp_path) as store:
        store.put(stored(early))
        store.put(stored(late))
        old = [entry for entry in early if entry.kind == "window"]
        store.shrink(store.index.nbytes() - size_of(store, old))
        assert left(store, early) == early[:2]
        assert left(store, late) == late


def test_a_store_keeps_to_its_budget_as_it_is_written(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.put(stored(context(0)))
        limit = 2 * store.index.nbytes()
    with opened(tmp_path, limit) as store:
        for seed in range(1, 8):
            store.put(stored(context(seed)))
            assert limit // 2 < sum(on_disk(store).values()) <= limit
            check_agreement(store)
            assert store.match(CHAIN, tokens(seed, 33), 0).num_tokens == 33


def test_with_everything_pinned_nothing_goes(tmp_path: Path) -> None:
    with opened(tmp_path, max_bytes=1) as store:
        for seed in range(3):
            store.index.pin(f"s{seed}", keys(context(seed, 1)))
            store.put(stored(context(seed, 1)))
        assert (store.shrink(), store.shrink(0), store.clear()) == (0, 0, 0)
        assert len(on_disk(store)) == store.stats().num_pinned == 15
        check_agreement(store)
        store.index.pin("s1", [], only=True)
        assert store.clear() > 0
        kept = [*context(0, 1), *context(2, 1)]
        assert set(on_disk(store)) == set(keys(kept))
        check_reads(store, kept)


def test_what_a_pinned_entry_builds_on_stays(tmp_path: Path) -> None:
    entries = context(1)
    with opened(tmp_path) as store:
        store.put(stored(entries))
        store.index.pin("s", keys(entries[2:3]))
        store.shrink(0)
        assert left(store, entries) == entries[:3]


SEEDS = st.integers(0, 5)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["put", "touch", "pin", "unpin"]), SEEDS),
        st.tuples(st.just("shrink"), st.integers(0, 9)),
    ),
    max_size=12,
)


def shared_context(seed: int) -> list[Entry]:
    """Contexts of which two at a time begin alike."""
    return entries_of(tokens(seed // 2, 20) + tokens(seed, 6 + seed), num_windows=seed % 3)


def apply(store: PersistentKVCache, what: str, number: int) -> None:
    entries = shared_context(number)
    if what == "put":
        store.put(stored(entries))
    elif what == "touch":
        store.touch(entries)
    elif what == "shrink":
        store.shrink(store.index.nbytes() * number // 10)
    else:
        store.index.pin(f"s{number}", keys(entries) if what == "pin" else [], only=True)


def check_chains(store: PersistentKVCache) -> None:
    """Whatever is there, all that it builds on is too."""
    there = on_disk(store)
    parents = {(e.id, e.kind): e.parent for n in range(6) for e in shared_context(n)}
    for key in there:
        assert parents[key] == CHAIN.root or (parents[key], "block") in there


@given(STEPS)
@settings(deadline=None, max_examples=60)
def test_no_step_loses_what_is_pinned_or_built_on_and_sizes_agree(
    steps: list[tuple[str, int]],
) -> None:
    pinned: dict[int, set[Key]] = {}
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder)) as store:
        for what, number in steps:
            before = on_disk(store)
            held = {key for some in pinned.values() for key in some} & set(before)
            apply(store, what, number)
            if what in ("pin", "unpin"):
                pinned[number] = set(keys(shared_context(number))) if what == "pin" else set()
            assert held <= set(on_disk(store))
            assert what == "shrink" or set(before) <= set(on_disk(store))
            check_chains(store)
            check_agreement(store)


@pytest.mark.parametrize("limit", [0, 1000, 3000])
def test_shrinking_tells_what_it_freed(tmp_path: Path, limit: int) -> None:
    with opened(tmp_path) as store:
        store.put(stored(context(1, 2)))
        before = sum(on_disk(store).values())
        freed = store.shrink(limit)
        assert freed == before - sum(on_disk(store).values()) > 0
        assert sum(on_disk(store).values()) <= limit
        assert store.shrink(limit) == 0
