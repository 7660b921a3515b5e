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
def topics_once() -> dict[str, str]:
    """The same by topic, without the paragraphs that have come before: topics quote each other,
    and what a text says again is read off from where it said it first."""
    seen: set[str] = set()
    found = {}
    for name, text in sorted(topics.topics.items()):
        parts = textwrap.dedent(text).split("\n\n")
        new = [part for part in parts if " ".join(part.split()) not in seen]
        seen.update(" ".join(part.split()) for part in parts)
        found[name] = "\n\n".join(new)
    return found


SECTION = "\f"  # between parts of a text that are about different things


@cache
def english_once() -> str:
    """All of `topics_once`, a section each."""
    return SECTION.join(topics_once().values())


def passages(tokenizer: Tokenizer, count: int, length: int, text: str) -> list[list[int]]:
    """`count` runs of `length` tokens, spread evenly over a text.

    Raises:
        EdgeCortexError: it has fewer tokens than one.
    """
    ids = tokenizer.encode(text.replace(SECTION, "\n\n"), first=True)
    if length > len(ids):
        raise EdgeCortexError(f"the text has {len(ids):,} tokens; {length:,} are needed")
    starts = [i * (len(ids) - length) // max(1, count - 1) for i in range(count)]
    return [ids[start : start + length] for start in starts]


def passages_within(tokenizer: Tokenizer, count: int, length: int, text: str) -> list[list[int]]:
    """`count` runs of `length` tokens spread over a text, each in one section, none twice.

    Raises:
        EdgeCortexError: its sections have not so many.
    """
    sections = [tokenizer.encode(part, first=True) for part in text.split(SECTION)]
    runs = [
        ids[start : start + length]
        for ids in sections
        for start in range(0, len(ids) - length + 1, length)
    ]
    if len(runs) < count:
        raise EdgeCortexError(
            f"the text has {len(runs):,} runs of {length:,} tokens; {count:,} are needed: "
            "take a longer text or fewer passages"
        )
    return [runs[i * len(runs) // count] for i in range(count)]


def prompts(tokenizer: Tokenizer, lengths: Sequence[int]) -> list[list[int]]:
    """Token ids of passages of these lengths, each from a place of its own."""
    ids = tokenizer.encode(english(), first=False)
    starts = [i * TOKENS_APART for i in range(len(lengths))]
    return [ids[start : start + n] for start, n in zip(starts, lengths, strict=True)]
