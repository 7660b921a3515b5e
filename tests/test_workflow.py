"""Workflows: their files, and agents that go on from earlier phases."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgecortex import Engine, EngineConfig, phases, workflow
from edgecortex.errors import ConfigError
from edgecortex.phases import Answer, PhaseReport
from edgecortex.workflow import Phase, Role, Turn, Workflow, fill, load
from tests import scripted

TOML = """
[agents.ann]
system = "You are Ann, a careful planner of journeys who writes down every step she takes."

[agents.critic]
from = "ann"

[[phases]]
name = "plan"

[[phases.turns]]
agent = "ann"
ask = "Plan a picnic for eight people, four of whom do not eat meat, near some water."
reply = "On Saturday we meet at ten by the lake, and everybody brings one cold dish to share."

[[phases]]
name = "review"
together = true

[[phases.turns]]
agent = "critic"
ask = "Somebody planned: {ann} What is missing?"
max_tokens = 6

[[phases.turns]]
agent = "ann"
ask = "And if it rains?"
reply = "Then we meet in the barn."
"""


def written(folder: Path, text: str) -> str:
    path = folder / "flow.toml"
    path.write_text(text)
    return str(path)


def changed(old: str, new: str) -> str:
    assert old in TOML
    return TOML.replace(old, new, 1)


def test_what_comes_along_can_be_loaded() -> None:
    flows = {name: load(name) for name in workflow.built_in()}
    assert set(flows) == {"experts", "prisoners-dilemma"}
    dilemma = flows["prisoners-dilemma"]
    turns = [turn for phase in dilemma.phases for turn in phase.turns]
    assert (len(dilemma.agents), len(dilemma.phases), len(turns)) == (4, 5, 25)
    assert all(turn.reply for turn in turns)
    experts = flows["experts"]
    assert len(experts.agents) == 10
    asked = [turn.agent for turn in experts.phases[1].turns]
    assert sorted(asked) == sorted(experts.agents)  # every question found its expert


def test_answers_take_their_places() -> None:
    assert fill("{a} and {b}, {c}", {"a": "x", "b": "{a}"}) == "x and {a}, {c}"
    assert fill("{agent-1}?", {"agent-1": "x"}) == "x?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one"),
        ("[[", "is no workflow"),
        ("x = 1", "unknown key 'x'"),
        (changed('agent = "ann"', 'agent = "bob"'), "phase 1, turn 1: no agent 'bob'"),
        (changed("{ann}", "{bob}"), "phase 2, turn 1: no agent 'bob'"),
        (changed('from = "ann"', 'from = "bob"'), "'critic' is from 'bob'"),
        (changed('from = "ann"', 'from = "critic"'), "from each other"),
        (changed('from = "ann"', 'from = "ann"\nsystem = "x"'), "has `from`"),
        (changed('from = "ann"', 'document = "none.txt"'), "cannot read its document"),
        (changed('from = "ann"', 'document = "python:none"'), "no topic"),
        (changed('agent = "critic"', 'agent = "ann"'), "an agent of their own"),
        (changed('name = "review"', 'name = "plan"'), "phase 2: .* got 'plan', which phase 1 has"),
        (changed("max_tokens = 6", "max_tokens = 0"), "at least 1"),
        (changed("max_tokens = 6", 'max_tokens = "6"'), "max_tokens must be int"),
        (changed('agent = "ann"\n', ""), "no agent's `topics`"),
        (changed('ask = "And if it rains?"', 'ask = " "'), "expected a question"),
        (TOML + '\n[[phases]]\nname = "empty"\n', r"at least one of \[\[phases.turns\]\]"),
    ],
)
def test_a_wrong_file_says_where(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load(written(tmp_path, text))


def test_a_missing_file_names_what_there_is() -> None:
    with pytest.raises(ConfigError, match="prisoners-dilemma"):
        load("nothing.toml")


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> Any:
    with Engine.load(str(smollm2), config=EngineConfig(use_store=False)) as engine:
        yield engine


def test_kept_agents_read_less_and_say_the_same(engine: Engine, tmp_path: Path) -> None:
    flow = load(written(tmp_path, TOML))
    steps: list[tuple[int, int]] = []
    kept = phases.run(engine, flow, progress=lambda *step: steps.append(step))
    cold = phases.run(engine, flow, kept=False)
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert [(a.agent, a.ask, a.num_prompt_tokens) for a in kept] == [
        (a.agent, a.ask, a.num_prompt_tokens) for a in cold
    ]
    assert "everybody brings one cold dish" in kept[1].ask
    plan, review = phases.compare(kept, cold)
    assert plan.num_read_tokens == plan.num_cold_tokens
    assert review.num_read_tokens < review.num_cold_tokens - 30
    assert review.num_reused_tokens + review.num_read_tokens == review.num_prompt_tokens
    assert (plan.num_saved_tokens, plan.same_text) == (0, True)
    assert review.num_saved_tokens == review.num_cold_tokens - review.num_read_tokens
    assert review.same_text
    assert kept[1].text == cold[1].text != ""  # the one that was generated
    assert kept[2].text == "Then we meet in the barn."
    engine.call(engine.core.pool.check)
    assert engine.call(lambda: engine.core.pool.used_bytes) == 0


def test_another_text_and_a_missing_cold_run_show() -> None:
    kept = [Answer("plan", "ann", "?", "yes", False, 0.1, 9, 4, 2), *[answer("plan", 0.3)] * 2]
    cold = [replace(kept[0], text="no", ttft_s=0.7, num_memory_tokens=0), *kept[1:]]
    (report,) = phases.compare(kept, cold)
    assert (report.num_saved_tokens, report.same_text) == (4, False)
    assert (report.ttft_kept_s, report.speedup) == pytest.approx((0.7 / 3, 1.3 / 0.7))
    (alone,) = phases.compare(kept)
    assert (alone.num_reused_tokens, alone.num_read_tokens) == (6, 21)
    assert (alone.num_saved_tokens, alone.speedup, alone.same_text) == (None, None, None)


def answer(phase: str, ttft_s: float) -> Answer:
    return Answer(phase, "ann", "?", "yes", False, ttft_s, 9, 0, 0)


def test_phases_made_in_python_need_names_of_their_own() -> None:
    phase = Phase("plan", (Turn("ann", "?"),))
    with pytest.raises(ConfigError, match=r"phase 3: .* got 'plan', which phase 1 has; rename one"):
        Workflow("x", "", {"ann": Role()}, (phase, replace(phase, name="review"), phase))


# What comes along, on a model of which each letter is a token.


def both_ways(flow: Workflow) -> tuple[list[PhaseReport], list[Answer], list[Answer]]:
    with scripted.engine() as engine:
        kept, cold = (phases.run(engine, flow, kept=way) for way in (True, False))
    assert [(a.ask, a.text) for a in kept] == [(a.ask, a.text) for a in cold]
    reports = phases.compare(kept, cold)
    assert all(report.same_text for report in reports)
    return reports, kept, cold


def firsts(answers: Sequence[Answer]) -> list[Answer]:
    """Each agent's first turn in each phase."""
    return list({(a.phase, a.agent): a for a in reversed(answers)}.values())[::-1]


def num_reused(answer: Answer) -> int:
    return answer.num_memory_tokens + answer.num_disk_tokens


def test_the_dilemma_goes_on_from_earlier_phases() -> None:
    """Its review is generated here, so that there is something that could differ."""
    flow = load("prisoners-dilemma")
    turns = tuple(replace(turn, reply=None, max_tokens=4) for turn in flow.phases[4].turns)
    review = replace(flow.phases[4], turns=turns)
    reports, kept, cold = both_ways(replace(flow, phases=(*flow.phases[:4], review)))
    assert all(a.text for a in kept[-4:])
    first, *later = reports
    assert first.num_saved_tokens == 0
    assert all(report.num_saved_tokens > 1000 for report in later)
    assert not any(map(num_reused, firsts(cold)))
    analyst = firsts(kept)[-1]
    assert (analyst.phase, analyst.agent) == ("The review", "analyst")
    assert later[-1].num_saved_tokens == num_reused(analyst) > 0.8 * analyst.num_prompt_tokens


def test_experts_keep_their_chapters() -> None:
    flow = load("experts")
    reports, kept, cold = both_ways(replace(flow, agents=beginnings(flow.agents)))
    priming, *later = reports
    assert priming.num_saved_tokens == 0
    for report in later:
        assert report.num_saved_tokens > 0.8 * report.num_cold_tokens
    system = len(flow.agents["with"].system)
    assert all(num_reused(a) <= system for a in firsts(cold))  # which all of them share
    assert all(num_reused(a) > 400 for a in kept if a.phase != priming.name)
    assert all(a.text for a in kept if not a.given)


def beginnings(agents: dict[str, Role]) -> dict[str, Role]:
    """The first letters of each chapter, of those that the model knows."""
    known = {
        name: (role.document or "").encode("ascii", "ignore").decode()[:400]
        for name, role in agents.items()
    }
    return {name: replace(role, document=known[name]) for name, role in agents.items()}


def test_a_fork_may_be_asked_together_with_its_source(engine: Engine, tmp_path: Path) -> None:
    begin, plan, critic, ann = TOML.split("[[phases.turns]]")
    flow = load(written(tmp_path, "[[phases.turns]]".join([begin, plan, ann, critic])))
    for kept in (True, False):
        answers = phases.run(engine, flow, kept=kept)
        assert [answer.agent for answer in answers] == ["ann", "ann", "critic"]
        assert answers[2].text


def test_a_document_is_read_before_the_first_question(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("The lake is deep. " * 20)
    flow = load(written(tmp_path, changed('from = "ann"', 'document = "notes.txt"')))
    answers = phases.run(engine, flow)
    assert answers[1].num_prompt_tokens > 100
