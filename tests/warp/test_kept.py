"""Thoughts that outlive what they joined: saved, forked, spilled, and after a failure."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecortex import Agent, Engine
from edgecortex.conversation import Conversation
from edgecortex.errors import BudgetError, StateError
from edgecortex.kv.context import Context
from edgecortex.warp.cortex import CortexConfig
from edgecortex.warp.stream import Thought
from tests import scripted
from tests.scripted import context_of, limit, logits_after, until

NOTES = "The river is wide and slow, and the boats are late again. " * 4
SCRIPT = {
    "find one": ["It is", " blue", "."],
    "find two": ["They ", "are", " far", " off."],
    "say so": ["So it is, and ", "here we stop", " for good."],
}
NEXT = "\nu:And then?\na:"
SAME = {"atol": 2e-4}
KINDS = ("llama", "gemma3_text")


def make_river(engine: Engine, notes: str = NOTES) -> Agent:
    river = engine.agent(system=notes, sampling=limit(6))
    river.think_with(CortexConfig(threshold=None))
    river.chat("Tell me of it.").text()
    return river


def think(river: Agent, task: str, mode: str = "forward") -> Thought:
    thought = river.spawn(task, mode=mode).result(60)
    assert (thought.status, thought.reason) == ("accepted", "")
    return thought


def untouched(engine: Engine, told: Conversation) -> Agent:
    """An agent that was told the same and never had a thought."""
    twin = engine.agent(sampling=limit(6))
    twin.conversation.restore(told.messages, told.token_ids, told.rendered)
    twin.read()
    return twin


def records(agent: Agent) -> list[dict[str, Any]]:
    return [thought.to_dict() for thought in agent.thoughts]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


# Sessions.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kv_format", ["fp", "kv4"])
def test_saved_and_restored_by_another_engine(folder: Path, kind: str, kv_format: str) -> None:
    """With a thought at once, one that tokens have seen since, and one taken back after all."""
    with scripted.engine(SCRIPT, kind, folder, kv_format=kv_format) as engine:
        river = make_river(engine)
        think(river, "find one")
        river.chat("And what of the boats? " * 4).text()
        think(river, "find two", "graft")
        river.save("bob").result()
        expected, kept = logits_after(river, NEXT), records(river)
        marks = context_of(river).marks
    with scripted.engine(SCRIPT, kind, folder, kv_format=kv_format) as engine:
        again, came = engine.restore("bob", sampling=limit(6))
        assert (came.notice, came.num_lost_thoughts) == ("", 0)
        assert came.num_disk_tokens == came.num_tokens - 1 == context_of(again).num_own
        assert records(again) == kept
        assert context_of(again).marks == marks
        np.testing.assert_allclose(logits_after(again, NEXT), expected, **SAME)
        again.take_back(again.thoughts[1].id)
        assert apart(again, expected) > 1e-3
        again.take_back(again.thoughts[0].id)
        again.read()
        fresh = untouched(engine, again.conversation)
        # In 4 bits what is read in other portions may round to another sixteenth.
        close = SAME if kv_format == "fp" else {"atol": 0.1}
        np.testing.assert_allclose(logits_after(again, NEXT), logits_after(fresh, NEXT), **close)


def apart(agent: Agent, logits: np.ndarray) -> float:
    return float(np.abs(logits_after(agent, NEXT) - logits).max())


def test_saved_with_where_it_is_seen_from_now(folder: Path) -> None:
    """An answer that a stop string cut is tokenized anew: the thought after it moves along."""
    with scripted.engine(SCRIPT, folder=folder) as engine:
        river = make_river(engine)
        river.chat("say so", limit(6, stop=("here we",))).text()
        thought = think(river, "find one")
        river.chat("Go on.").text()
        (laid,) = context_of(river).attached
        assert laid.at < thought.at
        river.save("bob").result()
        expected = logits_after(river, NEXT)
    with scripted.engine(SCRIPT, folder=folder) as engine:
        again, came = engine.restore("bob")
        assert came.num_disk_tokens == came.num_tokens - 1
        assert context_of(again).marks == ((laid.at, laid.id),)
        np.testing.assert_allclose(logits_after(again, NEXT), expected, **SAME)


def test_what_has_seen_a_thought_is_not_taken_for_what_has_not(folder: Path) -> None:
    """Two agents with the same tokens: the store keeps their KV apart."""
    question = "And what of the boats? " * 8
    with scripted.engine(SCRIPT, folder=folder) as engine:
        river = make_river(engine)
        think(river, "find one")
        river.chat(question).text()
        river.save("bob").result()
    with scripted.engine(SCRIPT) as engine:  # without a store
        expected = logits_after(untouched(engine, river.conversation), NEXT)
    with scripted.engine(SCRIPT, folder=folder) as engine:
        plain = untouched(engine, river.conversation)
        np.testing.assert_allclose(logits_after(plain, NEXT), expected, **SAME)
        bob, _ = engine.restore("bob")
        assert apart(bob, expected) > 1e-3


def test_a_thought_whose_file_is_gone_is_lost_and_said_to_be(folder: Path) -> None:
    with scripted.engine(SCRIPT, folder=folder) as engine:
        river = make_river(engine)
        thought = think(river, "find one")
        river.save("bob").result()
    (file,) = folder.rglob(f"{thought.id}.thought.safetensors")
    file.unlink()
    with scripted.engine(SCRIPT, folder=folder) as engine:
        again, came = engine.restore("bob")
        assert came.num_lost_thoughts == 1
        assert came.notice == "1 of the thoughts injected into it could not be read"
        assert again.thoughts == []
        again.chat("Go on.", limit(4)).text()


def test_thoughts_of_another_format_are_said_to_be_lost(folder: Path) -> None:
    with scripted.engine(SCRIPT, folder=folder) as engine:
        river = make_river(engine)
        think(river, "find one")
        river.save("bob").result()
    with scripted.engine(SCRIPT, folder=folder, kv_format="kv4") as engine:
        again, came = engine.restore("bob")
        assert (came.same_format, came.num_disk_tokens, again.thoughts) == (False, 0, [])
        assert came.notice.endswith("read again, without the thoughts injected into it (1)")
        again.chat("Go on.", limit(4)).text()


def test_a_session_of_which_nothing_was_read_is_kept_and_spilled(folder: Path) -> None:
    with scripted.engine(SCRIPT, folder=folder, kv_budget_bytes=BUDGET) as engine:
        told = engine.agent(system=NOTES, sampling=limit(6))
        told.tell("Tell me of it.", "I shall not.")
        told.save("bob").result()
        again, came = engine.restore("bob", sampling=limit(6))
        assert (came.num_tokens, came.num_disk_tokens) == (told.num_tokens, 0)
        again.save("carol").result()
        push_out(engine, again)
        assert again.chat("Go on.").text() == told.chat("Go on.").text()


# Forks.


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with scripted.engine(SCRIPT) as engine:
        yield engine


def test_a_fork_sees_what_its_parent_does(engine: Engine) -> None:
    parent = make_river(engine)
    thought = think(parent, "find one")
    parent.spawn("find one").result(60)  # already known: not among what is seen
    child = parent.fork()
    expected = logits_after(parent, NEXT)
    np.testing.assert_allclose(logits_after(child, NEXT), expected, **SAME)
    assert records(child) == [thought.to_dict()]
    later = think(child, "find two")
    assert [t.id for t in parent.cortex.accepted] == [thought.id]
    child.take_back(thought.id)
    assert (thought.status, parent.cortex.accepted) == ("accepted", [thought])
    np.testing.assert_allclose(logits_after(parent, NEXT), expected, **SAME)
    parent.close()
    assert [laid.id for laid in context_of(child).attached] == [later.id]
    child.chat("Go on.").text()
    child.close()


# Room.

BUDGET = 2_000_000  # a dozen rows and what the River has sealed


def take_all_room(engine: Engine, keep: Context) -> list[Context]:
    """Opens contexts until there is no room; one is not let go of for them."""
    others: list[Context] = []
    with engine.core.pool.kept(keep), suppress(BudgetError):
        others += iter(engine.core.pool.open, None)
    return others


def push_out(engine: Engine, agent: Agent) -> None:
    """Another takes the room of an agent that rests."""

    def crowd() -> None:
        context = engine.core.contexts.get(agent)
        others = [*take_all_room(engine, context), engine.core.pool.open()]
        for other in others:
            engine.core.pool.close(other)

    engine.call(crowd)
    assert engine.call(lambda: engine.core.contexts.get(agent)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_spilled_and_back(folder: Path, kind: str) -> None:
    with scripted.engine(SCRIPT, kind, folder, kv_budget_bytes=BUDGET) as engine:
        river = make_river(engine)
        thought = think(river, "find one")
        river.chat("And what of the boats? " * 4).text()
        expected, marks = logits_after(river, NEXT), context_of(river).marks
        push_out(engine, river)
        assert [laid.id for laid in engine.core.contexts.attached(river)] == [thought.id]
        assert river.read() <= 1
        assert context_of(river).marks == marks
        np.testing.assert_allclose(logits_after(river, NEXT), expected, **SAME)
        push_out(engine, river)
        river.take_back(thought.id)
        river.read()
        assert context_of(river).marks == ()
        twin = untouched(engine, river.conversation)
        np.testing.assert_allclose(logits_after(river, NEXT), logits_after(twin, NEXT), **SAME)
        engine.call(engine.core.pool.check)


def test_without_a_store_the_thought_stays_in_memory() -> None:
    with scripted.engine(SCRIPT, kv_budget_bytes=BUDGET) as engine:
        river = make_river(engine)
        think(river, "find one")
        expected = logits_after(river, NEXT)
        push_out(engine, river)
        assert river.read() == river.num_tokens
        np.testing.assert_allclose(logits_after(river, NEXT), expected, **SAME)


def test_forks_of_one_that_was_spilled_go_their_own_ways(folder: Path) -> None:
    with scripted.engine(SCRIPT, folder=folder, kv_budget_bytes=BUDGET) as engine:
        parent = make_river(engine)
        first, second = think(parent, "find one"), think(parent, "find two")
        expected = logits_after(parent, NEXT)
        push_out(engine, parent)
        child = parent.fork()
        child.take_back(first.id)
        parent.read()
        child.read()
        np.testing.assert_allclose(logits_after(parent, NEXT), expected, **SAME)
        assert [laid.id for laid in context_of(child).attached] == [second.id]
        assert context_of(child).trace is not context_of(parent).trace


def test_a_fork_without_room_sees_the_thoughts_all_the_same() -> None:
    with scripted.engine(SCRIPT, kv_budget_bytes=BUDGET) as engine:
        parent = make_river(engine)
        think(parent, "find one")
        expected, context = logits_after(parent, NEXT), context_of(parent)
        others = engine.call(lambda: take_all_room(engine, context))
        child = parent.fork()
        assert engine.call(lambda: engine.core.contexts.get(child)) is None
        engine.call(lambda: [engine.core.pool.close(other) for other in others])
        child.read()
        assert [laid.id for laid in context_of(child).attached] == [parent.thoughts[0].id]
        np.testing.assert_allclose(logits_after(child, NEXT), expected, **SAME)


# Failures.


def test_an_answer_that_fails_takes_no_thought_with_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    river = make_river(engine)
    thought = think(river, "find one")
    expected = logits_after(river, NEXT)

    def failing(*_: Any) -> Any:
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(engine.core.pool.caches[1], "attend", failing)
        with pytest.raises(RuntimeError, match="out of luck"):
            river.chat("Go on.").text()
    river.read()
    assert context_of(river).marks == ((thought.at, thought.id),)
    np.testing.assert_allclose(logits_after(river, NEXT), expected, **SAME)
    river.take_back(thought.id)
    river.close()


@pytest.mark.parametrize("kind", KINDS)
def test_kept_with_a_session_after_an_answer_that_fails(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thought was never stored before, and nothing of its River is in memory any more."""
    with scripted.engine(SCRIPT, kind, folder) as engine:
        river = make_river(engine)
        thought = think(river, "find one")
        with monkeypatch.context() as patch:
            patch.setattr(engine.core.scheduler, "observe", lambda *_: None)
            patch.setattr(engine.core, "_run", lambda batch: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                river.chat("Go on.").text()
        assert engine.call(lambda: engine.core.contexts.get(river)) is None
        river.save("kept").result()
    with scripted.engine(SCRIPT, kind, folder) as engine:
        again, _ = engine.restore("kept")
        assert [known.id for known in again.thoughts] == [thought.id]
        again.read()
        assert context_of(again).marks == ((thought.at, thought.id),)


def test_a_reset_forgets_them(engine: Engine) -> None:
    river = make_river(engine)
    thought = think(river, "find one")
    river.reset()
    until(engine, lambda: river.thoughts == [])
    with pytest.raises(StateError, match="there are: none"):
        river.take_back(thought.id)
    river.chat("Tell me of it.").text()
    plain = engine.agent(system=NOTES, sampling=limit(6))
    plain.chat("Tell me of it.").text()
    np.testing.assert_allclose(logits_after(river, NEXT), logits_after(plain, NEXT), **SAME)
    for agent in (river, plain):
        agent.close()
    engine.call(engine.core.pool.check)
