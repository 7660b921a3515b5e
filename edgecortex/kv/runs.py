"""How a context holds what it has sealed: in few runs, and of lengths that many contexts share.

Where layers slide a window all of it is one run; elsewhere it is long runs, and what is left over
in powers of two.
"""

from collections.abc import Iterable

MERGE_LIMIT = 8192  # tokens; a longer run would be copied too often for the call it saves
LONG_RUN = 512  # tokens; from here on a run is worth a call of its own


def sizes(num_tokens: int, block: int, slides: bool) -> list[int]:
    """The lengths of the runs of that many sealed tokens, a multiple of `block`."""
    if slides:
        return [num_tokens] if num_tokens else []
    long = num_tokens // LONG_RUN * LONG_RUN
    lengths = [min(MERGE_LIMIT, long - i) for i in range(0, long, MERGE_LIMIT)]
    rest, size = num_tokens - long, LONG_RUN // 2
    while rest:
        lengths += [size] if rest >= size else []
        rest, size = rest - (size if rest >= size else 0), max(size // 2, block)
    return lengths


def num_joined(lengths: Iterable[int], num_tokens: int, slides: bool) -> int:
    """How many runs of these lengths, the newest first, are joined with `num_tokens` more."""
    count = 0
    for length in lengths:
        if length + num_tokens > MERGE_LIMIT:
            break
        if length >= LONG_RUN and not slides:
            return count + (num_tokens >= LONG_RUN)
        count, num_tokens = count + 1, num_tokens + length
    return count
