"""What decides whether a model fits."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """`memory_bytes` of the device that runs models; `fp32`: weights are dequantized at load."""

    memory_bytes: int
    fp32: bool


def this_machine() -> Machine:
    """The memory of a CUDA device is its own; a CPU's and a Mac's is the machine's."""
    import mlx.core as mx

    from edgecortex.models.adapter import compute_dtype

    own = mx.device_info().get("total_memory", 0)
    shared = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(int(own) or shared, compute_dtype() is not None)
