"""Where spans are cut."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecortex.errors import ConfigError
from edgecortex.kv import runs
from edgecortex.kv.format import KV4


@given(st.integers(0, 1000), st.integers(1, 600))
def test_a_share_ends_where_a_block_does_or_stays_inside_one(num_tokens: int, most: int) -> None:
    share = KV4.share(num_tokens, most)
    assert 1 <= share <= most
    before, after = KV4.num_sealed(num_tokens), KV4.num_sealed(num_tokens + share)
    at_an_end = KV4.num_sinks + after == num_tokens + share
    assert at_an_end or before == after


def test_a_block_is_cut_into_equal_parts() -> None:
    done, shares = 68, []
    while done < 132:
        shares.append(KV4.share(done, 30))
        done += shares[-1]
    assert shares == [22, 21, 21]


@pytest.mark.parametrize("block", [0, 32, 96, 192, 512])
def test_a_block_that_runs_cannot_be_made_of_is_refused(block: int) -> None:
    with pytest.raises(ConfigError, match="block must be 64, 128 or 256"):
        replace(KV4, block=block)


@given(st.integers(0, 300), st.sampled_from([64, 128, 256]))
def test_runs_are_of_few_lengths_and_hold_all(num_blocks: int, block: int) -> None:
    lengths = runs.sizes(num_blocks * block, block, slides=False)
    assert sum(lengths) == num_blocks * block
    assert all(length % block == 0 and length <= runs.MERGE_LIMIT for length in lengths)
    rest = [length for length in lengths if length < runs.LONG_RUN]
    assert rest == sorted(set(rest), reverse=True)
    assert all(length & (length - 1) == 0 for length in rest)
