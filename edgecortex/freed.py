"""Memory that was freed, but that the process still holds."""

import ctypes
import sys

import mlx.core as mx

# glibc's: elsewhere free memory goes back by itself, or is not to be had.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def give_back() -> None:
    """Gives it back to the system: the buffers that MLX keeps for later arrays, and on Linux the
    free pages of the heap. Takes some milliseconds."""
    mx.clear_cache()
    if _trim:
        _trim(0)
