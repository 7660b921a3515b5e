"""What MLX's CPU build is slow at."""

import mlx.core as mx
import numpy as np

WORTH_WAITING = 1 << 15  # elements: from here on the wait for `x` costs less than it saves


def exp2(x: mx.array) -> mx.array:
    """2 ** x elementwise. `x` must be a fresh result that nobody else reads: it may be
    overwritten.

    On a CPU numpy's vector instructions are thirty times as fast as MLX's scalar code, so a
    large array is computed at once, in place.
    """
    if x.size < WORTH_WAITING or x.dtype != mx.float32 or mx.default_device() != mx.Device(mx.cpu):
        return mx.power(2, x)
    mx.eval(x)
    view = np.array(x, copy=False)
    np.exp2(view, out=view)
    return x
