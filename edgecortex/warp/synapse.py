"""`Synapse`: a few landmarks of one context, as a segment that any number of others share."""

from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from edgecortex.errors import ConfigError
from edgecortex.kv.context import Context
from edgecortex.kv.pool import BlockPool
from edgecortex.kv.segment import KVSegment, LayerKV, rotate
from edgecortex.runner import ModelRunner
from edgecortex.warp.landmarks import RULES, Landmarks, View

NUM_LANDMARKS = 64
NUM_QUERIES = 128  # newest tokens whose queries say what matters


@dataclass
class Synapse:
    """Landmarks of a context, collected from what its own attention has seen, and kept until it
    has gone on by `refresh` tokens (Warp-Cortex, section 3.3).

    Args:
        num_landmarks: k, or None for one in 32 tokens and at least 64.

    Raises:
        ConfigError: a value out of its range.
    """

    rule: str = "matched"
    num_landmarks: int | None = NUM_LANDMARKS
    refresh: int = 256
    _segment: KVSegment | None = None

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ConfigError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        if self.num_landmarks is not None and self.num_landmarks < 16:
            raise ConfigError(f"num_landmarks must be at least 16, got {self.num_landmarks!r}")
        if self.refresh < 1:
            raise ConfigError(f"refresh must be at least 1, got {self.refresh!r}")

    def segment(self, runner: ModelRunner, context: Context) -> KVSegment:
        """The landmarks of a context that is traced, as of at most `refresh` tokens ago."""
        old = self._segment
        if old is None or not 0 <= context.position - old.stop < self.refresh:
            self._segment = collect(runner, context, self.rule, self.budget(context))
        assert self._segment
        return self._segment

    def forget(self, position: int = 0) -> None:
        """Lets the landmarks go if they reach past `position`: from there on the context is
        another one now."""
        if self._segment and self._segment.stop > position:
            self._segment = None

    def budget(self, context: Context) -> int:
        """How many landmarks a context gets."""
        return self.num_landmarks or max(NUM_LANDMARKS, context.num_own // 32)


def collect(runner: ModelRunner, context: Context, rule: str, k: int) -> KVSegment:
    """`k` landmarks of every layer and KV head, at their own positions; a layer with a window
    has at most what that holds."""
    layers, k = [], min(k, context.num_own)
    for layer in range(len(runner.pool.caches)):
        view = view_of(runner, context, layer)
        layers.append(sealed(runner.pool, layer, view, mark(view, rule, k)))
    segment = KVSegment(layers, context.position - k, k)
    mx.eval(segment.arrays())
    return segment


def view_of(runner: ModelRunner, context: Context, layer: int) -> View:
    """What a rule sees of a layer. Queries are turned to the position of the next token: they
    stand for those that are to come, and ask from there."""
    assert context.trace
    cache, format = runner.pool.caches[layer], runner.pool.format
    keys, values, _ = cache.read(context, mx.float32)
    traced = context.trace.queries[layer].all().astype(mx.float32)
    heads, groups, length, dim = traced.shape
    queries = traced.reshape(heads * groups, length, dim)
    if runner.keys_turn:
        plain = rotate(queries) if format.rotate_keys else queries
        plain = runner.model.turned(layer, plain, mx.arange(length, 0, -1, dtype=mx.int32))
        queries = rotate(plain) if format.rotate_keys else plain
    queries = queries.reshape(heads, groups * length, dim)
    return View(*(np.array(x) for x in (keys, values, queries)))


def mark(view: View, rule: str, k: int) -> Landmarks:
    """A rule's `k` landmarks; all tokens where there are no more."""
    if view.num_tokens > k:
        return RULES[rule](view, k)
    return Landmarks(np.tile(np.arange(view.num_tokens), (len(view.keys), 1)), view.values)


def sealed(pool: BlockPool, layer_number: int, view: View, marks: Landmarks) -> LayerKV:
    """Landmarks as a layer of a segment."""
    keys = np.take_along_axis(view.keys, marks.kept[..., None], axis=1)
    dtype = pool.caches[layer_number].arrays()[0].dtype
    k, v = (mx.array(x).astype(dtype) for x in (keys, marks.values))
    layer = LayerKV.seal(k, v, replace(pool.format, bits=None))
    if marks.bias is not None:
        layer.bias = mx.array(marks.bias)
    return layer
