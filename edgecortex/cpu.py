"""What MLX's CPU build is slow at."""

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import mlx.core as mx
import numpy as np

WORTH_WAITING = 1 << 15  # elements: from here on the wait for `x` costs less than it saves
WORTH_SHARING = 1 << 18  # elements of a matrix: from here on two streams are faster than one
WORTH_HELP = 1 << 20  # scores: from here on a second core is worth the threads' taking turns
CACHED = 1 << 18  # scores that a core goes through at a time, while its cache holds them
_helper = ThreadPoolExecutor(1, "edgecortex-cpu")


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


def aside(product: Callable[[], tuple[mx.array, ...]]) -> tuple[mx.array, ...]:
    """A product that is worked out beside what else is wanted: on a CPU, by another core."""
    if not on_cpu():
        return product()
    with mx.stream(_streams.second):
        found = product()
    mx.async_eval(*found)
    return found


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


class Weights(NamedTuple):
    """Of scores (…, n, L): 2 ** (scores - top) of that shape, and (…, n, 1) each their maximum
    `top` and the sum `total` of the powers."""

    powers: mx.array
    top: mx.array
    total: mx.array


def weights(scores: mx.array, at_least: mx.array | None = None) -> Weights:
    """What softmax makes of scores before it divides. `scores` must be a fresh result that nobody
    else reads: it may be overwritten. `at_least` (…, n, 1) bounds the maximum from below.

    On a CPU many scores are computed at once, in place: MLX goes through all of them once for
    each of the steps, on one core; here rows go through all steps while a cache holds them, on
    two cores.
    """
    if scores.size < WORTH_WAITING or scores.dtype != mx.float32 or not on_cpu():
        top = scores.max(axis=-1, keepdims=True)
        top = top if at_least is None else mx.maximum(top, at_least)
        powers = exp2(scores - top)
        return Weights(powers, top, powers.sum(axis=-1, keepdims=True))
    mx.eval(scores)
    shape = (*scores.shape[:-1], 1)
    rows = np.array(scores, copy=False).reshape(-1, scores.shape[-1])
    least = None if at_least is None else np.array(at_least).reshape(-1, 1)
    tops, totals = np.empty((2, len(rows), 1), np.float32)
    work = partial(_weigh, rows, least, tops, totals)
    if scores.size < WORTH_HELP:
        work(0, len(rows))
    else:
        rest = _helper.submit(work, len(rows) // 2, len(rows))
        work(0, len(rows) // 2)
        rest.result()
    return Weights(scores, mx.array(tops).reshape(shape), mx.array(totals).reshape(shape))


def distribution(logits: mx.array) -> tuple[mx.array, mx.array]:
    """Probabilities of logits (L, vocab), and their natural logarithms."""
    powers, top, total = weights(logits.astype(mx.float32) * math.log2(math.e))
    return powers / total, logits - math.log(2) * (top + mx.log2(total))


def _weigh(
    rows: np.ndarray,
    least: np.ndarray | None,
    top: np.ndarray,
    total: np.ndarray,
    start: int,
    stop: int,
) -> None:
    """Makes powers of the rows from `start` to `stop`, some at a time."""
    size = max(1, CACHED // rows.shape[1])
    for i in range(start, stop, size):
        at = slice(i, min(i + size, stop))
        np.max(rows[at], axis=1, keepdims=True, out=top[at])
        if least is not None:
            np.maximum(top[at], least[at], out=top[at])
        np.subtract(rows[at], top[at], out=rows[at])
        np.exp2(rows[at], out=rows[at])
        np.sum(rows[at], axis=1, keepdims=True, out=total[at])
