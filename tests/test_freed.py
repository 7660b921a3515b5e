"""Memory goes back to the system once prompts are read."""

import mlx.core as mx
import numpy as np
import pytest

from edgecortex import freed, heap, runner
from edgecortex.bench.memory_agents import resident_bytes
from edgecortex.config import EngineConfig
from edgecortex.runner import ModelRunner
from tests import tiny

PIECE = 1 << 16  # bytes: too small for the system to take back by itself
NUM_PIECES = 1000


def test_buffers_of_freed_arrays_go_back() -> None:
    array = mx.zeros(1 << 20) + 1
    mx.eval(array)
    del array
    assert mx.get_cache_memory() > 0
    freed.give_back()
    assert mx.get_cache_memory() == 0


@pytest.mark.skipif(heap._trim is None, reason="the heap is not glibc's")
def test_free_pages_of_the_heap_go_back() -> None:
    pieces = [np.ones(PIECE, np.uint8) for _ in range(NUM_PIECES)]
    full = resident_bytes()
    del pieces[:-1]  # the last one keeps the heap from shrinking
    freed.give_back()
    assert resident_bytes() < full - NUM_PIECES * PIECE // 2
    assert pieces[0].all()


def test_a_runner_gives_back_when_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    monkeypatch.setattr(runner, "give_back", lambda: given.append("back"))
    made = ModelRunner(tiny.make("llama"), EngineConfig(kv_format="kv4"))
    one, other = made.pool.open(), made.pool.open()
    made.run([(one, [5] * 20)])
    made.run([(one, [5]), (other, [5] * 20)])
    assert given == []
    made.run([(one, [5]), (other, [5])])
    made.run([(one, [5]), (other, [5])])
    assert given == ["back"]


def test_a_runner_rests_between_giving_back(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    monkeypatch.setattr(runner, "give_back", lambda: given.append("back"))
    made = ModelRunner(tiny.make("llama"), EngineConfig(kv_format="kv4"))
    context = made.pool.open()
    monkeypatch.setattr(runner, "REST_S", 3600.0)
    for feed in ([5] * 20, [5], [5] * 20, [5]):
        made.run([(context, feed)])
    assert given == ["back"]
    made._rests_until = 0.0  # an hour later
    made.run([(context, [5])])
    assert given == ["back", "back"]


def test_a_runner_gives_back_after_steps_of_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    monkeypatch.setattr(runner, "give_back", lambda: given.append("back"))
    made = ModelRunner(tiny.make("llama"), EngineConfig(kv_format="kv4"))
    contexts = [made.pool.open() for _ in range(runner.MANY_ROWS)]
    made.run([(context, [5]) for context in contexts[1:]])
    assert given == []
    made.run([(context, [5]) for context in contexts])
    assert given == ["back"]
