"""One engine, many agents: the batch, the budget, the order, and models that cannot run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgecortex import Agent, Engine, EngineConfig, SamplingParams
from edgecortex.errors import BudgetError, ClosedError, ModelError
from tests import tiny
from tests.scripted import until

BUDGET = 24_000_000  # two agents of 150 tokens in full precision, not three
JAPAN = "What is the capital of Japan?"
TOKYO = "The capital of Japan is Tokyo."
NOTES = "The river is wide and slow. " * 18
PROMPTS = [JAPAN, "Count from one to ten.", "Tell me about rivers. " + NOTES, "Name a colour."]


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> Iterator[Engine]:
    config = EngineConfig(kv_format="fp", kv_budget_bytes=BUDGET, use_store=False)
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


def alone(engine: Engine, prompt: str, sampling: SamplingParams) -> str:
    agent = engine.agent(sampling=sampling)
    text = agent.chat(prompt).text()
    agent.close()
    return text


def has_kv(agent: Agent) -> bool:
    return bool(agent.engine.call(lambda: agent in agent.engine.core.contexts._contexts))


# The batch.


def test_greedy_in_a_batch_is_greedy_alone(engine: Engine) -> None:
    expected = [alone(engine, prompt, limit(10)) for prompt in PROMPTS]
    answers = [engine.agent(sampling=limit(10)).chat(prompt) for prompt in PROMPTS]
    assert [answer.text() for answer in answers] == expected


def test_a_seed_gives_the_same_text_beside_others(engine: Engine) -> None:
    seeded = limit(12, temperature=1.2, top_p=0.95, seed=7)
    expected = alone(engine, JAPAN, seeded)
    others = [limit(12), *(limit(12, temperature=1.0, seed=seed) for seed in (7, 8, 9)), limit(3)]
    beside = [engine.agent(sampling=sampling).chat("Tell me a story.") for sampling in others]
    assert alone(engine, JAPAN, seeded) == expected
    assert len({answer.text() for answer in beside}) == len(others)


# The budget.


def test_an_answer_over_the_budget_changes_nothing(engine: Engine) -> None:
    agent, other = (engine.agent(sampling=limit(16)) for _ in range(2))
    agent.chat(JAPAN).text()
    messages, num_tokens = agent.messages, agent.num_tokens
    beside = other.chat(JAPAN)
    answer = agent.chat(NOTES * 6)
    with pytest.raises(BudgetError, match="more than the whole budget of 24,000,000"):
        answer.text()
    assert answer.stats.finish_reason == "error"
    assert (agent.messages, agent.num_tokens) == (messages, num_tokens)
    assert beside.text() == TOKYO
    again = agent.chat(JAPAN)
    assert again.text()
    assert again.stats.num_cached_tokens >= num_tokens - 1


def test_a_budget_too_small_for_one_agent(smollm2: Path) -> None:
    config = EngineConfig(kv_budget_bytes=100_000)
    with pytest.raises(BudgetError, match="got 100,000; close agents or raise the budget"):
        Engine.load(str(smollm2), config=config)


def test_an_evicted_agent_goes_on_as_if_nothing_had_happened(engine: Engine) -> None:
    def first_turn(notes: str = NOTES) -> Agent:
        agent = engine.agent(system=notes, sampling=limit(12))
        agent.chat("What is this about?").text()
        return agent

    kept = first_turn()
    expected = kept.chat("Say it again.")
    expected.text()
    assert expected.stats.num_cached_tokens > 100
    kept.close()
    evicted = first_turn()
    for number in "12":  # other words from the start, so that they share nothing
        first_turn(number + NOTES)
    assert not has_kv(evicted)
    answer = evicted.chat("Say it again.")
    assert answer.text() == expected.text()
    assert answer.stats.num_cached_tokens == 0
    assert answer.stats.num_prompt_tokens == expected.stats.num_prompt_tokens


def test_a_fork_does_not_evict_its_parent(engine: Engine) -> None:
    parent, other, small = (
        engine.agent(system=text, sampling=limit(4)) for text in (NOTES, "1" + NOTES, None)
    )
    for agent in (parent, other, small):
        agent.chat("Go on.").text()
    child = parent.fork()
    assert [has_kv(agent) for agent in (parent, child, other, small)] == [True, True, False, True]


def test_a_fork_without_room_starts_cold(engine: Engine) -> None:
    parent, other = (engine.agent(sampling=limit(16)) for _ in range(2))
    parent.chat(JAPAN).text()
    big = other.chat(NOTES * 2, limit(120))  # as much as is left beside one row and a half
    next(iter(big))
    children = [parent.fork() for _ in range(3)]
    assert not all(has_kv(child) for child in children)
    big.cancel()
    assert {child.chat(JAPAN).text() for child in children} == {parent.chat(JAPAN).text()}


# Failures.


def failing(*_: Any) -> Any:
    raise RuntimeError("out of luck")


def test_a_step_that_fails_takes_down_those_in_it_and_nobody_else(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle, first, second = (engine.agent(system=NOTES, sampling=limit(8)) for _ in range(3))
    expected = [idle.chat("Go on.").text(), idle.fork().chat("Say it again.").text()]
    with monkeypatch.context() as patch:
        patch.setattr(engine.core.pool.caches[20], "attend", failing)
        for answer in [agent.chat("Go on.") for agent in (first, second)]:
            with pytest.raises(RuntimeError, match="out of luck"):
                answer.text()
            assert answer.stats.finish_reason == "error"
    engine.call(engine.core.pool.check)
    assert [len(agent.messages) for agent in (idle, first, second)] == [3, 1, 1]
    assert idle.chat("Say it again.").text() == expected[1]
    assert first.chat("Go on.").text() == expected[0]


def test_an_answer_that_cannot_begin_takes_nobody_down(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (engine.agent(sampling=limit(60)) for _ in range(2))
    going = first.chat(JAPAN)
    next(iter(going))
    recall = engine.core.contexts.recall

    def failing(agent: Agent, *more: Any) -> Any:
        if agent is second:
            raise RuntimeError("out of luck")
        return recall(agent, *more)

    monkeypatch.setattr(engine.core.contexts, "recall", failing)
    with pytest.raises(RuntimeError, match="out of luck"):
        second.chat(JAPAN).text()
    assert TOKYO in going.text()
    monkeypatch.undo()
    assert TOKYO in second.chat(JAPAN).text()


def test_an_engine_that_fails_leaves_nobody_waiting(
    smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine.load(str(smollm2)) as engine:
        answers = [engine.agent().chat(JAPAN) for _ in range(2)]
        monkeypatch.setattr(engine.core.scheduler, "schedule", failing)
        for answer in answers:
            with pytest.raises(ClosedError, match="out of luck"):
                answer.text()
        with pytest.raises(ClosedError):
            engine.agent()


# The order.


@contextmanager
def recalls(engine: Engine) -> Iterator[list[Agent]]:
    """For whom a context is looked up."""
    seen: list[Agent] = []
    recall = engine.core.contexts.recall

    def counting(agent: Agent, *more: Any) -> Any:
        seen.append(agent)
        return recall(agent, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.core.contexts, "recall", counting)
        yield seen


def test_who_does_not_fit_waits_and_a_lower_priority_number_goes_first(engine: Engine) -> None:
    running, stream, river = (
        engine.agent(system=NOTES, priority=priority, sampling=limit(150)) for priority in (0, 1, 0)
    )
    first = running.chat("Go on.")
    next(iter(first))
    later, sooner = stream.chat("Go on."), river.chat("Go on.")
    with recalls(engine) as counted:
        until(engine, lambda: first.stats.num_generated_tokens > 20)
    assert len(counted) <= 2  # who waits is not looked at again in every step
    first.cancel()
    next(iter(sooner))
    assert later.stats.num_generated_tokens == 0
    sooner.cancel()
    next(iter(later))
    later.cancel()


# Models.


def test_a_model_that_bypasses_the_cache_is_refused(
    engine: Engine, smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bypassing(path: Path) -> Any:
        model = tiny.make("llama")
        layer = model.model.layers[1].self_attn

        class Bypassing(type(layer)):  # type: ignore[misc]
            def __call__(self, x: Any, mask: Any = None, cache: Any = None) -> Any:
                return super().__call__(x, "causal", None)

        layer.__class__ = Bypassing
        return model

    answer = engine.agent(sampling=limit(16)).chat(JAPAN)
    monkeypatch.setattr("edgecortex.engine.load_model", bypassing)
    with pytest.raises(ModelError, match="attend through its cache"):
        Engine.load(str(smollm2), config=EngineConfig(kv_format="kv4"))
    assert answer.text() == TOKYO
