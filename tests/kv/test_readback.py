"""Sealed runs that are kept read back while agents decode over them."""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from edgecortex import runner as runner_module
from edgecortex.config import EngineConfig
from edgecortex.kv.context import Context
from edgecortex.kv.format import FORMATS
from edgecortex.kv.readback import AFTER, PART, PER_STEP, UNUSED, ReadBacks
from edgecortex.kv.segment import LayerKV
from edgecortex.runner import ModelRunner, measure_keeps_read_back
from tests import tiny

HEADS, DIM = 2, 64
PLENTY = 1 << 40
IDS = [3 + (7 * i * i + 5 * i) % 90 for i in range(200)]


def run_of(num_tokens: int, name: str = "kv4") -> LayerKV:
    k, v = (mx.random.normal((HEADS, num_tokens, DIM)) for _ in range(2))
    return LayerKV.seal(k, v, FORMATS[name])


def after_steps(
    backs: ReadBacks, *runs: LayerKV, steps: int, budget: int = PLENTY, free: int = PLENTY
) -> list[LayerKV]:
    """The runs as the last of so many steps multiplies them."""
    found = list(runs)
    for _ in range(steps):
        backs.begin(budget, free)
        found = [backs.of(run, mx.float32, DIM) for run in runs]
    return found


@pytest.mark.parametrize("name", ["kv4", "kv8", "plain4"])
def test_what_is_used_again_is_read_back_once(name: str) -> None:
    backs, run = ReadBacks(True), run_of(128, name)
    assert after_steps(backs, run, steps=AFTER) == [run]
    [back] = after_steps(backs, run, steps=1)
    assert back.format.bits is None
    assert after_steps(backs, run, steps=3) == [back]
    assert backs.nbytes == back.nbytes == 2 * HEADS * 128 * DIM * 4
    q = mx.random.normal((HEADS, 3, DIM))
    p = mx.random.normal((HEADS, 3, 128))
    for product, x in (("scores", q), ("weighted", p)):
        ours, stored = (np.array(getattr(r, product)(x, False)) for r in (back, run))
        np.testing.assert_allclose(ours, stored, atol=1e-4)


def test_a_bias_comes_along() -> None:
    backs, run = ReadBacks(True), run_of(64)
    run.bias = mx.random.normal((HEADS, 64))
    [back] = after_steps(backs, run, steps=AFTER + 1)
    q = mx.zeros((HEADS, 1, DIM))
    np.testing.assert_array_equal(np.array(back.scores(q, False))[:, 0], np.array(run.bias))


def test_nothing_is_read_back_where_it_is_not_kept_or_not_quantized() -> None:
    for backs, run in ((ReadBacks(False), run_of(64)), (ReadBacks(True), run_of(64, "fp"))):
        assert after_steps(backs, run, steps=AFTER + 5) == [run]
        assert backs.nbytes == 0


def test_a_step_reads_back_a_part_and_the_next_ones_the_rest() -> None:
    backs, runs = ReadBacks(True), [run_of(1024) for _ in range(5)]
    values = 2 * HEADS * 1024 * DIM
    in_one = -(-PER_STEP // values)
    assert 0 < in_one < len(runs)
    after_steps(backs, *runs, steps=AFTER)
    for step in range(1, 4):
        found = after_steps(backs, *runs, steps=1)
        done = [run.format.bits is None for run in found]
        assert sum(done) == min(len(runs), in_one * step)


def test_no_more_than_a_part_of_the_budget_and_than_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nbytes, read = 2 * HEADS * 256 * DIM * 4, LayerKV.read_back
    made: list[LayerKV] = []

    def counting(run: LayerKV, *more: Any) -> LayerKV:
        made.append(run)
        return read(run, *more)

    monkeypatch.setattr(LayerKV, "read_back", counting)
    for room in ({"budget": PART * nbytes}, {"free": nbytes + 1}):
        backs, runs = ReadBacks(True), [run_of(256) for _ in range(3)]
        made.clear()
        after_steps(backs, *runs, steps=AFTER + 3, **room)
        assert backs.nbytes == nbytes
        assert made == runs[:1]  # what finds no room is not read back for nothing
        backs.begin(PLENTY, nbytes - 1)  # somebody else wants the memory
        assert backs.nbytes == 0


def test_what_rests_gives_way() -> None:
    backs, resting, used = ReadBacks(True), run_of(256), run_of(256)
    room = {"free": 2 * HEADS * 256 * DIM * 4}
    after_steps(backs, resting, steps=AFTER + 1, **room)
    assert after_steps(backs, used, steps=UNUSED, **room) == [used]
    assert after_steps(backs, used, steps=1, **room)[0].format.bits is None
    assert after_steps(backs, resting, steps=1, **room) == [resting]


def test_it_goes_with_its_run() -> None:
    backs, run = ReadBacks(True), run_of(64)
    after_steps(backs, run, steps=AFTER + 1)
    assert backs.nbytes
    del run
    assert backs.nbytes == 0


# In a runner.


@pytest.fixture
def runner() -> Iterator[ModelRunner]:
    runner = ModelRunner(tiny.make("llama"), EngineConfig(kv_format="kv4"))
    runner.pool.read_backs._keeps = True
    yield runner
    runner.pool.check()


def said(runner: ModelRunner, *contexts: Context) -> np.ndarray:
    """(contexts, vocab), after one more token each."""
    return np.array(runner.run([(context, [IDS[0]]) for context in contexts])[1])


def test_agents_say_the_same(runner: ModelRunner) -> None:
    """Together, so that their runs lie in one stack, and by themselves."""
    other = ModelRunner(tiny.make("llama"), EngineConfig(kv_format="kv4"))
    other.pool.read_backs._keeps = False
    ours, theirs = ([r.pool.open() for _ in range(3)] for r in (runner, other))
    for r, contexts in ((runner, ours), (other, theirs)):
        r.run([(context, IDS[i:]) for i, context in enumerate(contexts)])
    most = 0
    for step in range(AFTER + 70):
        some = slice(None) if step % 9 else slice(1)
        gap = np.abs(said(runner, *ours[some]) - said(other, *theirs[some])).max()
        assert gap < 1e-4
        most = max(most, runner.pool.read_backs.nbytes)
    assert most > 0


def test_who_leaves_takes_it_along(runner: ModelRunner) -> None:
    stays, leaves = runner.pool.open(), runner.pool.open()
    runner.run([(stays, IDS), (leaves, IDS[:150])])
    for _ in range(AFTER + 2):
        said(runner, stays, leaves)
    both = runner.pool.read_backs.nbytes
    runner.pool.close(leaves)
    said(runner, stays)
    assert 0 < runner.pool.read_backs.nbytes < both
    runner.pool.close(stays)
    assert runner.pool.read_backs.nbytes == 0


@pytest.mark.parametrize(("kept_s", "worth_it"), [(0.4, True), (0.6, False)])
def test_whether_it_is_worth_it_is_measured(
    monkeypatch: pytest.MonkeyPatch, kept_s: float, worth_it: bool
) -> None:
    shape = (3, 64, 64, mx.float32)

    def seconds(layer: LayerKV, *_: Any, dense: bool) -> float:
        return 1.0 if layer.format.bits else kept_s

    monkeypatch.setattr(runner_module, "_seconds", seconds)
    assert measure_keeps_read_back(FORMATS["kv4"], shape) is worth_it
    assert measure_keeps_read_back(FORMATS["fp"], shape) is False
