"""Prompts that begin alike, where layers slide a window and let go of what lies before it."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgecortex import Agent, Engine
from edgecortex.errors import StoreError
from tests import scripted
from tests.scripted import limit, until

NOTES = "The river is wide and slow, and the boats are late again. " * 9
SHARED = 4 + 64 * ((len(NOTES) - 4) // 64)  # tokens, in the sinks and whole blocks
SHORT = limit(4)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with scripted.engine(kind="gemma3_text", folder=tmp_path) as engine:
        yield engine
        engine.call(engine.core.pool.check)
        assert engine.store_problem is None


def question(name: str) -> str:
    """Longer than a window and some blocks."""
    return f"{name}. " + "What is it to you? " * 15


def expected(text: str) -> str:
    with scripted.engine(kind="gemma3_text") as alone:
        return alone.agent(system=NOTES, sampling=SHORT).chat(text).text()


def read_anew(engine: Engine, text: str) -> int:
    """How many tokens a new agent with the notes reads; it says what it would alone."""
    agent = engine.agent(system=NOTES, sampling=SHORT)
    answer = agent.chat(text)
    assert answer.text() == expected(text)
    agent.close()
    engine.call(engine.core.contexts.archive.wait)
    return answer.stats.num_prompt_tokens - answer.stats.num_cached_tokens


def test_the_third_of_those_that_begin_alike_reads_only_its_own(engine: Engine) -> None:
    """The second finds out where the first went on in another way."""
    first, second, third = (read_anew(engine, question(i)) for i in "abc")
    assert first == second > SHARED
    assert third == first - SHARED


def test_another_run_begins_there_too(tmp_path: Path) -> None:
    counts = []
    for name in "abcd":
        with scripted.engine(kind="gemma3_text", folder=tmp_path) as engine:
            counts.append(read_anew(engine, question(name)))
    assert counts[0] == counts[1] > SHARED
    assert counts[2] == counts[3] == counts[0] - SHARED


def together(engine: Engine, num_cancelled: int = 0) -> list[int]:
    """How many tokens agents read who are asked at once; those that are not cancelled say what
    they would alone."""
    questions = [question(name) for name in "abcde"]
    agents = [engine.agent(system=NOTES, sampling=SHORT) for _ in questions]
    asked = list(zip(agents, questions, strict=True))
    answers = engine.call(lambda: [agent.chat(text) for agent, text in asked])
    for answer in answers[:num_cancelled]:
        answer.cancel()
    kept = list(zip(answers, questions, strict=True))[num_cancelled:]
    assert [answer.text() for answer, _ in kept] == [expected(text) for _, text in kept]
    stats = [answer.stats for answer, _ in kept]
    return [each.num_prompt_tokens - each.num_cached_tokens for each in stats]


def test_those_that_come_together_read_it_once(engine: Engine) -> None:
    first, *others = together(engine)
    assert first > SHARED
    assert set(others) == {first - SHARED}


def test_others_wait_until_it_can_be_read(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    put = engine.store.put

    def slowly(entries: Any) -> int:
        time.sleep(0.3)
        return put(entries)

    monkeypatch.setattr(engine.store, "put", slowly)
    first, *others = together(engine)
    assert set(others) == {first - SHARED}


def test_others_do_not_wait_for_one_that_is_cancelled(engine: Engine) -> None:
    read = together(engine, num_cancelled=1)
    assert sum(count > SHARED for count in read) <= 1


def most_readers(engine: Engine, patch: pytest.MonkeyPatch) -> int:
    """How many read the notes at the same time at most, of those that come together."""
    found, scheduler = [0], engine.core.scheduler
    observe = scheduler.observe

    def observed(*args: Any) -> None:
        found.append(sum(request.context.num_own < SHARED for request in scheduler.running))
        observe(*args)

    patch.setattr(scheduler, "observe", observed)
    together(engine)
    return max(found)


def test_without_a_store_nobody_waits(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert most_readers(engine, monkeypatch) == 1
    with scripted.engine(kind="gemma3_text") as without:
        assert most_readers(without, monkeypatch) > 1


def test_a_store_that_fails_costs_a_prefill(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts = engine.core.contexts
    save_fork = contexts.save_fork

    def fail(*_: Any) -> None:
        raise MemoryError

    def failing(agent: Agent) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(contexts.archive, "save", fail)
            save_fork(agent)

    monkeypatch.setattr(contexts, "save_fork", failing)
    assert min(together(engine)) > SHARED
    assert isinstance(engine.store_problem, StoreError)
    engine.core.contexts.archive.problem = None


def test_one_that_is_not_stored_is_no_obstacle(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.core, "_save_forks", lambda batch: None)
    assert min(together(engine)) > SHARED


def test_nobody_else_waits_for_the_disk(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is speaking goes on while a fork is written."""
    put, bystander, gone_on = engine.store.put, engine.agent(), list[bool]()
    speech = bystander.chat("Speak.", limit(2000))

    def wait(entries: Any) -> int:
        if engine.core.contexts._forks:
            reached = len(speech.token_ids) + 10
            end = time.monotonic() + 20
            while len(speech.token_ids) < reached and time.monotonic() < end:
                time.sleep(0.01)
            gone_on.append(len(speech.token_ids) >= reached)
        return put(entries)

    monkeypatch.setattr(engine.store, "put", wait)
    first, *others = together(engine)
    assert set(others) == {first - SHARED}
    assert gone_on
    assert all(gone_on)
    speech.cancel()


def test_who_goes_first_waits_for_nobody_behind(tmp_path: Path) -> None:
    with scripted.engine(kind="gemma3_text", folder=tmp_path, prefill_chunk=64) as engine:
        last, first = (engine.agent(system=NOTES, sampling=SHORT) for _ in range(2))
        last.priority = 1
        answers = [last.chat(question("a"))]

        def reads() -> bool:
            context = engine.core.contexts.get(last)
            if found := context is not None and context.num_own > 0:
                assert context.num_own < SHARED
                answers.append(first.chat(question("b")))
            return found

        until(engine, reads)
        read = []
        for answer in answers:
            answer.text()
            read.append(answer.stats.num_prompt_tokens - answer.stats.num_cached_tokens)
        assert min(read) > SHARED
