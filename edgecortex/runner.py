"""Runs steps: token ids in, logits out, KV in the pool."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cached_property

import mlx.core as mx
import numpy as np

from edgecortex.config import EngineConfig
from edgecortex.errors import BudgetError, ModelError
from edgecortex.freed import give_back
from edgecortex.kv.batch import BatchQuantizedKVCache
from edgecortex.kv.blocks import Shape
from edgecortex.kv.context import Context, Trace
from edgecortex.kv.format import FORMATS, KV4, KVFormat
from edgecortex.kv.plan import StepPlan
from edgecortex.kv.pool import BlockPool
from edgecortex.kv.segment import LayerKV, multiplies_quantized, rotate, row_dtype
from edgecortex.models.adapter import LoadedModel
from edgecortex.models.machine import this_machine

Feed = Iterable[tuple[Context, Sequence[int]]]
REST_S = 0.5  # between two times that memory is given back
MANY_ROWS = 64  # in one step: so many logits are worth giving back


class ModelRunner:
    """The model and its pool. Everything here runs on the engine's thread."""

    def __init__(self, model: LoadedModel, config: EngineConfig) -> None:
        self.model = model
        self.model_s = 0.0  # spent in forward passes so far
        self._took, self._rests_until = False, 0.0
        self.reads_on = False  # whether the coming step is not the last that reads a prompt
        format = FORMATS.get(config.kv_format, KV4)  # an engine does not leave it "auto"
        self.shapes = _probe(model)
        budget = config.kv_budget_bytes or _default_budget()
        self.pool = make_pool(format, model.windows(), self.shapes, budget)
        self._warm_up()

    def _warm_up(self) -> None:
        """Takes a step, so that nobody's first token waits for threads and buffers to be made."""
        context = self.pool.open()
        self.run([(context, [0])])
        self.pool.close(context)
        self.model_s = 0.0

    def run(self, feed: Feed, all_rows: bool = False) -> tuple[list[Context], mx.array]:
        """Feeds each context its next tokens in one forward pass.

        Returns: the contexts in the order of the logits' rows, and the logits (rows, vocab) of
        each one's last token, or of every token with `all_rows`.
        """
        plan = StepPlan.build(feed)
        self.pool.begin(plan)
        wanted = None if all_rows else plan.last_rows()
        start = time.perf_counter()
        logits = self.model.forward(plan.tokens, self.pool.caches, wanted)
        self._trace(plan)
        built = time.perf_counter()
        self.pool.commit(plan)
        arrays = self.pool.arrays()
        committed = time.perf_counter()
        mx.eval(logits, arrays)
        self.model_s += time.perf_counter() - committed + built - start
        self._give_back(plan)
        return [share.context for share in plan.shares], logits

    def _give_back(self, plan: StepPlan) -> None:
        """Once no prompt is read any more, gives back what reading, and steps of many rows, took
        beside KV."""
        self._took |= bool(plan.spans) or plan.tokens.shape[0] >= MANY_ROWS
        reads = plan.spans or self.reads_on
        if self._took and not reads and time.perf_counter() > self._rests_until:
            give_back()
            self._took, self._rests_until = False, time.perf_counter() + REST_S

    def hidden_of(self, token_ids: Sequence[int]) -> np.ndarray:
        """The last layer's hidden states of these tokens by themselves, (L, hidden_size).

        Raises:
            BudgetError: there is no room for them.
        """
        with closing(HiddenStates(self, token_ids)) as reading:
            reading.read(len(token_ids))
            return reading.all()

    @contextmanager
    def _opened(self) -> Iterator[Context]:
        """A context for a while."""
        context = self.pool.open()
        try:
            yield context
        finally:
            self.pool.close(context)

    @cached_property
    def keys_turn(self) -> bool:
        """Whether keys can be moved to other positions: a token by itself, read at two, must have
        the keys at one that turning those of the other gives."""
        with self._opened() as here, self._opened() as there:
            there.base = 40
            self.run([(here, [0]), (there, [0])])
            try:
                return all(self._turns(cache, here, there) for cache in self.pool.caches)
            except (AttributeError, ValueError, TypeError):
                return False

    def _turns(self, cache: BatchQuantizedKVCache, here: Context, there: Context) -> bool:
        keys = [cache.read(context, mx.float32)[0] for context in (here, there)]
        plain, wanted = (rotate(k) if self.pool.format.rotate_keys else k for k in keys)
        gap = mx.abs(self.model.turned(cache.layer, plain, there.base - here.base) - wanted).max()
        return bool(gap <= 0.02 * mx.abs(wanted).max())  # keys are kept in 16 bits

    def _trace(self, plan: StepPlan) -> None:
        """Keeps the last hidden states of contexts that want them."""
        hidden = self.model.selection.hidden
        assert hidden is not None
        for share in plan.shares:
            if trace := share.context.trace:
                trace.add_hidden(hidden[share.start : share.start + share.num_tokens, 0])
        self.model.selection.hidden = None


def make_pool(
    format: KVFormat,
    windows: Sequence[int | None],
    shapes: Sequence[Shape],
    max_bytes: int,
    attends: bool = True,
) -> BlockPool:
    """A pool of `max_bytes` for layers with these sliding windows and shapes. If nothing attends
    what is in it, how that is done fastest is not measured."""
    return BlockPool(
        format,
        windows,
        [_token_nbytes(format, shape) for shape in shapes],
        sum(_row_nbytes(format, shape) for shape in shapes),
        max_bytes,
        measure_dense_from(format, shapes[0]) if attends else 1,
        attends and measure_keeps_read_back(format, shapes[0]),
    )


class HiddenStates:
    """Reads tokens by themselves, some at a time, for the last layer's hidden states. Other steps
    may run meanwhile: their KV has a place in the budget until `close`.

    Raises:
        BudgetError: there is no room for them.
    """

    def __init__(self, runner: ModelRunner, token_ids: Sequence[int]) -> None:
        self._runner, self._rest, self._open = runner, list(token_ids), True
        self._context = runner.pool.open()
        self._context.trace = self._trace = Trace(0, 0, len(token_ids))
        if not runner.pool.acquire(self._context, len(token_ids)):
            self.close()
            free = runner.pool.free_bytes
            raise BudgetError(f"no room to read {len(token_ids):,} tokens: {free:,} bytes are free")

    def read(self, num_tokens: int) -> bool:
        """Reads so many tokens more. Returns whether some are left."""
        self._runner.run([(self._context, self._rest[:num_tokens])])
        del self._rest[:num_tokens]
        return bool(self._rest)

    def all(self) -> np.ndarray:
        """What was read, (L, hidden_size)."""
        return np.array(self._trace.hidden.all().astype(mx.float32))

    def close(self) -> None:
        """Frees the KV. Twice is harmless."""
        if self._open:
            self._open = False
            self._runner.pool.close(self._context)


def _probe(model: LoadedModel) -> list[Shape]:
    """Runs a few tokens through our caches and through mlx-lm alone, and compares.

    Returns: each layer's shape.

    Raises:
        ModelError: the model bypasses the cache, or says something else with it.
    """
    windows = model.windows()
    pool = BlockPool(FORMATS["fp"], windows, [0.0] * len(windows), 0, 1, 0)
    caches = pool.caches
    tokens = list(range(10, 18))
    plan = StepPlan.build([(pool.open(), tokens)])
    pool.begin(plan)
    try:
        ours = model.forward(plan.tokens, caches, None)
    except (AttributeError, TypeError, ValueError, NotImplementedError) as error:
        raise ModelError(
            f"{model.path.name} cannot run here: expected its layers to use their cache as "
            f"mlx-lm's usual ones do, got {error!r}; choose another model"
        ) from error
    theirs = model.reference(tokens)
    if any(cache.num_attended != 1 for cache in caches):
        raise ModelError(
            f"{model.path.name} cannot run here: expected every layer to attend through its "
            "cache once, got another path; choose another model"
        )
    gap, size = (float(x) for x in (mx.abs(ours - theirs).max(), mx.abs(theirs).max()))
    if not gap <= 0.05 * size:
        raise ModelError(
            f"{model.path.name} cannot run here: expected its logits to stay within 5 % of "
            f"mlx-lm's own, got a gap of {gap:.3g} in {size:.3g}; choose another model"
        )
    return [cache.shape() for cache in caches]


def _token_nbytes(format: KVFormat, shape: Shape) -> float:
    """Bytes of one sealed token of a layer, from a block sealed for the purpose."""
    heads, k_dim, v_dim, dtype = shape
    k, v = (mx.zeros((heads, format.block, dim), dtype) for dim in (k_dim, v_dim))
    return LayerKV.seal(k, v, format).nbytes / format.block


def _row_nbytes(format: KVFormat, shape: Shape) -> int:
    heads, k_dim, v_dim, dtype = shape
    return heads * format.row * (k_dim + v_dim) * row_dtype(format, dtype).size


def _default_budget() -> int:
    """Half of what the device recommends to use, or of its memory."""
    recommended = mx.device_info().get("max_recommended_working_set_size")
    return int(recommended or this_machine().memory_bytes) // 2


def measure_dense_from(format: KVFormat, shape: Shape) -> int:
    """From how many query rows on reading a run back beats multiplying it quantized.

    Measured on a run of 1,024 tokens on this device, by doubling; 1 where it may not be
    multiplied quantized.
    """
    if format.bits is None:
        return 0
    if not multiplies_quantized():
        return 1
    layer = _measured_run(format, shape)
    rows = 2
    while rows < 256:
        dense, quantized = (_seconds(layer, shape, rows, way) for way in (True, False))
        if dense < quantized:
            break
        rows *= 2
    return rows


def measure_keeps_read_back(format: KVFormat, shape: Shape) -> bool:
    """Whether a few query rows are multiplied twice as fast by a run that has been read back as by
    one that is stored, measured as above."""
    if format.bits is None:
        return False
    layer, few = _measured_run(format, shape), 4
    stored = _seconds(layer, shape, few, dense=not multiplies_quantized())
    back = layer.read_back(shape[3], shape[1])
    mx.eval(back.arrays())
    return 2 * _seconds(back, shape, few, dense=True) < stored


def _measured_run(format: KVFormat, shape: Shape) -> LayerKV:
    heads, k_dim, v_dim, dtype = shape
    k, v = (mx.random.normal((heads, 1024, dim)).astype(dtype) for dim in (k_dim, v_dim))
    layer = LayerKV.seal(k, v, format)
    mx.eval(layer.k, layer.v)
    return layer


def _seconds(layer: LayerKV, shape: Shape, num_rows: int, dense: bool) -> float:
    """That attention of so many rows over a run takes at best."""
    heads, dim, _, dtype = shape
    q = mx.zeros((heads, num_rows, dim), dtype)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        mx.eval(layer.weighted(layer.scores(q, dense), dense))
        times.append(time.perf_counter() - start)
    return min(times)
