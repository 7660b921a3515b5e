"""Injected thoughts: nothing to be seen of them but what the River says, and no trace of those
that were taken back."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from edgecortex import Agent, Engine, EngineConfig
from edgecortex.errors import BudgetError, StateError
from edgecortex.kv.context import Trace
from edgecortex.runner import ModelRunner
from edgecortex.warp import injection
from edgecortex.warp.cortex import CortexConfig
from edgecortex.warp.judge import ALLOWANCE, REFERENCE
from edgecortex.warp.stream import Thought
from tests import scripted, tiny
from tests.scripted import context_of, limit, logits_after

NOTES = "The river is wide and slow, and the boats are late again. " * 4
SCRIPT = {
    "find one": ["It is", " blue", "."],
    "find two": ["They ", "are", " far", " off."],
    "find three": ["Nobody", " came."],
    "find much": ["x" * 40] * 7,
    "say a word": ["Word"],
}
NEXT = "\nu:And then?\na:"
# The same tokens read in other portions: what float32 makes of another order of sums.
SAME = {"atol": 2e-4}
MODES = ("forward", "graft")


@pytest.fixture(scope="module", params=["llama", "gemma3_text", "deepseek_v2"])
def engine(request) -> Iterator[Engine]:
    """Full attention, layers with a window, and keys that cannot be turned."""
    with scripted.engine(SCRIPT, request.param) as engine:
        yield engine


@pytest.fixture(scope="module")
def llama() -> Iterator[Engine]:
    with scripted.engine(SCRIPT) as engine:
        yield engine


def make_river(engine: Engine, **more: Any) -> Agent:
    """A River that has said something, and lets all thoughts in."""
    river = engine.agent(system=NOTES, sampling=limit(6))
    river.think_with(CortexConfig(threshold=None, **more))
    river.chat("Tell me of it.").text()
    return river


def think(river: Agent, task: str, mode: str = "forward") -> Thought:
    thought = river.spawn(task, mode=mode).result(60)
    assert (thought.status, thought.reason) == ("accepted", "")
    return thought


def visible(agent: Agent) -> dict[str, Any]:
    told, context = agent.conversation, context_of(agent)
    return {
        "messages": list(agent.messages),
        "ids": list(told.token_ids),
        "rendered": told.rendered,
        "read": list(context.token_ids),
        "position": context.position,
    }


def apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


# Nothing to be seen.


@pytest.mark.parametrize("mode", MODES)
def test_only_the_logits_change(engine: Engine, mode: str) -> None:
    river = make_river(engine)
    before, expected = visible(river), logits_after(river, NEXT)
    thought = think(river, "find one", mode)
    assert visible(river) == before
    assert apart(logits_after(river, NEXT), expected) > 1e-3
    assert (thought.text, thought.mode) == ("It is blue.", mode)
    num_tokens = len(REFERENCE.format("It is blue.")) if mode == "forward" else 3
    assert (thought.at, thought.num_tokens) == (before["position"], num_tokens)
    (laid,) = context_of(river).attached
    assert (laid.id, laid.at, laid.segment.start) == (thought.id, thought.at, thought.start)
    if engine.core.runner.keys_turn:
        assert laid.segment.stop <= 0  # before all that was said


def test_thoughts_lie_before_each_other(engine: Engine) -> None:
    river = make_river(engine)
    thoughts = [think(river, f"find {name}") for name in ("one", "two", "three")]
    assert [thought.id for thought in river.thoughts] == [thought.id for thought in thoughts]
    assert len({thought.id for thought in thoughts}) == 3
    if engine.core.runner.keys_turn:
        starts = [thought.start for thought in thoughts]
        stops = [thought.start + thought.num_tokens for thought in thoughts]
        assert stops == [0, *starts[:2]]


def test_forward_reads_what_the_context_would_read_next(llama: Engine) -> None:
    """But for positions: at those that come next, its keys and values are those of the text."""
    core = llama.core

    def compare() -> None:
        runner = core.runner
        river, twin = runner.pool.open(), runner.pool.open()
        ids = [1 + i % 90 for i in range(150)]
        runner.run([(river, ids)])
        runner.run([(twin, [*ids, 5, 6, 7])])
        segment = injection.forward(runner, river, [5, 6, 7])
        assert (segment.start, segment.num_tokens, river.num_own) == (-3, 3, 150)
        for cache, layer in zip(runner.pool.caches, segment.layers, strict=True):
            keys, values, _ = cache.read(twin, mx.float32)
            np.testing.assert_allclose(np.array(layer.v[0]), np.array(values)[:, -3:], atol=1e-4)
            turned = core.model.turned(cache.layer, keys[:, -3:], -153)
            np.testing.assert_allclose(
                np.array(layer.k[0]).swapaxes(1, 2), np.array(turned), atol=1e-4
            )
        runner.pool.close(river)
        runner.pool.close(twin)

    llama.call(compare)


def test_a_graft_costs_no_forward_pass(llama: Engine) -> None:
    river = make_river(llama)
    think(river, "find one", "graft")  # the gate reads plain text once
    before = llama.call(lambda: llama.core.runner.model_s)
    stream = river.spawn("find two", mode="graft")
    stream.result(60)
    spent = llama.call(lambda: llama.core.runner.model_s) - before
    tokens = stream.generation.stats.num_generated_tokens
    assert (spent > 0, tokens) == (True, 4)


def test_a_thought_of_one_token_leaves_nothing_to_graft(llama: Engine) -> None:
    river = make_river(llama, sampling=limit(1))
    before = logits_after(river, NEXT)
    thought = river.spawn("say a word", mode="graft").result(60)
    assert (thought.status, thought.text) == ("rejected", "Word")
    assert "too short" in thought.reason
    np.testing.assert_array_equal(logits_after(river, NEXT), before)


# Taking back.


@pytest.mark.parametrize("mode", MODES)
def test_taken_back_at_once_it_was_never_there(engine: Engine, mode: str) -> None:
    river = make_river(engine)
    before, expected = visible(river), logits_after(river, NEXT)
    thought = think(river, "find one", mode)
    assert river.take_back(thought.id) is thought
    assert (thought.status, thought.reason) == ("rejected", "taken back")
    assert context_of(river).attached == []
    assert visible(river) == before
    np.testing.assert_allclose(logits_after(river, NEXT), expected, **SAME)


@pytest.mark.parametrize("mode", MODES)
def test_taken_back_later_what_was_said_is_read_without_it(engine: Engine, mode: str) -> None:
    """A twin has had the same words put into its mouth, and never a thought."""
    river = make_river(engine)
    thought = think(river, "find one", mode)
    question = "What is it like, and what else is there to be said of it?"
    answer = river.chat(question)
    answer.text()
    river.take_back(thought.id[:6])
    twin = engine.agent(system=NOTES, sampling=limit(6))
    twin.conversation.restore(
        river.messages, list(river.conversation.token_ids), river.conversation.rendered
    )
    for agent in (river, twin):
        agent.read()
    np.testing.assert_allclose(logits_after(river, NEXT), logits_after(twin, NEXT), **SAME)
    assert river.chat("And then?").text() == twin.chat("And then?").text()


def test_one_of_several_is_taken_back(engine: Engine) -> None:
    """The other is seen as if it had been alone all the time."""
    river, twin = make_river(engine), make_river(engine)
    first, second = (think(river, f"find {name}", "graft") for name in ("one", "two"))
    both, (_, laid) = logits_after(river, NEXT), context_of(river).attached
    river.take_back(first.id)
    assert context_of(river).attached == [laid]
    assert river.cortex
    assert river.cortex.accepted == [second]
    context = context_of(twin)
    engine.call(lambda: engine.core.pool.lay(context, laid.segment, laid.id))
    np.testing.assert_allclose(logits_after(river, NEXT), logits_after(twin, NEXT), **SAME)
    assert apart(logits_after(river, NEXT), both) > 1e-3


def test_only_known_thoughts_are_taken_back(llama: Engine) -> None:
    river = make_river(llama)
    with pytest.raises(StateError, match="no thought 'abcd' to take back; there are: none"):
        river.take_back("abcd")
    thoughts = [think(river, f"find {name}") for name in ("one", "two")]
    known = ", ".join(thought.id[:8] for thought in thoughts)
    for wrong in ("abcd-no-such", "", thoughts[0].id[:3], thoughts[0].id + "0"):
        with pytest.raises(StateError, match=f"no thought {wrong!r} to take back; .*: {known}"):
            river.take_back(wrong)
    river.take_back(thoughts[0].id)
    with pytest.raises(StateError, match=f"there are: {thoughts[1].id[:8]}$"):
        river.take_back(thoughts[0].id)
    answer = river.chat("Go on.", limit(500))
    with pytest.raises(StateError, match=r"cannot take back a thought: .* is still answering"):
        river.take_back(thoughts[1].id)
    answer.cancel()


# How much of it.


def test_only_so_many_tokens_of_thoughts(llama: Engine) -> None:
    river = make_river(llama, max_share=0.25)
    before = logits_after(river, NEXT)
    long = river.spawn("find much").result(60)
    num_own = context_of(river).num_own
    num_tokens = len(REFERENCE.format("x" * 280))
    assert num_own * 0.25 < ALLOWANCE < num_tokens
    assert (long.status, long.id) == ("rejected", "")
    assert long.reason == (
        f"its {num_tokens} tokens and 0 before it are more than {ALLOWANCE} and than 25% of the "
        f"River's {num_own}"
    )
    np.testing.assert_array_equal(logits_after(river, NEXT), before)
    think(river, "find one")
    assert river.spawn("find much", mode="graft").result(60).status == "accepted"  # 7 tokens


def test_thoughts_add_up(llama: Engine) -> None:
    river = make_river(llama)
    each, statuses = len(REFERENCE.format("It is blue.")), []
    for i in range(ALLOWANCE // each + 1):
        thought = river.spawn("find one", mode="forward").result(60)
        statuses.append(thought.status)
        thought.text = f"as if it had been another: {i}"  # the same again is not taken
    used = sum(laid.segment.num_tokens for laid in context_of(river).attached)
    assert statuses == ["accepted"] * (ALLOWANCE // each) + ["rejected"]
    assert ALLOWANCE - each < used <= ALLOWANCE
    assert f"its {each} tokens and {used} before it" in river.thoughts[-1].reason


def test_the_same_again_is_not_injected_twice(llama: Engine) -> None:
    river = make_river(llama)
    think(river, "find one")
    again = river.spawn("find one").result(60)
    assert (again.status, again.reason) == ("rejected", "already known")


# Room.


@pytest.fixture
def tight() -> ModelRunner:
    """A runner with room for a few rows."""
    model = tiny.make("llama")
    row = ModelRunner(model, EngineConfig(kv_format="fp")).pool.row_nbytes
    return ModelRunner(tiny.make("llama"), EngineConfig(kv_format="fp", kv_budget_bytes=6 * row))


@pytest.mark.parametrize("resting", [True, False])
def test_reading_a_thought_does_not_give_the_context_away(tight, resting: bool) -> None:
    """Neither to the reader, nor afterwards, if it is in use, to whoever comes."""
    pool = tight.pool
    river = pool.open()
    tight.run([(river, [1 + i % 90 for i in range(100)])])
    if resting:
        pool.release(river)
    assert injection.forward(tight, river, [5, 6, 7]).num_tokens == 3
    assert river in pool.contexts()
    others = [pool.open()]
    with suppress(BudgetError):
        others += iter(pool.open, None)
    assert (river in pool.contexts()) == (not resting)
    with pytest.raises(BudgetError):
        injection.forward(tight, others[0], [5, 6, 7])
    for context in pool.contexts():
        pool.close(context)
    pool.check()


def test_states_come_from_the_newest_tokens(tight) -> None:
    context = tight.pool.open()
    context.trace = Trace(0, 0, 8)
    tight.run([(context, [1 + i % 90 for i in range(30)])])
    states = np.array(context.trace.hidden.all())
    assert states.shape == (8, 64)
    expected = tight.hidden_of([1 + i % 90 for i in range(30)])[-8:]
    np.testing.assert_allclose(states, expected, atol=1e-4)
