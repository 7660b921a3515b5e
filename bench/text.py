"""Real English text that every Python brings along, for prompts and perplexity."""

import textwrap
from collections.abc import Sequence
from functools import cache
from pydoc_data import topics

from edgecortex.models.adapter import Tokenizer

TOKENS_APART = 700  # between the places where two prompts begin


@cache
def english() -> str:
    """The language reference's topics, as one text."""
    return "\n\n".join(textwrap.dedent(text) for _, text in sorted(topics.topics.items()))


def prompts(tokenizer: Tokenizer, lengths: Sequence[int]) -> list[list[int]]:
    """Token ids of passages of these lengths, each from a place of its own."""
    ids = tokenizer.encode(english(), first=False)
    starts = [i * TOKENS_APART for i in range(len(lengths))]
    return [ids[start : start + n] for start, n in zip(starts, lengths, strict=True)]
