"""Streams that a River asks for by itself, and those that are planned with a question."""

from collections.abc import Iterator
from typing import Any

import pytest

from edgecortex import Agent, Engine
from edgecortex.errors import BudgetError, PromptError
from edgecortex.generation import Generation
from edgecortex.kv.context import Context
from edgecortex.warp.cortex import CortexConfig
from edgecortex.warp.router import KINDS, RouterLimits
from edgecortex.warp.stream import Thought
from tests import scripted
from tests.scripted import context_of, limit, until

NOTES = "The river is wide and slow, and the boats are late again. " * 4
MUCH = [f"word {i}, " for i in range(150)]
SCRIPT = {
    "Ask for one.": ["Let me ", "see. [TA", "SK: find", " one] ", *MUCH, "done."],
    "Ask for all.": [*(f"[{kind}: find {kind}]" for kind in KINDS), *MUCH, "done."],
    "Ask for code.": ["[CODE]", " sort them", "\n", *MUCH, "done."],
    "Ask at the end.": ["Well. ", "[TASK: find one]"],
    "Ask in a flood.": ["Well. ", "".join(f"[TASK: find {i}] " for i in range(20))],
    "Ask to go on.": ["[TASK: think on] ", *MUCH, "done."],
    "Ask for depth.": ["[TASK: go deeper] ", *MUCH, *MUCH, "done."],
    "go deeper": ["I need help: ", "[TASK: find one] ", "[TASK: go deeper]", " so there."],
    "find one": ["It is", " blue", "."],
    "sort them": ["sorted()"],
    **{f"find {kind}": [f"found {kind}"] for kind in KINDS},
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """Streams take most of the time, so that they are done before their River is."""
    with scripted.engine(SCRIPT, river_share=0.05) as engine:
        yield engine


def make_river(engine: Engine, **more: Any) -> Agent:
    river = engine.agent(system=NOTES, sampling=limit(400))
    river.think_with(CortexConfig(**({"threshold": None, "listens": True} | more)))
    return river


def summary(agent: Agent) -> list[tuple[str, str, str]]:
    return [(thought.kind, thought.task, thought.status) for thought in agent.thoughts]


# Routed.


def test_what_the_river_asks_for_is_thought_about_while_it_speaks(engine: Engine) -> None:
    river = make_river(engine)
    text = river.chat("Ask for one.").text()
    assert text == "".join(SCRIPT["Ask for one."])
    (thought,) = river.thoughts
    assert (thought.origin, thought.text, thought.status) == ("routed", "It is blue.", "accepted")
    assert len(NOTES) < thought.at < context_of(river).num_own
    assert river.messages[-1]["content"] == text


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds(engine: Engine, kind: str) -> None:
    river = make_river(engine, kinds=(kind,))
    river.chat("Ask for all.").text()
    (thought,) = river.thoughts
    assert (thought.kind, thought.task, thought.text) == (kind, f"find {kind}", f"found {kind}")


def test_all_kinds_in_one_answer(engine: Engine) -> None:
    river = make_river(engine)
    river.chat("Ask for all.").text()
    assert [(kind, task) for kind, task, _ in summary(river)] == [
        (kind, f"find {kind}") for kind in KINDS
    ]


def test_a_bare_one_takes_its_line(engine: Engine) -> None:
    river = make_river(engine)
    river.chat("Ask for code.").text()
    assert summary(river) == [("CODE", "sort them", "accepted")]


def test_nobody_listens_unless_told_to(engine: Engine) -> None:
    river = make_river(engine, listens=False)
    river.chat("Ask for all.").text()
    assert river.thoughts == []


def test_limits_hold_for_a_river(engine: Engine) -> None:
    river = make_river(engine, limits=RouterLimits(max_tasks=2))
    river.chat("Ask for all.").text()
    assert len(river.thoughts) == 2
    assert river.cortex
    assert [reason for _, reason in river.cortex.router.ignored] == ["too many"] * 3


def test_limits_are_those_of_an_answer(engine: Engine) -> None:
    river = make_river(engine, limits=RouterLimits(max_tasks=2))
    for number in (1, 2, 3):
        river.chat("Ask for all.").text()
        assert len(river.thoughts) == 2 * number


def test_streams_of_streams(engine: Engine) -> None:
    shallow, deep = (make_river(engine, limits=RouterLimits(max_depth=n)) for n in (1, 2))
    shallow.chat("Ask for depth.").text()
    assert [thought.task for thought in shallow.thoughts] == ["go deeper"]
    deep.chat("Ask for depth.").text()
    assert [thought.task for thought in deep.thoughts] == ["go deeper", "find one"]
    assert deep.cortex
    assert [reason for _, reason in deep.cortex.router.ignored] == ["duplicate"]


def test_the_end_of_an_answer_ends_what_was_asked_for_in_it(engine: Engine) -> None:
    """But not what others asked for."""
    river = make_river(engine, sampling=limit(3000))
    asked = river.spawn("go on and on")
    river.chat("Ask to go on.").text()
    assert summary(river)[1:] == [("TASK", "think on", "cancelled")]
    assert not asked.thought.ended
    asked.close()


@pytest.mark.parametrize("question", ["Ask at the end.", "Ask in a flood."])
def test_what_is_asked_for_last_is_not_begun_any_more(engine: Engine, question: str) -> None:
    """Starting Streams takes a step each: those of an answer that is over are dropped."""
    river = make_river(engine, sampling=limit(3000))
    river.chat(question).text()
    until(engine, lambda: not engine.core._jobs)
    expected = 1 if question == "Ask at the end." else RouterLimits().max_tasks
    assert [status for *_, status in summary(river)] == ["cancelled"] * expected
    assert river.cortex
    assert river.cortex.streams == []
    assert engine.call(lambda: list(engine.core.contexts._contexts)) == [river]


# Planned.


def ask(river: Agent, *tasks: str, most: int = 20) -> Generation:
    assert river.cortex
    return river.cortex.ask("What is it?", [Thought(task) for task in tasks], limit(most))


def test_the_answer_begins_when_all_planned_is_decided(engine: Engine) -> None:
    river = make_river(engine)
    answer = ask(river, "find one", "find CODE", "go deeper")
    next(iter(answer))
    assert [status for *_, status in summary(river)] == ["accepted"] * 3
    assert {thought.origin for thought in river.thoughts} == {"planned"}
    answer.text()
    num_read = answer.stats.num_prompt_tokens - 1
    assert [thought.at for thought in river.thoughts] == [num_read] * 3
    assert answer.stats.num_generated_tokens == 20
    again = ask(river, "find SEARCH")
    again.text()
    assert river.thoughts[-1].at == again.stats.num_prompt_tokens - 1


def test_nothing_planned_is_a_plain_question(engine: Engine) -> None:
    river, plain = make_river(engine), engine.agent(system=NOTES, sampling=limit(20))
    assert ask(river).text() == plain.chat("What is it?").text()
    assert river.thoughts == []


def test_failures_do_not_keep_the_answer(engine: Engine) -> None:
    river = make_river(engine)
    answer = ask(river, "x" * 5000, "find one", "y" * 5000)
    assert len(answer.text()) > 0
    assert [status for *_, status in summary(river)] == ["failed", "accepted", "failed"]
    with pytest.raises(PromptError, match="the task is empty"):
        ask(river, "find one", " ")
    assert len(river.thoughts) == 3


def test_cancelled_while_it_is_held(engine: Engine) -> None:
    river = make_river(engine, sampling=limit(3000))
    answer = ask(river, "go on and on", "and on")
    until(engine, lambda: [t.status for t in river.thoughts] == ["thinking"] * 2)
    answer.cancel()
    assert answer.text() == ""
    until(engine, lambda: all(thought.ended for thought in river.thoughts))
    assert [status for *_, status in summary(river)] == ["cancelled"] * 2
    assert ask(river, "find one").text()


def test_closed_streams_let_the_answer_go(engine: Engine) -> None:
    river = make_river(engine, sampling=limit(3000))
    answer = ask(river, "go on and on", "and on")
    until(engine, lambda: [t.status for t in river.thoughts] == ["thinking"] * 2)
    assert river.cortex
    for stream in list(river.cortex.streams):
        stream.close()
    assert len(answer.text()) == 20


def test_planned_ones_may_go_on_beside_the_answer_of_another(engine: Engine) -> None:
    river, other = make_river(engine), engine.agent(system=NOTES, sampling=limit(60))
    beside = other.chat("Tell me of it.")
    assert len(ask(river, "find one").text()) > 0
    assert len(beside.text()) == 60


def test_a_held_answer_does_not_cost_others_theirs() -> None:
    """There is room for a River and its Stream, or for another agent, who was first in line: the
    Stream gives way, and then everybody else has their turn."""
    long = NOTES * 3
    with scripted.engine(SCRIPT) as engine:
        pool = engine.core.pool
        need = pool.row_nbytes + pool.growth(Context(0), len(long) + 60)
    with scripted.engine(SCRIPT, kv_budget_bytes=int(1.7 * need)) as engine:
        river, other = (engine.agent(system=text + long) for text in "12")
        river.think_with(CortexConfig(threshold=None, sampling=limit(30)))
        answer, beside = engine.call(
            lambda: (ask(river, "think of it"), other.chat("Tell me of it.", limit(20)))
        )
        assert len(answer.text()) == len(beside.text()) == 20
        assert [thought.status for thought in river.thoughts] == ["failed"]
        assert "no room for agent" in river.thoughts[0].reason
        engine.call(engine.core.pool.check)


def test_what_can_never_fit_is_refused_all_the_same() -> None:
    with scripted.engine(SCRIPT) as engine:
        row = engine.core.pool.row_nbytes
    with scripted.engine(SCRIPT, kv_budget_bytes=4 * row) as engine, pytest.raises(BudgetError):
        engine.agent(system=NOTES * 8).chat("What is it?").text()
