"""What MLX's CPU build is slow at."""

import threading
from collections.abc import Callable

import mlx.core as mx
import numpy as np

WORTH_WAITING = 1 << 13  # elements: from here on the wait for `x` costs less than it saves
WORTH_SHARING = 1 << 18  # elements of a matrix: from here on two streams are faster than one


class _Streams(threading.local):
    """A thread's second CPU stream: streams belong to threads."""

    def __init__(self) -> None:
        self.second = mx.new_stream(mx.cpu)


_streams = _Streams()


def on_cpu() -> bool:
    """Whether it is the CPU that computes."""
    return mx.default_device() == mx.Device(mx.cpu)


def by_halves(product: Callable[[slice], mx.array], length: int, size: int) -> mx.array:
    """`product` of all `length` matrices along a leading axis, of `size` elements together.

    MLX's CPU build works on one core per stream: large ones are shared between two.
    """
    if length < 2 or size < WORTH_SHARING or not on_cpu():
        return product(slice(length))
    half = length // 2
    first = product(slice(half))
    with mx.stream(_streams.second):
        rest = product(slice(half, length))
    return mx.concatenate([first, rest])


def exp2(x: mx.array) -> mx.array:
    """2 ** x elementwise. `x` must be a fresh result that nobody else reads: it may be
    overwritten.

    On a CPU numpy's vector instructions are thirty times as fast as MLX's scalar code, so a
    large array is computed at once, in place.
    """
    if x.size < WORTH_WAITING or x.dtype != mx.float32 or not on_cpu():
        return mx.power(2, x)
    mx.eval(x)
    view = np.array(x, copy=False)
    np.exp2(view, out=view)
    return x
