"""The slab of unquantized rows as agents come and go."""

from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest

from edgecortex.config import EngineConfig
from edgecortex.errors import BudgetError
from edgecortex.kv.batch import BatchQuantizedKVCache
from edgecortex.kv.context import Context
from edgecortex.runner import ModelRunner
from tests import tiny

IDS = [3 + (7 * i * i + 5 * i) % 90 for i in range(100)]
MANY = 40


@pytest.fixture
def runner() -> Iterator[ModelRunner]:
    runner = ModelRunner(tiny.make("llama"), EngineConfig(kv_format="kv4"))
    yield runner
    runner.pool.check()


def said(runner: ModelRunner, *contexts: Context) -> np.ndarray:
    """(contexts, vocab), after one more token each."""
    return np.array(runner.run([(context, [IDS[0]]) for context in contexts])[1])


def slots(cache: BatchQuantizedKVCache) -> list[int]:
    return [array.shape[0] for array in (cache._k, cache._v) if array is not None]


def test_grows_once_for_all_who_have_come(runner: ModelRunner) -> None:
    first = runner.pool.open()
    runner.run([(first, IDS)])
    before = mx.get_active_memory()
    others = [runner.pool.open() for _ in range(MANY)]
    assert mx.get_active_memory() == before
    cache = runner.pool.caches[0]
    assert (slots(cache), cache.num_slots > MANY) == ([1, 1], True)
    runner.run([(context, IDS[:20]) for context in others])
    assert slots(cache) == [cache.num_slots] * 2


def test_rows_stay_as_they_are(runner: ModelRunner) -> None:
    first, twin = runner.pool.open(), runner.pool.open()
    runner.run([(first, IDS), (twin, IDS)])
    alone = said(runner, twin)
    for _ in range(MANY):
        runner.pool.open()
    np.testing.assert_array_equal(said(runner, first), alone)


def test_who_came_and_was_not_used_can_go(runner: ModelRunner) -> None:
    first, twin = runner.pool.open(), runner.pool.open()
    runner.run([(first, IDS), (twin, IDS)])
    alone = said(runner, twin)
    last, *others = [runner.pool.open() for _ in range(MANY)][::-1]
    for context in others:  # half of the slots are free then: rows move
        runner.pool.close(context)
    assert runner.pool.caches[0].num_slots < MANY
    fresh = runner.pool.open()
    runner.run([(last, IDS), (fresh, IDS)])
    logits = said(runner, first, last, fresh)
    np.testing.assert_allclose(logits, np.repeat(alone, 3, axis=0), atol=2e-4)


def test_room_for_one_row_is_room_for_one_agent() -> None:
    """Rows come in larger steps where there are many, but not where there is no room for them."""
    rows = 34
    model = tiny.make("llama")
    row = ModelRunner(model, EngineConfig(kv_format="kv4")).pool.row_nbytes
    pool = ModelRunner(model, EngineConfig(kv_format="kv4", kv_budget_bytes=rows * row)).pool
    for _ in range(rows):
        pool.open()
    with pytest.raises(BudgetError):
        pool.open()
    pool.check()


def test_nobody_goes_where_that_would_not_make_room() -> None:
    model = tiny.make("llama")
    whole = ModelRunner(model, EngineConfig(kv_format="kv4")).pool
    budget = whole.growth(Context(0), 1000) + 3 * whole.row_nbytes
    runner = ModelRunner(model, EngineConfig(kv_format="kv4", kv_budget_bytes=budget))
    pool = runner.pool
    resting, busy, late = (pool.open() for _ in range(3))
    assert pool.acquire(busy, 800)
    runner.run([(resting, IDS)])
    pool.release(resting)
    assert not pool.acquire(late, 400)
    assert resting in pool.contexts()
    assert pool.acquire(late, 220)
    assert resting not in pool.contexts()
    pool.check()


@pytest.mark.parametrize("num_kept", [100, 133, 200])
def test_going_back_takes_no_room(runner: ModelRunner, num_kept: int) -> None:
    """What others hold too is not copied, for which there may be no room."""
    pool = runner.pool
    parent, plain = pool.open(), pool.open()
    runner.run([(parent, IDS * 3)])
    child = pool.fork(parent)
    whole = pool.nbytes(parent)
    pool.max_bytes = pool.used_bytes
    left = pool.truncate(child, num_kept)
    assert 0 < left <= num_kept
    pool.check()
    assert pool.nbytes(parent) == whole
    pool.max_bytes *= 2
    more = IDS[:40]
    runner.run([(plain, (IDS * 3)[:left])])
    one, two = (np.array(runner.run([(c, more)])[1]) for c in (child, plain))
    np.testing.assert_allclose(one, two, atol=1e-4)
    pool.close(child)
    pool.check()
    parents, twin = said(runner, parent), pool.open()
    runner.run([(twin, IDS * 3)])
    np.testing.assert_allclose(said(runner, twin), parents, atol=1e-4)
