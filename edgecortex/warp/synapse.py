"""`Synapse`: a few landmarks of one context, as a segment that any number of others share."""

from dataclasses import dataclass, field, replace

import mlx.core as mx
import numpy as np

from edgecortex.errors import ConfigError
from edgecortex.kv.context import Context, Trace
from edgecortex.kv.pool import BlockPool
from edgecortex.kv.segment import KVSegment, LayerKV, rotate
from edgecortex.runner import ModelRunner
from edgecortex.warp import injection
from edgecortex.warp.landmarks import RULES, Landmarks, View

NUM_LANDMARKS = 64
NUM_QUERIES = 128  # newest tokens whose queries say what matters
RIVER_STATES = 1024  # of a River's newest tokens whose hidden states the gate compares


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
    _layers: list[LayerKV] = field(default_factory=list)  # of the next one
    _read: tuple[int, int] = (0, 0)  # how many landmarks those have, up to which position

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ConfigError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        if self.num_landmarks is not None and self.num_landmarks < 16:
            raise ConfigError(f"num_landmarks must be at least 16, got {self.num_landmarks!r}")
        if self.refresh < 1:
            raise ConfigError(f"refresh must be at least 1, got {self.refresh!r}")

    def segment(self, runner: ModelRunner, context: Context) -> KVSegment:
        """The landmarks of a context that is traced, as of at most `refresh` tokens ago."""
        while not self.grow(runner, context):
            pass
        assert self._segment
        return self._segment

    def grow(self, runner: ModelRunner, context: Context) -> bool:
        """Collects those of one more layer, if there are none that will do. Returns whether there
        are now. The context may go on meanwhile."""
        old, position = self._segment, context.position
        if old and 0 <= position - old.stop < self.refresh:
            return True
        if not self._layers or position < self._read[1]:
            self._layers, self._read = [], (min(self.budget(context), context.num_own), 0)
        k = self._read[0]
        self._layers.append(collect_layer(runner, context, len(self._layers), self.rule, k))
        self._read = k, position
        if len(self._layers) < len(runner.pool.caches):
            return False
        self._segment, self._layers = KVSegment(self._layers, position - k, k), []
        return True

    def stop(self) -> None:
        """Lets go of what is collected in part."""
        self._layers = []

    def forget(self, position: int = 0) -> None:
        """Lets landmarks go that reach past `position`: from there on the context is another one
        now."""
        if self._segment and self._segment.stop > position:
            self._segment = None
        if self._read[1] > position:
            self._layers = []

    def budget(self, context: Context) -> int:
        """How many landmarks a context gets."""
        return self.num_landmarks or max(NUM_LANDMARKS, context.num_own // 32)


def collect(runner: ModelRunner, context: Context, rule: str, k: int) -> KVSegment:
    """`k` landmarks of every layer and KV head, at their own positions; a layer with a window
    has at most what that holds."""
    k = min(k, context.num_own)
    numbers = range(len(runner.pool.caches))
    layers = [collect_layer(runner, context, number, rule, k) for number in numbers]
    return KVSegment(layers, context.position - k, k)


def collect_layer(runner: ModelRunner, context: Context, number: int, rule: str, k: int) -> LayerKV:
    """One layer's `k` landmarks, evaluated."""
    view = view_of(runner, context, number)
    layer = sealed(runner.pool, number, view, mark(view, rule, k))
    mx.eval(layer.arrays())
    return layer


def follow(runner: ModelRunner, context: Context) -> None:
    """Has a context traced from now on."""
    if context.trace is None:
        context.trace = Trace(len(runner.pool.caches), NUM_QUERIES, RIVER_STATES)


def trace(runner: ModelRunner, context: Context) -> bool:
    """Reads the last of a context again, if nothing of it has been traced. Returns whether.

    Raises:
        BudgetError: there is no room for a copy of its row.
    """
    if context.trace and context.trace.hidden.parts:
        return False
    follow(runner, context)
    reader = runner.pool.fork(context)
    try:
        kept = runner.pool.truncate(reader, max(0, context.num_own - NUM_QUERIES))
        reader.trace = context.trace
        injection.with_room(runner.pool, reader, context.num_own)
        for i in range(kept, context.num_own, 512):
            runner.run([(reader, context.token_ids[i : i + 512])])
    finally:
        runner.pool.close(reader)
    return True


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
