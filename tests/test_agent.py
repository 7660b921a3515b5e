"""Agents on the real model: forks, stops, cancels, streams, and errors that change nothing."""

import asyncio
import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgecortex import Agent, Engine, EngineConfig, Generation, SamplingParams
from edgecortex.errors import ClosedError, PromptError, StateError
from edgecortex.kv.context import Context

JAPAN = "What is the capital of Japan?"
TOKYO = "The capital of Japan is Tokyo."
STORY = "Write a long story about a dog."
NOTES = "The river is wide and slow. " * 20


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> Iterator[Engine]:
    config = EngineConfig(kv_format="fp", context_length=256)
    with Engine.load(str(smollm2), config=config) as engine:
        yield engine


@pytest.fixture(autouse=True)
def nothing_is_left(engine: Engine) -> Iterator[None]:
    """Whatever a test does, the pool's books agree and closed agents hold nothing."""
    yield
    engine.call(engine.core.pool.check)
    for agent in engine.call(lambda: list(engine.core.contexts._contexts)):
        agent.close()
    assert engine.call(lambda: engine.core.pool.used_bytes) == 0


def limit(max_tokens: int, **more: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, **more)


def context_of(agent: Agent) -> Context:
    return agent.engine.call(lambda: agent.engine.core.contexts._contexts[agent])


def state_of(agent: Agent) -> dict[str, Any]:
    return copy.deepcopy(agent.conversation.__dict__ | {"tokenizer": None, "_before": None})


# Forks.


def test_a_fork_shares_sealed_kv_and_goes_its_own_way(engine: Engine) -> None:
    parent = engine.agent("parent", system=NOTES, sampling=limit(8), priority=2)
    parent.chat(JAPAN).text()
    before, used = state_of(parent), engine.call(lambda: engine.core.pool.used_bytes)
    child = parent.fork("child")
    assert (child.name, child.sampling, child.priority) == ("child", parent.sampling, 2)
    assert state_of(child) == before
    grown = engine.call(lambda: engine.core.pool.used_bytes) - used
    assert grown == engine.core.pool.row_nbytes
    assert context_of(child).segments == context_of(parent).segments != []
    answers = [agent.chat("And of France?") for agent in (parent, child)]
    assert answers[0].text() == answers[1].text()
    assert answers[1].stats.num_cached_tokens == answers[0].stats.num_cached_tokens > 100
    child.chat("Thank you.").text()
    assert len(child.messages) == len(parent.messages) + 2
    parent.close()
    assert child.chat("Good bye.").text()


def test_a_fork_of_an_agent_without_kv(engine: Engine) -> None:
    child = engine.agent(sampling=limit(16)).fork()
    assert child.name.startswith("agent-")
    assert child.chat(JAPAN).text() == TOKYO


def test_a_fork_of_a_closed_agent(engine: Engine) -> None:
    agent = engine.agent("gone")
    agent.close()
    with pytest.raises(ClosedError, match="cannot fork: agent 'gone' is closed"):
        agent.fork()


def test_an_agent_that_answers_can_do_nothing_else(engine: Engine) -> None:
    agent = engine.agent("busy", sampling=limit(8))
    answer = agent.chat(STORY)
    for action in (agent.fork, agent.reset, lambda: agent.chat(JAPAN)):
        with pytest.raises(StateError, match="agent 'busy' is still answering"):
            action()
    assert answer.text().startswith("Once")
    assert agent.fork().messages == agent.messages


# Cancelling and closing.


def test_cancel_in_the_middle_leaves_others_alone(engine: Engine) -> None:
    stopped, other = (engine.agent(sampling=limit(100)) for _ in range(2))
    answer, beside = stopped.chat(STORY), other.chat(JAPAN)
    pieces = iter(answer)
    shown = "".join(next(pieces) for _ in range(3))
    answer.cancel()
    with pytest.raises(StateError, match="being cancelled already"):
        answer.cancel()
    shown += "".join(pieces)
    assert answer.stats.finish_reason == "cancelled"
    assert stopped.messages[-1] == {"role": "assistant", "content": shown}
    with pytest.raises(StateError, match="complete"):
        answer.cancel()
    assert beside.text() == TOKYO
    assert stopped.chat(JAPAN, limit(16)).stats.num_dropped_messages == 0


def test_closing_an_agent_ends_its_answer(engine: Engine) -> None:
    agent = engine.agent()
    answer = agent.chat(STORY)
    next(iter(answer))
    agent.close()
    agent.close()
    answer.text()
    assert answer.stats.finish_reason == "cancelled"
    with pytest.raises(ClosedError, match="cannot chat"):
        agent.chat(JAPAN)


def test_a_closed_engine_changes_nothing(smollm2: Path) -> None:
    with Engine.load(str(smollm2)) as engine:
        agent, busy = engine.agent(), engine.agent()
        assert agent.chat(JAPAN).text() == TOKYO
        answer = busy.chat(STORY)
    before = state_of(agent)
    with pytest.raises(ClosedError, match="the engine was closed"):
        answer.text()
    assert busy.messages == []
    for action in (lambda: agent.chat("More."), agent.fork, engine.agent):
        with pytest.raises(ClosedError, match="the engine is closed"):
            action()
    assert state_of(agent) == before
    agent.close()
    engine.close()


# Prompts and ends.


def test_a_prompt_over_the_limit_changes_nothing(engine: Engine) -> None:
    agent, other = (engine.agent(sampling=limit(16)) for _ in range(2))
    agent.chat(JAPAN).text()
    before, beside = state_of(agent), other.chat(JAPAN)
    with pytest.raises(PromptError, match="expected at most 240 tokens"):
        agent.chat(NOTES * 2)
    assert state_of(agent) == before
    assert beside.text() == TOKYO
    assert agent.chat("And its food?").stats.num_dropped_messages == 0


def test_an_answer_ends_where_the_context_does(engine: Engine) -> None:
    agent = engine.agent(system=NOTES + NOTES[:56], sampling=limit(200))
    answer = agent.chat("Continue the notes with many words about the river, and do not stop.")
    answer.text()
    assert answer.stats.finish_reason == "context"
    assert agent.num_tokens == engine.context_length == 256


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (("an is To",), "The capital of Jap"),
        (("Tokyo", "is", "!"), "The capital of Japan "),
        (("Japan was", "Tokyo?", "x"), TOKYO),
    ],
)
def test_stop_strings_cross_token_boundaries(
    engine: Engine, stop: tuple[str, ...], text: str
) -> None:
    agent = engine.agent(sampling=limit(20, stop=stop))
    answer = agent.chat(JAPAN)
    pieces = list(answer)
    assert "".join(pieces) == answer.text() == text
    assert answer.stats.finish_reason == "stop"
    assert agent.messages[-1]["content"] == text
    again = agent.chat("Go on.")
    again.text()
    rendered = agent.conversation.tokenizer.render(agent.messages[:-1])
    whole = agent.conversation.tokenizer.encode(rendered, first=True)
    assert again.stats.num_prompt_tokens == len(whole)


# Streams.


def test_two_answers_stream_in_one_event_loop(engine: Engine) -> None:
    order: list[str] = []

    async def read(name: str, answer: Generation) -> str:
        text = ""
        async for piece in answer:
            order.append(name)
            text += piece
        return text

    async def both() -> list[str]:
        answers = [engine.agent(sampling=limit(12)).chat(STORY) for _ in "ab"]
        return await asyncio.gather(*map(read, "ab", answers))

    first, second = asyncio.run(both())
    assert first == second != ""
    switches = sum(x != y for x, y in itertools.pairwise(order))
    assert switches > 4


def test_an_event_loop_that_is_gone_does_not_disturb_the_engine(engine: Engine) -> None:
    async def peek(answer: Generation) -> str:
        async for piece in answer:
            return piece
        return ""

    answer = engine.agent(sampling=limit(8)).chat(STORY)
    first = asyncio.run(peek(answer))
    assert answer.text().startswith(first)
    assert answer.stats.num_generated_tokens == 8


def test_an_error_ends_an_async_stream() -> None:
    answer = Generation()
    answer.add_token(1, "a")
    answer.error = ValueError("broken")
    answer.finish("error")

    read: list[str] = []

    async def follow() -> None:
        async for piece in answer:
            read.append(piece)

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(follow())
    assert read == ["a"]
