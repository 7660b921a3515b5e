"""Real English text that every Python brings along, for prompts and perplexity."""

import textwrap
from collections.abc import Sequence
from functools import cache
from pydoc_data import topics

from edgecortex.errors import EdgeCortexError
from edgecortex.models.adapter import Tokenizer

TOKENS_APART = 700  # between the places where two prompts begin


@cache
def english() -> str:
    """The language reference's topics, as one text."""
    return "\n\n".join(textwrap.dedent(text) for _, text in sorted(topics.topics.items()))


@cache
def english_once() -> str:
    """The same without the paragraphs that have come before: topics quote each other, and what
    a text says again is read off from where it said it first."""
    paragraphs = {" ".join(part.split()): part for part in reversed(english().split("\n\n"))}
    return "\n\n".join(reversed(paragraphs.values()))


def passages(tokenizer: Tokenizer, count: int, length: int, text: str) -> list[list[int]]:
    """`count` runs of `length` tokens, spread evenly over a text.

    Raises:
        EdgeCortexError: it has fewer tokens than one.
    """
    ids = tokenizer.encode(text, first=True)
    if length > len(ids):
        raise EdgeCortexError(f"the text has {len(ids):,} tokens; {length:,} are needed")
    starts = [i * (len(ids) - length) // max(1, count - 1) for i in range(count)]
    return [ids[start : start + length] for start in starts]


def prompts(tokenizer: Tokenizer, lengths: Sequence[int]) -> list[list[int]]:
    """Token ids of passages of these lengths, each from a place of its own."""
    ids = tokenizer.encode(english(), first=False)
    starts = [i * TOKENS_APART for i in range(len(lengths))]
    return [ids[start : start + n] for start, n in zip(starts, lengths, strict=True)]
