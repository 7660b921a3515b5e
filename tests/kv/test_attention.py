"""Everything that attends, against a plain reference on the values as they are read back."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecortex import cpu
from edgecortex.kv import attention, readback
from edgecortex.kv.context import Context
from edgecortex.kv.format import FORMATS, KVFormat
from edgecortex.kv.plan import StepPlan
from edgecortex.kv.pool import BlockPool
from edgecortex.kv.segment import LayerKV, rotate

# fp32 sums in another order: a few units in the sixth place of values of order 1, times the
# quantized values' own spread.
TOLERANCE = 2e-4


SIZES = [(cpu.WORTH_SHARING, attention.PIECE, readback.AFTER), (0, 100, 0)]


@pytest.fixture(scope="module", autouse=True, params=SIZES, ids=["whole", "parts"])
def sizes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Large products are shared by two CPU streams, long contexts are read in pieces, and runs
    that are used again are kept read back: here none is, then every one."""
    before = cpu.WORTH_SHARING, attention.PIECE, readback.AFTER
    cpu.WORTH_SHARING, attention.PIECE, readback.AFTER = request.param
    yield
    cpu.WORTH_SHARING, attention.PIECE, readback.AFTER = before


@dataclass
class Geometry:
    heads: int
    groups: int
    k_dim: int
    v_dim: int
    window: int | None
    format: KVFormat
    dense_from: int
    kept: bool


@dataclass
class Reference:
    """One agent's keys and values as they are written, before any is quantized."""

    k: list[np.ndarray] = field(default_factory=list)
    v: list[np.ndarray] = field(default_factory=list)

    def copy(self) -> "Reference":
        return Reference(list(self.k), list(self.v))


def turns(format: KVFormat) -> list[Callable[[mx.array], mx.array]]:
    """What is done to keys and to values before they are stored, and again afterwards."""
    return [rotate if turn else mx.array for turn in (format.rotate_keys, format.rotate_values)]


def as_written(
    format: KVFormat, given: np.ndarray, written: mx.array, turn: Callable[[mx.array], mx.array]
) -> np.ndarray:
    """What the cache made of keys or values: those given, turned, to 16 bits where it quantizes."""
    back = np.array(turn(written))
    np.testing.assert_allclose(back, given, atol=0.15 if format.bits else 1e-4, rtol=0)
    if format.bits:
        assert np.array_equal(written.astype(mx.bfloat16).astype(mx.float32), written)
    return np.array(written)


def read_back(format: KVFormat, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a sealed block of turned (L, heads, dim) reads as, still turned."""
    layer = LayerKV.seal(*(mx.array(x.swapaxes(0, 1)) for x in (k, v)), format)
    keys, values = layer.keys(mx.float32, k.shape[-1]), layer.values(mx.float32)
    return np.array(keys).swapaxes(0, 1), np.array(values).swapaxes(0, 1)


def expected(geometry: Geometry, ref: Reference, index: int, q: np.ndarray) -> np.ndarray:
    """The attention of token `index`, q (n_heads, k_dim), by the definition of the format."""
    format = geometry.format
    k, v = np.stack(ref.k[: index + 1]), np.stack(ref.v[: index + 1])
    for start in range(format.num_sinks, format.num_sinks + format.num_sealed(index), format.block):
        stop = start + format.block
        k[start:stop], v[start:stop] = read_back(format, k[start:stop], v[start:stop])
    k, v = (np.array(turn(mx.array(x))) for turn, x in zip(turns(format), (k, v), strict=True))
    first = 0 if geometry.window is None else max(0, index - geometry.window + 1)
    k, v = (np.repeat(x[first:], geometry.groups, axis=1) for x in (k, v))
    scores = np.einsum("hd,lhd->hl", q, k) / math.sqrt(geometry.k_dim)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("hl,lhd->hd", p / p.sum(axis=-1, keepdims=True), v)


def make_pool(geometry: Geometry) -> BlockPool:
    g = geometry
    row = g.heads * g.format.row * (g.k_dim + g.v_dim) * (2 if g.format.bits else 4)
    return BlockPool(g.format, [g.window], [1.0], row, 1 << 40, g.dense_from, g.kept)


def run_step(
    geometry: Geometry,
    pool: BlockPool,
    refs: dict[Context, Reference],
    feed: list[tuple[Context, int]],
    rng: np.random.Generator,
) -> None:
    """Feeds random tokens and compares every row."""
    g = geometry
    plan = StepPlan.build([(context, [0] * n) for context, n in feed])
    total = sum(n for _, n in feed)
    q = rng.standard_normal((total, g.heads * g.groups, 1, g.k_dim), dtype=np.float32)
    k = rng.standard_normal((total, g.heads, 1, g.k_dim), dtype=np.float32)
    v = rng.standard_normal((total, g.heads, 1, g.v_dim), dtype=np.float32)
    k[..., 0] *= 8  # an outlier channel, as real keys have
    cache = pool.caches[0]
    starts = {share.context: share.context.num_own for share in plan.shares}
    pool.begin(plan)
    written = cache.update_and_fetch(mx.array(k), mx.array(v))
    out = np.array(cache.attend(mx.array(q), 1 / math.sqrt(g.k_dim)))
    pool.commit(plan)
    mx.eval(pool.arrays())
    assert out.shape == (total, g.heads * g.groups, 1, g.v_dim)
    k, v = (
        as_written(g.format, *pair) for pair in zip((k, v), written, turns(g.format), strict=True)
    )
    for share in plan.shares:
        ref = refs[share.context]
        rows = slice(share.start, share.start + share.num_tokens)
        ref.k.extend(k[rows, :, 0])
        ref.v.extend(v[rows, :, 0])
        for i, row in enumerate(range(rows.start, rows.stop)):
            if i in (0, share.num_tokens - 1) or i % 29 == 0:
                want = expected(g, ref, starts[share.context] + i, q[row, :, 0])
                np.testing.assert_allclose(out[row, :, 0], want, atol=TOLERANCE, rtol=0)


geometries = st.builds(
    Geometry,
    heads=st.sampled_from([1, 2, 3]),
    groups=st.sampled_from([1, 3, 4]),
    k_dim=st.sampled_from([32, 64, 80, 192]),
    v_dim=st.sampled_from([32, 64, 80, 128]),
    window=st.sampled_from([None, None, 70, 96, 200]),
    format=st.sampled_from(
        [*FORMATS.values(), replace(FORMATS["kv4"], name="no sinks", num_sinks=0)]
    ),
    dense_from=st.sampled_from([1, 1000]),
    kept=st.booleans(),
)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.just(0)),
        st.tuples(st.just("fork"), st.integers(0, 5)),
        st.tuples(st.just("close"), st.integers(0, 5)),
        st.tuples(
            st.just("step"), st.lists(st.sampled_from([1, 1, 1, 2, 5, 63, 64, 130]), max_size=6)
        ),
    ),
    min_size=4,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(geometry=geometries, actions=actions, seed=st.integers(0, 2**32))
def test_any_mix_equals_the_reference(geometry, actions, seed):
    rng, pool = np.random.default_rng(seed), make_pool(geometry)
    refs: dict[Context, Reference] = {pool.open(): Reference()}
    for action, argument in actions:
        live = list(refs)
        if action == "open" or not live:
            refs[pool.open()] = Reference()
        elif action == "fork":
            parent = live[argument % len(live)]
            refs[pool.fork(parent)] = refs[parent].copy()
        elif action == "close":
            context = live[argument % len(live)]
            del refs[context]
            pool.close(context)
        elif argument:
            feed = list(zip(live, argument, strict=False))
            run_step(geometry, pool, refs, feed, rng)
        pool.check()
    for context in list(refs):
        pool.close(context)
    pool.check()
    assert pool.used_bytes == 0
    assert pool.caches[0].nbytes == 0


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("window", [None, 200])
@pytest.mark.parametrize("kept", [False, True])
def test_many_single_steps_over_a_shared_prefix(name, window, kept):
    """Decoding across several seals, forks sharing a prefix, in every format."""
    geometry = Geometry(2, 3, 64, 64, window, FORMATS[name], 1000, kept)
    rng, pool = np.random.default_rng(7), make_pool(geometry)
    parent = pool.open()
    refs = {parent: Reference()}
    run_step(geometry, pool, refs, [(parent, 300)], rng)
    children = [pool.fork(parent) for _ in range(3)]
    refs |= {child: refs[parent].copy() for child in children}
    run_step(geometry, pool, refs, [(children[0], 90), (children[1], 1)], rng)
    for step in range(70):
        feed = [(context, 1) for context in refs if step % 7 or context is not parent]
        run_step(geometry, pool, refs, feed, rng)
        pool.check()
    assert (pool.read_backs.nbytes > 0) == (kept and geometry.format.bits is not None)


@pytest.mark.parametrize("cuts", [[300], [1] * 20 + [280], [3, 61, 64, 65, 1, 1, 105], [150, 150]])
def test_result_does_not_depend_on_how_a_prompt_is_cut(cuts):
    """Which keys are quantized follows from positions alone."""
    geometry = Geometry(2, 3, 64, 64, None, FORMATS["kv4"], 1000, False)
    g, rng = geometry, np.random.default_rng(3)
    total = sum(cuts)
    q, k, v = (
        mx.array(rng.standard_normal((total, heads, 1, 64), dtype=np.float32))
        for heads in (6, 2, 2)
    )
    pool = make_pool(g)
    context, rows, at = pool.open(), [], 0
    for n in cuts:
        plan = StepPlan.build([(context, [0] * n)])
        pool.begin(plan)
        pool.caches[0].update_and_fetch(k[at : at + n], v[at : at + n])
        rows.append(pool.caches[0].attend(q[at : at + n], 0.125))
        pool.commit(plan)
        at += n
    whole = make_pool(g)
    plan = StepPlan.build([(whole.open(), [0] * total)])
    whole.begin(plan)
    whole.caches[0].update_and_fetch(k, v)
    once = whole.caches[0].attend(q, 0.125)
    np.testing.assert_allclose(np.array(mx.concatenate(rows)), np.array(once), atol=1e-5, rtol=0)
