"""Where spans are cut."""

from hypothesis import given
from hypothesis import strategies as st

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
