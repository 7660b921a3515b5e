"""Names of blocks, and what a prompt matches."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from edgecortex.store.cache import Match, PersistentKVCache
from edgecortex.store.entry import Chain, Entry
from tests.store.blocks import check_agreement, check_reads, entries_of, on_disk, opened, stored

FORMAT = {"num_sinks": 4, "block": 8, "bits": 4}
IDS = st.lists(st.integers(0, 200_000), max_size=60)
Key = tuple[str, str]


def ids_of(token_ids: Sequence[int], fingerprint: str = "a", **changed: Any) -> list[str]:
    """The ids of the blocks and the tail of these tokens."""
    chain = Chain.of(fingerprint, {**FORMAT, **changed})
    return [entry.id for entry in entries_of(token_ids, chain=chain)]


@given(IDS, IDS, IDS)
def test_equal_prefixes_have_equal_ids(prefix: list[int], a: list[int], b: list[int]) -> None:
    num_whole = max(0, len(prefix) - 4) // 8
    assert ids_of(prefix + a)[:num_whole] == ids_of(prefix + b)[:num_whole]
    assert len(ids_of(prefix + a)[:num_whole]) == num_whole


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.data())
def test_another_token_changes_all_ids_from_there_on(ids: list[int], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(ids) - 1))
    changed = [*ids[:at], ids[at] + data.draw(st.integers(1, 9)), *ids[at + 1 :]]
    before, after = ids_of(ids), ids_of(changed)
    first = max(0, at - 4) // 8
    assert len(before) == len(after) > first
    assert before[:first] == after[:first]
    assert not set(before[first:]) & set(after)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60))
def test_another_model_or_format_changes_all_ids(ids: list[int]) -> None:
    chains = [
        ids_of(ids),
        ids_of(ids, fingerprint="b"),
        ids_of(ids, bits=8),
        ids_of(ids, dtypes=["float16"]),
    ]
    assert len({id for chain in chains for id in chain}) == sum(map(len, chains))


@given(st.lists(st.integers(0, 9), min_size=13, max_size=60))
def test_sinks_and_blocks_of_another_size_change_all_ids(ids: list[int]) -> None:
    assert not set(ids_of(ids)) & {*ids_of(ids, block=16), *ids_of(ids, num_sinks=0)}


@given(IDS)
def test_blocks_and_tail_hold_just_the_tokens_in_order(ids: list[int]) -> None:
    entries = entries_of(ids, chain=Chain.of("a", FORMAT))
    assert [i for entry in entries for i in entry.token_ids] == ids
    lengths = [len(entry.token_ids) for entry in entries if entry.kind == "block"]
    assert lengths == ([12] + [8] * (len(lengths) - 1) if lengths else [])


SMALL = Chain.of("small", {"num_sinks": 1, "block": 2})
SMALL_IDS = st.lists(st.integers(0, 1), min_size=1, max_size=9)
STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "put without tail", "evict", "match"]), SMALL_IDS),
    max_size=8,
)


@dataclass
class Reference:
    """What is stored, as runs of tokens from the beginning; no ids but to ask what is there."""

    num_windows: int
    named: dict[Key, tuple[int, ...]] = field(default_factory=dict)

    def put(self, entries: Sequence[Entry], ids: Sequence[int]) -> None:
        stop = 0
        for entry in entries:
            if entry.kind != "window":
                stop += len(entry.token_ids)
                self.named[entry.id, entry.kind] = tuple(ids[:stop])
                self.named[entry.id, "window"] = tuple(ids[:stop])

    def match(self, there: set[Key], ids: tuple[int, ...]) -> int:
        """How many tokens of `ids` the best of all prefixes covers."""
        held = {(kind, self.named[id, kind]) for id, kind in there}
        found = [0]
        for n in range(len(ids) // 2 + 1):
            stops = [1 + 2 * i for i in range(1, n + 1)]
            needed = {("block", ids[:stop]) for stop in stops}
            needed |= {("window", ids[:stop]) for stop in stops[max(0, n - self.num_windows) :]}
            if not self.num_windows:
                needed = {(kind, run) for kind, run in needed if kind == "block"}
            if needed <= held and (not stops or stops[-1] <= len(ids)):
                found.append(self._with_tail(held, ids, stops[-1] if stops else 0))
        return max(found)

    def _with_tail(self, held: set[tuple[str, tuple[int, ...]]], ids: tuple, start: int) -> int:
        """The most that any tail adds to the first `start` tokens."""
        most = start
        for kind, run in held:
            if kind == "tail" and run[:start] == ids[:start] and self._follows(run, start):
                pairs = enumerate(zip(run, ids, strict=False))
                most = max(
                    most, next((i for i, (a, b) in pairs if a != b), min(len(run), len(ids)))
                )
        return most

    def _follows(self, run: tuple, start: int) -> bool:
        """Whether a tail's blocks end at `start`."""
        num_blocks = max(0, len(run) - 1) // 2
        return start == (1 + 2 * num_blocks if num_blocks else 0)


def check_match(store: PersistentKVCache, match: Match, ids: list[int], num_windows: int) -> None:
    """It is of these tokens, complete, and can be read."""
    length = sum(len(entry.token_ids) for entry in match.blocks)
    assert [i for entry in match.blocks for i in entry.token_ids] == ids[:length]
    newest = list(match.blocks)[max(0, len(match.blocks) - num_windows) :] if num_windows else []
    assert [window.id for window in match.windows] == [block.id for block in newest]
    used = match.num_tokens - length
    assert (list(match.tail.token_ids[:used]) if match.tail else []) == ids[length:][:used]
    assert (used > 0) == (match.tail is not None)
    check_reads(store, match.entries)


@given(STEPS, st.integers(0, 2))
@settings(deadline=None, max_examples=60)
def test_a_match_is_the_longest_stored_prefix(
    steps: list[tuple[str, list[int]]], num_windows: int
) -> None:
    reference = Reference(num_windows)
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder)) as store:
        for what, ids in [*steps, ("match", [0, 1] * 4)]:
            if what.startswith("put"):
                entries = entries_of(ids, num_windows, what == "put", SMALL)
                store.put(stored(entries))
                reference.put(entries, ids)
            elif what == "evict":
                store.shrink(store.index.nbytes() * sum(ids) // 9)
            match = store.match(SMALL, ids, num_windows)
            assert match.num_tokens == reference.match(set(on_disk(store)), tuple(ids))
            check_match(store, match, ids, num_windows)
            check_agreement(store)


def test_a_tail_may_match_in_part_and_go_on_in_another_way(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.put(stored(entries_of(range(9), chain=Chain.of("a", FORMAT))))
        match = store.match(Chain.of("a", FORMAT), [0, 1, 2, 7, 8], 0)
        assert match.num_tokens == 3
        assert match.tail is not None
        assert match.tail.token_ids == tuple(range(9))


def test_windows_that_are_gone_make_a_match_as_short_as_those_that_are_there(
    tmp_path: Path,
) -> None:
    chain = Chain.of("a", FORMAT)
    with opened(tmp_path) as store:
        for length in (20, 44):  # two blocks, then five
            store.put(stored(entries_of(range(length), num_windows=2, chain=chain)))
        blocks = chain.blocks(range(44))
        for last, expected in ((5, 44), (4, 20)):
            match = store.match(chain, range(44), 2)
            assert match.num_tokens == expected
            store.index.remove([(blocks[last - 1].id, "window")])
