"""Prompts from lines, and answers by many agents at once."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgecortex import Engine, EngineConfig, SamplingParams
from edgecortex.batch import Prompt, answer_all, read_prompts
from edgecortex.errors import ClosedError, ConfigError
from tests import scripted

DEFAULTS = SamplingParams(max_tokens=8)
JAPAN = "What is the capital of Japan?"
TOKYO = "The capital of Japan is Tokyo."


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> Iterator[Engine]:
    with Engine.load(str(smollm2), config=EngineConfig(context_length=256)) as engine:
        yield engine


def prompt(text: str, id: int = 0, **sampling: Any) -> Prompt:
    return Prompt(text, id, SamplingParams(**{"max_tokens": 8} | sampling))


# Lines.


def test_a_line_overrides_the_defaults() -> None:
    values = {
        "prompt": "a\u2028b",
        "id": "x",
        "system": "be brief",
        "max_tokens": 3,
        "temperature": 1,
        "top_p": 0.5,
        "seed": 4,
        "stop": ["x", "y"],
    }
    lines = [json.dumps(values, ensure_ascii=False), '{"prompt": "b", "stop": "z", "seed": null}']
    assert read_prompts(lines, DEFAULTS) == [
        Prompt("a\u2028b", "x", SamplingParams(1, 0.5, 3, 4, ("x", "y")), "be brief"),
        Prompt("b", 2, SamplingParams(max_tokens=8, stop=("z",))),
    ]


def test_blank_lines_count_but_are_no_prompts() -> None:
    assert [p.id for p in read_prompts(["", '{"prompt": "a"}', " ", ""], DEFAULTS)] == [2]
    assert read_prompts([], DEFAULTS) == []


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("hello", "expected a JSON object, got 'hello'"),
        ('["a"]', "expected a JSON object, got"),
        ("[" * 100_000, "expected a JSON object, got"),
        ('{"prompt": "\\ud800"}', "surrogates not allowed"),
        ('{"promt": "a"}', "unknown key 'promt': expected some of prompt, id, system"),
        ("{}", "prompt must be text that is not blank"),
        ('{"prompt": " "}', "prompt must be text that is not blank"),
        ('{"prompt": 1}', "prompt must be text, got 1"),
        ('{"prompt": "a", "id": 1.5}', "id must be text or a whole number, got 1.5"),
        ('{"prompt": "a", "seed": true}', "seed must be a whole number, got True"),
        ('{"prompt": "a", "seed": 4294967296}', "seed must be between 0 and"),
        ('{"prompt": "a", "temperature": "hot"}', "temperature must be a number, got 'hot'"),
        ('{"prompt": "a", "temperature": NaN}', "temperature must be between"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens must be at least 1"),
        ('{"prompt": "a", "stop": ["b", 1]}', "stop must be text or a list of texts"),
        ('{"prompt": "a", "stop": [""]}', "stop must be strings of at least one character"),
    ],
)
def test_a_wrong_line_is_named(line: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_prompts(['{"prompt": "fine"}', line], DEFAULTS)
    assert str(error.value).startswith("line 2: ")
    assert complaint in str(error.value)


# Answers.


def test_answers_come_in_order_whoever_is_ready_first(engine: Engine) -> None:
    prompts = [
        prompt("Write a long story about a dog.", 0, max_tokens=24),
        prompt("Count to ten.", 1, max_tokens=1),
        prompt("word " * 900, 2),
        prompt("Tell me a story.", 3, temperature=1.0, seed=5),
        prompt(JAPAN, 4, max_tokens=20),
    ]
    told: list[tuple[int, int]] = []
    most = 0

    def progress(num_answers: int, num_tokens: int) -> None:
        nonlocal most
        told.append((num_answers, num_tokens))
        most = max(most, len(engine.core.scheduler.running))

    answers = list(answer_all(engine, prompts, 2, progress))
    assert [answer.prompt for answer in answers] == prompts
    assert (answers[0].text[:4], answers[4].text) == ("Once", TOKYO)
    assert [answer.error is None for answer in answers] == [True, True, False, True, True]
    assert "the prompt is too long" in str(answers[2].error)
    counts = [a.stats.num_generated_tokens for a in answers if a.stats]
    assert counts[:3] == [24, 1, 8]
    assert told == sorted(told)
    assert told[-1] == (5, sum(counts))
    assert most == 2
    assert engine.call(lambda: engine.core.pool.used_bytes) == 0
    seeded = engine.agent(sampling=prompts[3].sampling)
    assert seeded.chat(prompts[3].text).text() == answers[3].text
    seeded.close()


def test_a_batch_starts_from_what_an_earlier_run_has_stored(tmp_path: Path) -> None:
    system = "You know the tides and the boats of this harbour, and nothing else at all. " * 4
    found = []
    for questions in (["Is it high tide?"], ["And now?", "Which boats are in?"]):
        prompts = [Prompt(q, i, DEFAULTS, system) for i, q in enumerate(questions)]
        with scripted.engine(folder=tmp_path) as engine:
            found += [answer.stats for answer in answer_all(engine, prompts, 1)]
    first, second, third = found
    assert (first.num_memory_tokens, first.num_disk_tokens) == (0, 0)
    for stats in (second, third):
        assert len(system) - 64 < stats.num_disk_tokens <= len(system) + 4


def test_leaving_early_stops_the_others(engine: Engine) -> None:
    story = prompt("Write a long story about a dog.", max_tokens=10_000)
    answers = answer_all(engine, [prompt(JAPAN), *[story] * 5], 3)
    assert next(answers).text == TOKYO
    answers.close()
    while engine.call(lambda: engine.core.has_work):
        pass
    assert engine.call(lambda: engine.core.pool.used_bytes) == 0


def test_an_engine_that_is_closed_is_no_fault_of_the_prompts(smollm2: Path) -> None:
    with Engine.load(str(smollm2)) as engine:
        answers = answer_all(engine, [prompt(JAPAN), *[prompt("Tell me a story.")] * 40], 2)
        assert next(answers).error is None
    with pytest.raises(ClosedError):
        list(answers)
