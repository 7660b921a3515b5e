"""Streams that fail, never end, find no room or say what nobody wants: they harm nobody."""

import re
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgecortex import Agent, Engine
from edgecortex.warp.cortex import CortexConfig
from edgecortex.warp.stream import Stream
from tests import scripted
from tests.scripted import context_of, limit, logits_after, until

NOTES = "The river is wide and slow, and the boats are late again. " * 4
OTHER = "Nobody knows of the golden box under the old tree. " * 4
SCRIPT = {"find one": ["It is", " blue", "."]}
TASKS = (("find one", "forward"), ("Think of it.", "graft"))
KNOWN = r"accepted: $|failed: (no room |.* whole budget)|rejected: .* not in memory$"
NEXT = "\nu:And then?\na:"
SAME = {"atol": 2e-4}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with scripted.engine(SCRIPT, river_share=0.2) as engine:
        yield engine


def make_river(engine: Engine, notes: str = NOTES, **more: Any) -> Agent:
    """A River that has said something; unless told otherwise no thought is let in."""
    river = engine.agent(system=notes, sampling=limit(6))
    river.think_with(CortexConfig(**({"threshold": 1.0} | more)))
    river.chat("Tell me of it.").text()
    return river


def expected_answer(engine: Engine) -> tuple[str, np.ndarray]:
    """What a River says to a question if nobody thinks beside it."""
    river = make_river(engine)
    text = river.chat("Tell me more.", limit(150)).text()
    return text, logits_after(river, NEXT)


def failing_for(engine: Engine, stream: Stream, patch: pytest.MonkeyPatch) -> threading.Event:
    """Lets every step that a Stream takes part in fail in the second layer."""
    cache, failed = engine.core.pool.caches[1], threading.Event()
    attend = cache.attend

    def fail(q: Any, scale: float) -> Any:
        context = engine.core.contexts.get(stream)
        if any(share.context is context for share in cache._plan.shares):
            failed.set()
            raise RuntimeError("out of luck")
        return attend(q, scale)

    patch.setattr(cache, "attend", fail)
    return failed


def test_a_stream_that_fails_harms_nobody(engine: Engine, monkeypatch) -> None:
    text, logits = expected_answer(engine)
    river, bystander = make_river(engine), make_river(engine, OTHER)
    answer, beside = (agent.chat("Tell me more.", limit(150)) for agent in (river, bystander))
    next(iter(answer))
    with monkeypatch.context() as patch:
        sibling = river.spawn("Think of it.")
        until(engine, lambda: sibling.generation and sibling.generation.token_ids)
        stream = river.spawn("Think of it.")
        failed = failing_for(engine, stream, patch)
        thought, other = (each.result(60) for each in (stream, sibling))
        assert failed.is_set()
    assert (thought.status, thought.reason) == ("failed", "out of luck")
    assert other.status == "rejected"
    assert answer.text() == text
    assert len(beside.text()) == 150
    np.testing.assert_allclose(logits_after(river, NEXT), logits, **SAME)
    assert river.spawn("find one").result(60).status == "rejected"


@pytest.mark.parametrize("end", ["long", "cancelled", "rejected", "too long"])
def test_a_stream_without_success_changes_nothing(engine: Engine, end: str) -> None:
    text, logits = expected_answer(engine)
    river = make_river(engine, sampling=limit(8 if end == "rejected" else 3000))
    answer = river.chat("Tell me more.", limit(150))
    next(iter(answer))
    task = "x" * 5000 if end == "too long" else "Think of it."
    streams = [river.spawn(task) for _ in range(3)]
    if end == "cancelled":
        for stream in streams:
            stream.close()
    assert answer.text() == text
    np.testing.assert_allclose(logits_after(river, NEXT), logits, **SAME)
    statuses = {stream.thought.status for stream in streams}
    if end == "too long":
        assert statuses == {"failed"}
        assert "the prompt is too long" in streams[0].thought.reason
    for stream in streams:
        stream.close()


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("num_rows", [5, 5.5, 6, 6.5, 7, 8])
def test_no_room_for_a_stream_harms_nobody(num_rows: float, traced: bool) -> None:
    """The River and what it has sealed take 4.8 rows. Whatever becomes of its Streams, it goes on
    as it would have, and where it is read for them it is not let go of meanwhile."""
    with scripted.engine(SCRIPT, river_share=0.2) as engine:
        expected = make_river(engine).chat("And then?").text()
        budget = int(num_rows * engine.core.pool.row_nbytes)
    with scripted.engine(SCRIPT, river_share=0.2, kv_budget_bytes=budget) as engine:
        river = engine.agent(system=NOTES, sampling=limit(6))
        config = CortexConfig(threshold=None)
        if traced:
            river.think_with(config)
        river.chat("Tell me of it.").text()
        river.think_with(config)
        thoughts = [river.spawn(task, mode=mode).result(60) for task, mode in TASKS]
        engine.call(engine.core.pool.check)
        for thought in thoughts:
            why = f"{thought.status}: {thought.reason}"
            assert re.match(KNOWN, why), why
        river.read()
        accepted = [thought.id for thought in thoughts if thought.id]
        assert [laid.id for laid in context_of(river).attached] == accepted
        for id in accepted:
            river.take_back(id)
        river.read()
        assert engine.call(engine.core.pool.contexts) == [context_of(river)]
        engine.call(engine.core.pool.check)
        assert river.chat("And then?").text() == expected


@pytest.mark.parametrize("num_rows", [12.5, 13, 13.5, 14])
def test_a_river_that_rests_makes_way_for_no_thought_about_it(
    engine: Engine, num_rows: float
) -> None:
    """It takes 4.8 rows and has rested the longest: others go first."""
    budget = int(num_rows * engine.core.pool.row_nbytes)
    with scripted.engine(SCRIPT, kv_budget_bytes=budget) as small:
        river = make_river(small, threshold=None, sampling=limit(3))
        others = [small.agent(system=name, sampling=limit(2)) for name in "abc"]
        for agent in others:
            agent.chat("x").text()
        thought = river.spawn("find one").result(60)
        assert (thought.status, thought.reason) == ("accepted", "")
        assert [laid.id for laid in context_of(river).attached] == [thought.id]
        small.call(small.core.pool.check)
