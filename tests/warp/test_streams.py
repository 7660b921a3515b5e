"""Streams beside their River and others: what they see, how they end, whom they harm: nobody."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edgecortex import Agent, Engine
from edgecortex.errors import ClosedError, ConfigError, PromptError, StateError
from edgecortex.warp.cortex import Cortex, CortexConfig
from edgecortex.warp.router import RouterLimits
from edgecortex.warp.stream import Stream, Thought
from tests import scripted
from tests.scripted import context_of, limit, logits_after, until

NOTES = "The river is wide and slow, and the boats are late again. " * 4
OTHER = "Nobody must ever know of the golden QZXJ under the old WVKQ tree. " * 4
SCRIPT = {"find one": ["It is", " blue", "."], "say nothing": [" \n ", " "]}
NEXT = "\nu:And then?\na:"
SAME = {"atol": 2e-4}
LEGAL = {
    (None, "waiting"),
    ("waiting", "thinking"),
    *(("waiting", end) for end in ("failed", "cancelled")),
    *(("thinking", end) for end in ("accepted", "rejected", "failed", "cancelled")),
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with scripted.engine(SCRIPT, river_share=0.2) as engine:
        yield engine


@pytest.fixture(autouse=True)
def statuses(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str | None, str]]]:
    """Every change of a thought's status, all of them legal."""
    changes: list[tuple[str | None, str]] = []

    def spy(thought: Thought, name: str, value: Any) -> None:
        before = getattr(thought, "status", None) if "status" in thought.__dict__ else None
        if name == "status" and value != before:
            changes.append((before, value))
        object.__setattr__(thought, name, value)

    monkeypatch.setattr(Thought, "__setattr__", spy)
    yield changes
    assert set(changes) <= LEGAL


def make_river(engine: Engine, notes: str = NOTES, **more: Any) -> Agent:
    """A River that has said something; unless told otherwise no thought is let in."""
    river = engine.agent(system=notes, sampling=limit(6))
    river.think_with(CortexConfig(**({"threshold": 1.0} | more)))
    river.chat("Tell me of it.").text()
    return river


def resident(engine: Engine) -> list[str]:
    return engine.call(lambda: [agent.name for agent in engine.core.contexts._contexts])


# What they see.


def alone_or_not(others: bool) -> dict[str, Any]:
    """What a Stream and its River say, beside another River and its Streams or without."""
    with scripted.engine(river_share=0.2) as engine:
        beside: list[Stream] = []
        if others:
            other = make_river(engine, OTHER, sampling=limit(200))
            beside = [other.spawn(f"Tell me about tree {i}.") for i in range(3)]
            until(engine, lambda: all(each.thought.status == "thinking" for each in beside))
        river = make_river(engine, sampling=limit(30))
        stream = river.spawn("Think of the boats.")
        until(engine, lambda: stream.thought.status == "thinking")
        base = context_of(stream).base
        thought = stream.result(60)
        said = stream.generation.token_ids
        ids = stream.conversation.token_ids
        found = {"text": thought.text, "said": said, "ids": ids, "base": base}
        found |= {"river": logits_after(river, NEXT), "told": list(river.messages)}
        for each in beside:
            each.close()
        return found


def test_a_stream_knows_nothing_of_other_conversations() -> None:
    """Another River with a secret makes no difference to anything but the gate's statistics."""
    alone, beside = alone_or_not(False), alone_or_not(True)
    np.testing.assert_allclose(beside.pop("river"), alone.pop("river"), **SAME)
    assert beside == alone
    text = scripted.Letters({}).decode(beside["ids"])
    assert beside["base"] > 200
    assert text.startswith("\nu:Think of the boats.\na:")
    assert len(text) == len("\nu:Think of the boats.\na:") + 30


def test_a_stream_reads_the_text_where_there_are_no_landmarks(engine: Engine) -> None:
    """Of a short River; of one that rests on disk or nowhere; of one that was told more than it
    has read."""
    short = make_river(engine, "Short.")
    fresh = engine.agent(system=NOTES)
    told = make_river(engine)
    told.tell("And the ferry?", "It sank.")
    for river in (short, fresh, told):
        stream = river.spawn("find one")
        stream.result(60)
        text = engine.model.tokenizer.decode(stream.conversation.token_ids)
        assert text == engine.model.tokenizer.render(stream.messages[:-1]) + "It is blue."
    assert "It sank." in text


def test_a_stream_goes_on_from_what_its_river_is_saying(engine: Engine) -> None:
    river = make_river(engine)
    answer = river.chat("Go on.", limit(400))
    pieces = iter(answer)
    for _ in range(3):
        next(pieces)
    stream = river.spawn("find one")
    stream.result(60)
    answer.cancel()
    answer.text()
    *before, user, said, task, thought = stream.messages
    assert [message["role"] for message in before] == ["system", "user", "assistant"]
    assert user == {"role": "user", "content": "Go on."}
    assert river.messages[-1]["content"].startswith(said["content"])
    assert len(said["content"]) >= 3
    assert (task["content"], thought["content"]) == ("find one", "It is blue.")


def test_a_role_goes_before_the_task_and_a_kind_around_it(engine: Engine) -> None:
    river = make_river(engine)
    stream = river.spawn("find one", role="You are a finder.", kind="SEARCH")
    thought = stream.result(60)
    assert stream.messages[-2]["content"] == (
        "You are a finder.\nLook in what was said so far for this: find one"
    )
    assert (thought.text, thought.kind) == ("It is blue.", "SEARCH")


def test_a_stream_can_be_asked_on(engine: Engine) -> None:
    """It reads all of the text then: the landmarks are gone. Its thought stays what it was."""
    river = make_river(engine)
    stream = river.spawn("find one")
    thought = stream.result(60)
    kept = thought.to_dict()
    answer = stream.chat("Are you sure?", limit(5))
    assert len(answer.text()) == 5
    assert answer.stats.finish_reason == "length"
    rendered = engine.model.tokenizer.render(stream.messages[:-1])
    assert answer.stats.num_prompt_tokens == len(
        engine.model.tokenizer.encode(rendered, first=True)
    )
    assert NOTES in rendered
    assert thought.to_dict() == kept
    stream.close()


def test_a_stream_cannot_be_asked_before_its_thought_is_decided(engine: Engine) -> None:
    """Not while it waits, thinks or is judged: its KV goes with the verdict."""
    river = make_river(engine, threshold=None, sampling=limit(400))
    answer = river.chat("Go on.", limit(3000))
    next(iter(answer))
    stream = river.spawn("find one")
    refused = []
    while not stream.ended.is_set():
        for act in (lambda: stream.chat("And?"), lambda: stream.tell("a", "b"), stream.reset):
            try:
                act()
            except StateError as error:
                refused.append(str(error))
            else:
                assert stream.ended.is_set()
    assert len(refused) > 3
    assert all("not decided yet" in x or "still answering" in x for x in refused)
    assert stream.result(60).status in ("accepted", "rejected")
    answer.cancel()
    answer.text()


# How they end.


def test_accepted_rejected_and_in_vain(engine: Engine, statuses: list[Any]) -> None:
    river = make_river(engine, threshold=None)
    first, second, third = (river.spawn(task) for task in ("find one", "say nothing", "find one"))
    assert first.result(60).status == "accepted"
    assert (second.result(60).status, second.thought.reason) == ("rejected", "it said nothing")
    assert (third.result(60).status, third.thought.reason) == ("rejected", "already known")
    assert sorted(after for _, after in statuses) == sorted(
        ["waiting", "thinking"] * 3 + ["accepted", "rejected", "rejected"]
    )
    assert river.thoughts == [first.thought, second.thought, third.thought]
    assert river.cortex is not None
    assert river.cortex.streams == []
    assert [stream.name for stream in (first, second, third)] == [
        f"{river.name}/{i}" for i in (1, 2, 3)
    ]
    assert first.thought.think_s > 0 < first.thought.inject_s
    assert first.thought.score is not None


def test_a_gate_without_mercy(engine: Engine) -> None:
    river = make_river(engine, threshold=1.0)
    before = logits_after(river, NEXT)
    thought = river.spawn("find one").result(60)
    assert (thought.status, thought.reason) == ("rejected", "unlike what the River is about")
    assert thought.score is not None
    assert -1 <= thought.score < 1
    np.testing.assert_array_equal(logits_after(river, NEXT), before)


def test_a_short_river_takes_thoughts_too(engine: Engine) -> None:
    """Also one that had spoken before anybody was to think for it."""
    river = engine.agent(system="Short.", sampling=limit(3))
    river.chat("Well?").text()
    river.think_with(CortexConfig(threshold=None))
    assert river.spawn("find one").result(60).status == "accepted"


def test_a_river_without_any_context(engine: Engine) -> None:
    thought = engine.agent().spawn("find one").result(60)
    assert (thought.status, thought.text) == ("rejected", "It is blue.")
    assert "not in memory" in thought.reason


def test_closed_or_cancelled_while_thinking(engine: Engine) -> None:
    river = make_river(engine, sampling=limit(3000))
    closed, cancelled = river.spawn("Think of one."), river.spawn("Think of two.")
    until(engine, lambda: len(cancelled.thought.text) > 3)
    with pytest.raises(StateError, match=r"/2' is still thinking after 0\.01 s"):
        cancelled.result(0.01)
    closed.close()
    assert cancelled.generation is not None
    cancelled.generation.cancel()
    for stream in (closed, cancelled):
        assert (stream.result(60).status, stream.thought.reason) == ("cancelled", "")
        assert len(stream.thought.text) > 0
    assert resident(engine) == [river.name]


def begin(cortex: Cortex, task: str) -> Stream:
    """On the engine's thread: a Stream that has landmarks, and waits to be queued."""
    stream = cortex._start(Thought(task), cortex.router)
    for _ in range(10):
        if stream.generation is None:
            cortex._prepare()
    assert stream.generation
    return stream


@pytest.mark.parametrize("stop", [Stream.close, lambda stream: stream.owner._stop(stream)])
@pytest.mark.parametrize("has_begun", [False, True])
def test_cancelled_before_it_is_queued(engine: Engine, stop: Any, has_begun: bool) -> None:
    """Also while it waits for landmarks."""
    river = make_river(engine)
    cortex = river.cortex
    assert cortex

    def start() -> Stream:
        if has_begun:
            stream = begin(cortex, "find one")
        else:
            stream = cortex._start(Thought("find one"), cortex.router)
        stop(stream)
        return stream

    stream = engine.call(start)
    assert (stream.result(60).status, stream.thought.text) == ("cancelled", "")
    assert (stream.generation is not None) == has_begun
    if stream.generation:
        assert stream.generation.text() == ""
    assert resident(engine) == [river.name]


def before_it_is_judged(engine: Engine, stream: Stream, act: Callable[[], Any]) -> None:
    """Does something between a Stream's last word and the gate's."""

    def run() -> None:
        while stream._current:
            engine.core.step()
        assert engine.core._jobs
        assert not stream.thought.ended
        act()

    engine.call(run)


def test_closed_after_its_last_word(engine: Engine) -> None:
    river = make_river(engine, threshold=None)
    stream = engine.call(lambda: begin(river.think_with(), "find one"))
    before_it_is_judged(engine, stream, stream.close)
    assert (stream.result(60).status, stream.thought.text) == ("cancelled", "It is blue.")
    assert context_of(river).attached == []


def test_the_end_of_the_river_ends_all(engine: Engine) -> None:
    for end in (Agent.close, Agent.reset):
        river = make_river(engine, sampling=limit(3000))
        streams = [river.spawn(f"Think of {i}.") for i in range(3)]
        until(engine, lambda streams=streams: streams[1].thought.status == "thinking")
        end(river)
        assert [stream.result(60).status for stream in streams] == ["cancelled"] * 3
        until(engine, lambda river=river: river.thoughts == [])
        assert resident(engine) == []


def test_the_end_of_the_engine_ends_all() -> None:
    """Also a thought that is complete and waits to be judged."""
    with scripted.engine(SCRIPT) as engine:
        river = make_river(engine, threshold=None, sampling=limit(3000))
        long = river.spawn("Think of it.")
        done = engine.call(lambda: begin(river.think_with(), "find one"))
        before_it_is_judged(engine, done, lambda: engine._inbox.put(None))
        assert done.result(60).status == "accepted"
        assert long.result(60).status == "failed"
        assert long.thought.reason == "the engine was closed"
        with pytest.raises(ClosedError):
            river.spawn("find one")


# Wrong calls.


def test_what_cannot_be_asked_for(engine: Engine) -> None:
    river = make_river(engine, sampling=limit(3000))
    with pytest.raises(PromptError, match="the task is empty"):
        river.spawn(" \n")
    with pytest.raises(ConfigError, match="mode must be forward or graft, got 'paste'"):
        river.spawn("find one", mode="paste")
    assert river.thoughts == []
    stream = river.spawn("Think of it.")
    with pytest.raises(StateError, match=r"cannot change how Streams think .* 1 are thinking"):
        river.think_with(CortexConfig())
    stream.close()
    stream.result(60)
    assert river.think_with(CortexConfig(threshold=None)).thoughts == [stream.thought]
    river.close()
    with pytest.raises(ClosedError, match=r"cannot spawn: agent .* is closed"):
        river.spawn("find one")


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "paste"},
        {"max_share": 0.0},
        {"max_share": 1.1},
        {"threshold": 1.5},
        {"kinds": ("TWO WORDS",)},
    ],
)
def test_configurations_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        CortexConfig(**wrong)
    assert RouterLimits().max_depth == 1


def test_the_gate_counts_every_token_of_a_river_once(engine: Engine) -> None:
    """However many thoughts are judged: it would know that River better and better."""
    river = make_river(engine)
    assert river.cortex
    seen, counts = river.cortex.gate.seen, []
    for _ in range(3):
        assert river.spawn("find one").result(60).status == "rejected"
        counts.append(engine.call(lambda: seen.count))
    assert counts[0] == counts[1] == counts[2]
    river.chat("Tell me more.").text()
    assert river.spawn("find one").result(60).status == "rejected"
    held = context_of(river).num_own
    assert counts[2] < engine.call(lambda: seen.count) < counts[2] + held
