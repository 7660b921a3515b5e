"""Models: a catalogue of them, where they come from, and the folder they live in."""

from collections.abc import Callable
from pathlib import Path


def resolve(name: str, *, progress: Callable[[str, int, int], None] | None = None) -> Path:
    """The folder of a model, fetched first if it is not there yet."""
    raise NotImplementedError
