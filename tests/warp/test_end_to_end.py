"""A River and its Streams on a real model, as a user has them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgecortex import Agent, Engine, EngineConfig, SamplingParams
from edgecortex.warp.cortex import CortexConfig
from edgecortex.warp.gate import THRESHOLD
from edgecortex.warp.stream import Thought
from tests.scripted import logits_after

REPORT = (
    "Report of the harbour master. The ferry to the island was late on Monday, because its engine "
    "had to be repaired at sea. On Tuesday a storm closed the harbour from noon until eight in "
    "the evening, and eleven fishing boats stayed outside. All of them came back safely. On "
    "Wednesday two men from the city measured the depth of the channel, and found that sand has "
    "made it four feet shallower than it was last year. They advise to dredge it before winter. "
    "On Thursday the mayor visited, and promised the money for that. On Friday nothing happened. "
    "The weekend was warm, and three hundred visitors took the boat to the lighthouse, which was "
    "opened for the first time since it was painted red. The school asks that boats keep away from "
    "the beach in the mornings, when the children learn to swim. "
)
QUESTION = "What does the report say about the channel of the harbour?"
UNRELATED = "Write the first line of a poem about a computer that dreams of numbers."


@pytest.fixture(scope="module")
def engine(
    smollm2: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Engine]:
    store = tmp_path_factory.mktemp("store")
    config = EngineConfig(kv_format=getattr(request, "param", "kv4"), store_path=store)
    with Engine.load(str(smollm2), config=config) as engine:
        yield engine


def limit(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens)


def told(engine: Engine) -> Agent:
    agent = engine.agent("harbour", system=REPORT, sampling=limit(24))
    agent.chat("What is this report about?").text()
    return agent


@pytest.mark.parametrize("engine", ["kv4", "fp"], indirect=True)
def test_two_streams_one_thought_and_an_answer(engine: Engine) -> None:
    river, plain = told(engine), told(engine)
    assert river.num_tokens > 200
    river.think_with(CortexConfig(sampling=limit(24)))
    before = (list(river.messages), list(river.conversation.token_ids))
    streams = [
        river.spawn("Repeat what the report says about the channel."),
        river.spawn(UNRELATED, role="You are a poet.", mode="graft"),
    ]
    thoughts = [stream.result(120) for stream in streams]
    related, other = thoughts
    assert (related.status, other.status) == ("accepted", "rejected")
    assert related.score is not None
    assert other.score is not None
    assert related.score > THRESHOLD > other.score
    assert other.reason == "unlike what the River is about"
    assert (list(river.messages), list(river.conversation.token_ids)) == before
    after = [logits_after(agent, QUESTION)[-1] for agent in (river, plain, told(engine))]
    # Whatever rounds differently ends as other codes in 4 bits, and grows from layer to layer.
    noise = np.abs(after[2] - after[1]).max()
    times = 4 if engine.call(lambda: engine.core.pool.format.bits) is None else 2
    assert np.abs(after[0] - after[1]).max() > max(0.5, times * noise)
    text = river.chat(QUESTION).text()
    assert river.messages[-2:] == [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": text},
    ]
    check_record(river, streams[0].name)
    check_session(engine, river)


def check_record(river: Agent, first: str) -> None:
    """Everything is known of every thought."""
    related, other = river.thoughts
    assert first == "harbour/1"
    for thought, kind in ((related, "forward"), (other, "graft")):
        assert (thought.origin, thought.kind, thought.mode) == ("asked", "TASK", kind)
        assert thought.text.strip() == thought.text != ""
        assert thought.think_s > 0
        assert thought.inject_s > 0
    assert (related.role, other.role) == ("", "You are a poet.")
    assert (related.reason, other.id, other.num_tokens) == ("", "", 0)
    assert len(related.id) == 32
    assert related.start == -related.num_tokens < 0
    assert related.at > 200


def check_session(engine: Engine, river: Agent) -> None:
    """It is kept with the session, and what was restored says the same."""
    river.save("harbour").result()
    again, came = engine.restore("harbour", sampling=limit(24))
    assert came.notice == ""
    assert [t.id for t in again.thoughts] == [river.thoughts[0].id]
    question = "And what was promised?"
    assert again.chat(question).text() == river.chat(question).text()
    again.take_back(river.thoughts[0].id[:4])
    assert again.chat("Thank you.").text()
    for agent in (again, river):
        agent.close()


def test_a_planned_question(engine: Engine) -> None:
    """The answer waits for its Streams, and goes on from the KV that the question was read to."""
    river = told(engine)
    cortex = river.think_with(CortexConfig(threshold=None, sampling=limit(12)))
    tasks = [Thought("Name the day of the storm."), Thought("Who visited?", role="A reporter")]
    answer = cortex.ask(QUESTION, tasks)
    text = answer.text()
    assert [thought.status for thought in river.thoughts] == ["accepted"] * 2
    assert answer.stats.num_generated_tokens == 24
    assert text == river.messages[-1]["content"]
    context = engine.call(lambda: engine.core.contexts.get(river))
    assert [laid.at for laid in context.attached] == [answer.stats.num_prompt_tokens - 1] * 2
    assert np.all(np.diff([laid.segment.start for laid in context.attached]) < 0)
    river.close()
