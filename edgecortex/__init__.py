"""EdgeCortex: many LLM agents on one machine, on Apple's MLX."""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from edgecortex import blas, heap

if TYPE_CHECKING:
    from edgecortex.agent import Agent as Agent
    from edgecortex.config import EngineConfig as EngineConfig
    from edgecortex.config import SamplingParams as SamplingParams
    from edgecortex.engine import Engine as Engine
    from edgecortex.errors import EdgeCortexError as EdgeCortexError
    from edgecortex.generation import Generation as Generation

__version__ = "0.1.0"

_HOMES = {
    "Agent": "edgecortex.agent",
    "EdgeCortexError": "edgecortex.errors",
    "Engine": "edgecortex.engine",
    "EngineConfig": "edgecortex.config",
    "Generation": "edgecortex.generation",
    "SamplingParams": "edgecortex.config",
}
__all__ = list(_HOMES)

heap.share()
if (_status := blas.load()).problem:
    # Explicit, so that what a user sees is one line and not also the line that imported us.
    warnings.warn_explicit(_status.problem, RuntimeWarning, "edgecortex", 0)


def __getattr__(name: str) -> Any:
    """Public names load on first use, so that `--help` and `doctor` start at once."""
    if name not in _HOMES:
        raise AttributeError(f"module 'edgecortex' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
