"""KV in memory and on disk: shared, spilled, and back."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecortex import Agent, Engine, EngineConfig, SamplingParams
from edgecortex.bench.text import english

SHORT = SamplingParams(max_tokens=6)


def notes(number: int, length: int = 900) -> str:
    """Text that begins in its own way."""
    start = 1500 * number
    return f"{number}. " + english()[start : start + length]


@pytest.fixture
def engine(smollm2: Path, tmp_path: Path) -> Iterator[Engine]:
    config = EngineConfig(kv_budget_bytes=24_000_000, store_path=tmp_path)
    with Engine.load(str(smollm2), config=config) as engine:
        yield engine
        engine.call(engine.core.pool.check)


def first_answer(engine: Engine, number: int) -> tuple[Agent, str]:
    agent = engine.agent(system=notes(number), sampling=SHORT)
    return agent, agent.chat("What is this about?").text()


def test_more_agents_than_fit_take_turns(engine: Engine, smollm2: Path) -> None:
    numbers = range(10)
    with Engine.load(str(smollm2), config=EngineConfig(use_store=False)) as roomy:
        expected = []
        for number in numbers:
            agent, text = first_answer(roomy, number)
            expected.append((text, agent.chat("Say more.").text()))
    agents = [first_answer(engine, number) for number in numbers]
    again = [(text, agent.chat("Say more.")) for agent, text in agents]
    assert [(text, answer.text()) for text, answer in again] == expected
    from_disk = [answer.stats.num_disk_tokens for _, answer in again]
    fresh = [answer.stats.num_prompt_tokens - answer.stats.num_cached_tokens for _, answer in again]
    assert sum(n > 100 for n in from_disk) >= 5  # of ten, four fit
    assert max(fresh) < 30  # nobody reads its notes again
    assert engine.store_problem is None


def test_a_new_agent_starts_from_anothers_blocks(engine: Engine) -> None:
    one, _ = first_answer(engine, 1)
    held = one.kv_nbytes
    used = engine.call(lambda: engine.core.pool.used_bytes)
    other = engine.agent(system=notes(1), sampling=SHORT)
    answer = other.chat("Who wrote it?")
    answer.text()
    assert answer.stats.num_memory_tokens > 150
    assert answer.stats.num_disk_tokens == 0
    more = engine.call(lambda: engine.core.pool.used_bytes) - used
    assert more < held / 2 + engine.call(lambda: engine.core.pool.row_nbytes)


def test_prompts_that_come_together_share_what_they_begin_with(engine: Engine) -> None:
    agents = [engine.agent(system=notes(2), sampling=SHORT) for _ in range(4)]
    answers = [agent.chat(f"Question {i}?") for i, agent in enumerate(agents)]
    for answer in answers:
        answer.text()
    assert answers[0].stats.num_cached_tokens == 0
    assert all(answer.stats.num_memory_tokens > 150 for answer in answers[1:])


def test_nothing_is_shared_if_that_is_not_wanted(smollm2: Path) -> None:
    config = EngineConfig(use_store=False, share_prefixes=False)
    with Engine.load(str(smollm2), config=config) as engine:
        agents = [engine.agent(system=notes(2), sampling=SHORT) for _ in range(3)]
        answers = [agent.chat("What is this about?") for agent in agents]
        assert all(answer.text() for answer in answers)
        assert [answer.stats.num_cached_tokens for answer in answers] == [0, 0, 0]
        again = agents[0].chat("Say more.")
        again.text()
        assert again.stats.num_memory_tokens > 150  # its own


def test_a_later_run_starts_from_what_an_earlier_one_read(smollm2: Path, tmp_path: Path) -> None:
    config = EngineConfig(store_path=tmp_path)
    texts, disk = [], []
    for _ in range(2):
        with Engine.load(str(smollm2), config=config) as engine:
            agent = engine.agent(system=notes(3), sampling=SHORT)
            answer = agent.chat("What is this about?")
            texts.append(answer.text())
            disk.append(answer.stats.num_disk_tokens)
    assert texts[0] == texts[1]
    assert disk[0] == 0
    assert disk[1] > 150


def test_without_a_store_nothing_is_kept(smollm2: Path, tmp_path: Path) -> None:
    config = EngineConfig(store_path=tmp_path / "store", use_store=False)
    with Engine.load(str(smollm2), config=config) as engine:
        first_answer(engine, 4)
    assert not (tmp_path / "store").exists()


def test_a_damaged_block_costs_a_prefill_and_no_more(smollm2: Path, tmp_path: Path) -> None:
    config = EngineConfig(store_path=tmp_path)
    with Engine.load(str(smollm2), config=config) as engine:
        agent, _ = first_answer(engine, 5)
        agent.save("five").result()
        expected = agent.chat("Say more.").text()
    blocks = sorted((tmp_path / "blocks").glob("*.block.*"), key=lambda p: p.stat().st_mtime)
    data = bytearray(blocks[1].read_bytes())
    data[-1] ^= 1
    blocks[1].write_bytes(data)
    with Engine.load(str(smollm2), config=config) as engine:
        agent, came = engine.restore("five", sampling=SHORT)
        assert came.num_disk_tokens < came.num_tokens - 64
        assert "is read again" in came.notice
        assert agent.chat("Say more.").text() == expected
        assert [p.name for p in (tmp_path / "quarantine").iterdir()] == [blocks[1].name]
        agent.save("five").result()
        assert engine.store.verify_session("five")["num_stored"] == agent.num_tokens - 1


def test_blocks_deleted_under_a_live_session_are_written_again(engine: Engine) -> None:
    agent, _ = first_answer(engine, 6)
    agent.save("six").result()
    for path in engine.store.blocks.iterdir():
        path.unlink()
    agent.chat("Say more.").text()
    agent.save("six").result()
    found = engine.store.verify_session("six")
    assert found["num_stored"] == found["num_kv_tokens"] > 150


def test_an_agent_whose_spilled_blocks_are_deleted_reads_again(
    engine: Engine, smollm2: Path
) -> None:
    """It says what it would have said; so do those that had to make room for it."""
    with Engine.load(str(smollm2), config=EngineConfig(use_store=False)) as roomy:
        agent, _ = first_answer(roomy, 0)
        expected = agent.chat("Say more.").text()
    agents = [first_answer(engine, number)[0] for number in range(10)]
    assert engine.call(lambda: engine.core.contexts.get(agents[0])) is None
    engine.call(lambda: engine.core.contexts.archive.wait())
    for path in engine.store.blocks.iterdir():
        path.unlink()
    answer = agents[0].chat("Say more.")
    assert answer.text() == expected
    assert answer.stats.num_cached_tokens < 100 < answer.stats.num_prompt_tokens
    assert all(agent.chat("Say more.").text() for agent in agents[1:])
    assert engine.store.verify().damaged == []


def test_a_sliding_window_goes_on_from_where_a_prompt_ended(gemma3: Path, tmp_path: Path) -> None:
    config = EngineConfig(store_path=tmp_path)
    prompt = english()[:3500]
    answers = []
    for _ in range(2):
        with Engine.load(str(gemma3), config=config) as engine:
            answer = engine.agent(sampling=SamplingParams(max_tokens=70)).chat(prompt)
            answers.append((answer.text(), answer.stats))
    assert answers[0][0] == answers[1][0]
    stats = answers[1][1]
    assert stats.num_prompt_tokens - stats.num_disk_tokens <= 65


def test_another_format_reads_the_text_again(smollm2: Path, tmp_path: Path) -> None:
    with Engine.load(str(smollm2), config=EngineConfig(store_path=tmp_path)) as engine:
        agent, _ = first_answer(engine, 7)
        agent.save("seven").result()
    config = EngineConfig(store_path=tmp_path, kv_format="kv8")
    with Engine.load(str(smollm2), config=config) as engine:
        agent, came = engine.restore("seven", sampling=SHORT)
        assert (came.num_disk_tokens, came.same_model, came.same_format) == (0, True, False)
        assert "another format" in came.notice
        assert agent.chat("Say more.").text()
        assert len(agent.messages) == 5


def test_another_model_reads_the_text_again(smollm2: Path, gemma3: Path, tmp_path: Path) -> None:
    config = EngineConfig(store_path=tmp_path)
    with Engine.load(str(smollm2), config=config) as engine:
        agent, _ = first_answer(engine, 8)
        agent.save("eight").result()
        told = agent.messages
    with Engine.load(str(gemma3), config=config) as engine:
        agent, came = engine.restore("eight", sampling=SHORT)
        assert (came.num_disk_tokens, came.same_model) == (0, False)
        assert "another model" in came.notice
        assert agent.messages == told
        assert agent.chat("Say more.").text()
