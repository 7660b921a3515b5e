"""Turns whose answers are given, and conversations that are only read."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecortex import Engine, EngineConfig, SamplingParams
from edgecortex.errors import ClosedError, PromptError, StateError, StoreError

JAPAN = "What is the capital of Japan?"
TOKYO = "The capital of Japan is Tokyo."
FRANCE = "And of France?"


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> Iterator[Engine]:
    config = EngineConfig(use_store=False, context_length=256)
    with Engine.load(str(smollm2), config=config) as engine:
        yield engine


def test_a_told_answer_counts_as_one_that_was_made(engine: Engine) -> None:
    made, told = (engine.agent(sampling=SamplingParams(max_tokens=12)) for _ in range(2))
    assert made.chat(JAPAN).text() == TOKYO
    told.tell(JAPAN, TOKYO)
    assert (told.messages, told.num_tokens) == (made.messages, made.num_tokens)
    assert told.chat(FRANCE).text() == made.chat(FRANCE).text()


def test_what_was_read_is_not_read_again(engine: Engine) -> None:
    agent = engine.agent(sampling=SamplingParams(max_tokens=4))
    assert agent.read() == 0
    agent.tell(JAPAN, TOKYO)
    told = agent.num_tokens
    assert agent.read() == told
    assert agent.read() == 0
    assert agent.num_tokens == told
    answer = agent.chat(FRANCE)
    answer.text()
    assert answer.stats.num_memory_tokens == told


def test_what_cannot_be_told_changes_nothing(engine: Engine) -> None:
    agent = engine.agent()
    for text, reply in (("", "x"), ("x", " "), ("x", "long " * 300), ("long " * 300, "x")):
        with pytest.raises(PromptError):
            agent.tell(text, reply)
        assert (agent.messages, agent.num_tokens) == ([], 0)


def test_old_turns_make_room_and_are_counted(engine: Engine) -> None:
    agent = engine.agent()
    dropped = [agent.tell(JAPAN, "The capital is Tokyo. " * 8) for _ in range(8)]
    assert dropped[0] == 0
    assert sum(dropped) == 16 - len(agent.messages) > 0


def test_a_reply_longer_than_the_context_says_so(engine: Engine) -> None:
    with pytest.raises(PromptError, match=r"the reply is too long: expected less than .* 256"):
        engine.agent().tell(JAPAN, "long " * 300)


def test_no_saving_while_an_answer_is_made_nor_without_a_store(engine: Engine) -> None:
    agent = engine.agent(sampling=SamplingParams(max_tokens=50))
    answer = agent.chat(JAPAN)
    for action in (lambda: agent.save("x"), agent.read, lambda: agent.tell("a", "b")):
        with pytest.raises(StateError, match="still answering"):
            action()
    answer.text()
    with pytest.raises(StoreError, match="sessions need a store"):
        agent.save("x")
    with pytest.raises(StoreError, match="sessions need a store"):
        engine.restore("x")
    agent.close()
    with pytest.raises(ClosedError):
        agent.read()
