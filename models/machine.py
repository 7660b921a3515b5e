"""What decides whether a model fits."""

import os
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """`memory_bytes` of the device that runs models; `fp32`: weights are dequantized at load."""

    memory_bytes: int
    fp32: bool


def this_machine() -> Machine:
    """What MLX computes on here."""
    from edgecortex.models.adapter import compute_dtype

    return Machine(memory_bytes(), compute_dtype() is not None)


def memory_bytes() -> int:
    """A CUDA device has memory of its own; a CPU's and a Mac's is the machine's."""
    with suppress(ImportError):
        import mlx.core as mx

        if own := mx.device_info().get("total_memory"):
            return int(own)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
