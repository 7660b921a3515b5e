"""Thoughts that are read in the River's own steps, while it speaks."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from edgecortex import Agent, Engine
from edgecortex.generation import Generation
from edgecortex.kv.segment import KVSegment
from edgecortex.warp import injection
from edgecortex.warp.cortex import CortexConfig
from edgecortex.warp.gate import PLAIN_TEXT
from edgecortex.warp.judge import PIECE, REFERENCE
from edgecortex.warp.stream import Stream
from tests import scripted
from tests.scripted import context_of, limit, until

NOTES = "The river is wide and slow, and the boats are late again. " * 4
LONG = "It is as blue as the sky over it."
SCRIPT = {
    "find one": ["It is", " blue", "."],
    "find two": ["It is", " red", "."],
    "find more": [LONG],
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with scripted.engine(SCRIPT, river_share=0.5) as engine:
        yield engine


@pytest.fixture
def river(engine: Engine) -> Agent:
    river = engine.agent(system=NOTES)
    river.think_with(CortexConfig(threshold=None, sampling=limit(6)))
    river.chat("Tell me of it.", limit(3)).text()
    return river


@pytest.fixture
def answer(river: Agent) -> Iterator[Generation]:
    """One that goes on for as long as the test does."""
    answer = river.chat("Go on.", limit(4000))
    next(iter(answer))
    yield answer
    assert answer.stats.finish_reason in (None, "cancelled")
    if not answer.stats.finish_reason:
        answer.cancel()
    answer.text()


def answering(engine: Engine) -> set[Any]:
    return {request.context for request in engine.core.scheduler.running}


def readings(engine: Engine) -> list[Any]:
    return [request for request in engine.core.scheduler.running if request.one_by_one]


def is_read(engine: Engine) -> bool:
    """Whether a thought is being read over its River."""
    return any(r.context.num_own > len(r.prompt_ids) - 5 for r in readings(engine))


def is_judged(engine: Engine) -> bool:
    """Whether a gate has read a part of a thought."""
    traces = [c.trace for c in engine.core.pool.contexts() if c.trace]
    return any(trace.hidden.length == len(LONG) and trace.hidden.parts for trace in traces)


def caught(
    engine: Engine,
    river: Agent,
    act: Callable[[Stream], Any],
    when: Callable[[Engine], bool] = is_read,
) -> Stream:
    """Does something on the engine's thread while a thought is on its way."""
    stream = river.spawn("find one" if when is is_read else "find more")

    def step() -> None:
        for _ in range(2000):
            if when(engine):
                break
            engine.core.step()
            engine.core.pool.check()
        assert when(engine)
        act(stream)

    until(engine, lambda: stream.generation is not None)
    engine.call(step)
    return stream


def test_it_is_as_if_read_at_once(
    engine: Engine, river: Agent, answer: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[list[int], KVSegment]] = []
    real = injection.Reading.segment

    def segment(self: injection.Reading, context: Any) -> KVSegment:
        made.append((list(self.reader.token_ids), real(self, context)))
        return made[0][1]

    monkeypatch.setattr(injection.Reading, "segment", segment)
    shares: list[int] = []
    monkeypatch.setattr(engine.core.runner, "run", spying(engine, shares))
    thought = river.spawn("find one").result(60)
    assert (thought.status, thought.text) == ("accepted", "It is blue.")
    assert shares == [1] * len(REFERENCE.format(thought.text))
    monkeypatch.undo()
    ids, laid = made[0]
    thought_ids = ids[-thought.num_tokens :]
    assert engine.model.tokenizer.decode(thought_ids) == REFERENCE.format(thought.text)

    def again() -> KVSegment:
        runner = engine.core.runner
        context = runner.pool.open()
        runner.pool.acquire(context, len(ids))
        runner.run([(context, ids[: -len(thought_ids)])])
        found = injection.forward(runner, context, thought_ids)
        runner.pool.close(context)
        return found

    expected = engine.call(again)
    assert (laid.start, laid.num_tokens) == (expected.start, expected.num_tokens)
    for ours, theirs in zip(laid.arrays(), expected.arrays(), strict=True):
        gap = mx.abs(ours.astype(mx.float32) - theirs.astype(mx.float32)).max()
        assert float(gap) < 2e-3


def spying(engine: Engine, shares: list[int]) -> Callable[..., Any]:
    """Notes how many tokens of a thought go along with the River's one."""
    real = engine.core.runner.run

    def run(feed: Any, *args: Any, **more: Any) -> Any:
        feed = list(feed)
        along = {r.context for r in readings(engine)}
        if found := [len(ids) for context, ids in feed if context in along]:
            assert len(feed) > len(found)
            shares.extend(found)
        return real(feed, *args, **more)

    return run


def test_the_gate_reads_in_pieces(
    engine: Engine, river: Agent, answer: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two of which the River says something."""
    real, alone = engine.core.runner.run, list[int]()
    main = context_of(river)

    def run(feed: Any, *args: Any, **more: Any) -> Any:
        feed = list(feed)
        if any(context is main for context, _ in feed):
            alone.append(0)
        elif not {context for context, _ in feed} & answering(engine):
            alone.append(sum(len(ids) for _, ids in feed))
        return real(feed, *args, **more)

    monkeypatch.setattr(engine.core.runner, "run", run)
    assert river.spawn("find more").result(60).text == LONG
    monkeypatch.undo()
    read = [n for n in alone if n]
    assert max(read) == PIECE
    first = len(PLAIN_TEXT) + 2  # for the first of all; two tokens show whether keys turn
    assert sum(read) - len(LONG) in (0, first)
    beside = [(a, b) for a, b in itertools.pairwise(alone) if a and b]
    assert beside == []


@pytest.mark.parametrize("end", [Stream.close, lambda stream: stream.owner._stop(stream)])
@pytest.mark.parametrize(("when", "text"), [(is_read, "It is blue."), (is_judged, LONG)])
def test_cancelled_meanwhile(
    engine: Engine, river: Agent, answer: Generation, end: Any, when: Any, text: str
) -> None:
    stream = caught(engine, river, end, when)
    assert (stream.result(60).status, stream.thought.text) == ("cancelled", text)
    until(engine, lambda: not readings(engine) and not is_judged(engine))
    engine.call(engine.core.pool.check)
    assert context_of(river).attached == []
    assert river.spawn("find two").result(60).status == "accepted"


def test_a_stream_of_its_own_ends_meanwhile(
    engine: Engine, river: Agent, answer: Generation
) -> None:
    """That lets no answer go but those that wait for it."""
    stream = caught(engine, river, lambda stream: stream.think_with()._let_go())
    assert stream.result(60).status == "accepted"


def test_the_river_ends_meanwhile(engine: Engine, river: Agent, answer: Generation) -> None:
    """The rest is read at once."""
    stream = caught(engine, river, lambda stream: answer.cancel())
    assert stream.result(60).status == "accepted"
    assert [laid.id for laid in context_of(river).attached] == [stream.thought.id]


def test_a_step_that_fails(
    engine: Engine, river: Agent, answer: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thought alone fails."""
    real = engine.core.runner.run

    def run(feed: Any, *args: Any, **more: Any) -> Any:
        feed = list(feed)
        if {context for context, _ in feed} & {r.context for r in readings(engine)}:
            raise RuntimeError("made up")
        return real(feed, *args, **more)

    monkeypatch.setattr(engine.core.runner, "run", run)
    thought = river.spawn("find one").result(60)
    assert (thought.status, thought.reason) == ("failed", "made up")
    said = answer.stats.num_generated_tokens
    until(engine, lambda: answer.stats.num_generated_tokens > said + 3)
    assert river.spawn("say it").result(60).status == "failed"
    monkeypatch.undo()
    assert river.spawn("find two").result(60).status == "accepted"


def test_read_again_where_the_river_takes_another_course(
    engine: Engine, river: Agent, answer: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts = iter([False, True])
    monkeypatch.setattr(injection.Reading, "is_of", lambda self, context: next(verdicts))
    assert river.spawn("find one").result(60).status == "accepted"
    assert next(verdicts, None) is None


def test_what_a_reading_is_of(engine: Engine, river: Agent) -> None:
    def check() -> list[bool]:
        core, main = engine.core, context_of_here(engine, river)
        reading = injection.Reading(core.runner, main, [5, 6, 7])
        found = [reading.is_of(main)]
        main.token_ids[10] += 1
        found.append(reading.is_of(main))
        main.token_ids[10] -= 1
        main.token_ids.append(9)
        found.append(reading.is_of(main))
        del main.token_ids[-2:]
        found.append(reading.is_of(main))
        main.token_ids.append(reading.reader.token_ids[-1])
        segment = reading.segment(main) if reading.is_of(main) else None
        found.append(segment is None)
        reading.close()
        reading.close()
        return [*found, reading.is_of(main)]

    assert engine.call(check) == [True, False, True, False, False, False]


def context_of_here(engine: Engine, agent: Agent) -> Any:
    """On the engine's thread."""
    return engine.core.contexts.get(agent)


def test_thoughts_come_one_after_the_other(
    engine: Engine, river: Agent, answer: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that one known by now is not let in twice, and none is read in vain."""
    most = []
    real = engine.core.scheduler.schedule

    def schedule() -> Any:
        most.append(len(readings(engine)))
        return real()

    monkeypatch.setattr(engine.core.scheduler, "schedule", schedule)
    streams = [river.spawn(task) for task in ("find one", "find two", "find one")]
    ends = [(each.result(60).status, each.thought.reason) for each in streams]
    assert sorted(ends) == [("accepted", ""), ("accepted", ""), ("rejected", "already known")]
    assert max(most) == 1
    starts = sorted(each.thought.start for each in streams if each.thought.id)
    assert len(set(starts)) == 2
    assert np.all(np.array(starts) < 0)


def test_the_engine_ends_meanwhile() -> None:
    """Nobody waits for ever."""
    with scripted.engine(SCRIPT, river_share=0.5) as engine:
        river = engine.agent(system=NOTES)
        river.think_with(CortexConfig(threshold=None))
        river.chat("Tell me of it.", limit(3)).text()
        answer = river.chat("Go on.", limit(4000))
        next(iter(answer))
        stream = caught(engine, river, lambda stream: engine._inbox.put(None))
        assert stream.result(60).status == "failed"
        assert stream.thought.reason == "the engine was closed"
