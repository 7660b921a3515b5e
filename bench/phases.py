"""Where the time to a restored context's first token goes: the engine's own calls, timed."""

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

import mlx.core as mx
import numpy as np

import edgecortex.core
import edgecortex.store.cache
from edgecortex.archive import Archive
from edgecortex.core import EngineCore
from edgecortex.kv.blocks import Loading
from edgecortex.store import files

# One after the other on the engine's thread; `files` covers those below.
STAGES = ("match", "allocate", "files", "attach", "first_step")
# On all reading threads together, in seconds of threads; `read` covers `open`.
IN_FILES = ("open", "read", "verify", "copy")


class Phases:
    """Times a core's calls from here on, and keeps the logits (1, vocab) that it samples from.

    Replaces functions in this process for good: for processes that end with the measurement.
    """

    def __init__(self, core: EngineCore) -> None:
        self._taken: list[tuple[str, float]] = []
        self._logits: list[mx.array] = []
        archive = core.contexts.archive
        assert archive is not None
        self._watch_archive(archive)
        self._watch(edgecortex.core, "sample", "first_step", self._logits.append)
        self._watch(core.runner, "run", "first_step")
        self._watch(core.pool, "restore", "attach")

    def _watch_archive(self, archive: Archive) -> None:
        self._watch(archive, "match", "match")
        self._watch(archive.codec, "loading", "allocate")
        self._watch(archive.store, "read_ahead", "files")
        self._watch(archive.store, "read", "files")
        self._watch(files, "opened", "open")
        self._watch(files, "read_into_buffer", "read")
        self._watch(edgecortex.store.cache, "decode", "verify")
        for name in ("take_block", "take_window", "take_tail"):
            self._watch(Loading, name, "copy")
        for name in ("segments", "layer_rows"):
            self._watch(Loading, name, "attach")

    def take(self) -> dict[str, float]:
        """Seconds per phase since the last call, in the order of the stages."""
        taken, self._taken = self._taken, []
        names = (*STAGES, *IN_FILES)
        return {name: sum(seconds for phase, seconds in taken if phase == name) for name in names}

    def logits(self) -> np.ndarray:
        """What was sampled from so far: (tokens, vocab)."""
        return np.stack([np.array(row[0].astype(mx.float32)) for row in self._logits])

    def _watch(
        self, owner: Any, name: str, phase: str, keep: Callable[[Any], object] | None = None
    ) -> None:
        inner = getattr(owner, name)

        @wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if keep:
                keep(args[0])
            start = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self._taken.append((phase, time.perf_counter() - start))

        setattr(owner, name, timed)
