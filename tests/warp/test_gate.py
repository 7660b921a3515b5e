"""The gate on a real model's states: thoughts that belong to what was said, and others."""

import numpy as np
import pytest

from edgecortex import Engine, EngineConfig, SamplingParams
from edgecortex.errors import BudgetError
from edgecortex.runner import HiddenStates, ModelRunner
from edgecortex.warp.gate import PLAIN_TEXT, RunningStates, ValidationGate, cosine
from edgecortex.warp.synapse import RIVER_STATES
from tests import tiny

SAID = {
    "bees": "Bees live in hives. A hive has one queen, who lays all the eggs, and thousands of "
    "workers. The workers fly out to flowers and collect nectar, which they turn into honey. In "
    "winter the colony stays in the hive, keeps warm, and eats the honey that it has stored.",
    "trains": "The night train from Vienna leaves at ten and arrives in Rome at nine the next "
    "morning. Passengers sleep in small compartments with four or six beds. Tickets are cheaper "
    "when they are booked some weeks ahead, and breakfast is served before the train arrives.",
    "code": "A function that sorts a list compares its items in pairs. Quick sort picks a pivot, "
    "puts the smaller items before it and the larger ones after it, and then sorts both parts. "
    "On most lists it takes n log n comparisons, but a bad pivot makes it quadratic.",
}
THOUGHTS = {
    "bees": (
        "The queen lays the eggs and the workers collect nectar from flowers.",
        "Bees eat their stored honey in the winter.",
        "Without flowers near the hive the workers cannot make honey.",
    ),
    "trains": (
        "Passengers should book their tickets some weeks before the train leaves.",
        "The journey from Vienna to Rome takes eleven hours.",
        "Breakfast is served on the night train before Rome.",
    ),
    "code": (
        "Quick sort is quadratic if the pivot is badly chosen.",
        "The smaller items of the list go before the pivot.",
        "Sorting a list takes about n log n comparisons.",
    ),
}


def states_of(engine: Engine, text: str) -> np.ndarray:
    core = engine.core
    return engine.call(lambda: core.runner.hidden_of(core.model.tokenizer.encode(text, first=True)))


@pytest.fixture(scope="module")
def scores(real: Engine) -> dict[str, np.ndarray]:
    """(3 passages, 9 thoughts) by our gate and by the source's cosine of last tokens; the first
    three thoughts belong to the first passage, and so on."""
    plain = RunningStates()
    plain.add(states_of(real, PLAIN_TEXT))
    passages = [states_of(real, text)[-RIVER_STATES:] for text in SAID.values()]
    thoughts = [states_of(real, t) for ts in THOUGHTS.values() for t in ts]
    for states in passages:
        plain.add(states)
    gate = ValidationGate(0.5, plain)
    ours = [[gate.score(thought, main) for thought in thoughts] for main in passages]
    raw = [[cosine(thought[-1], main[-1]) for thought in thoughts] for main in passages]
    return {"ours": np.array(ours), "raw": np.array(raw)}


RELEVANT = np.kron(np.eye(3), np.ones((1, 3))).astype(bool)


def auc(scores: np.ndarray) -> float:
    """How often a thought that belongs scores higher than one that does not."""
    return float((scores[RELEVANT][:, None] > scores[~RELEVANT][None]).mean())


def test_thoughts_that_belong_score_higher(scores: dict[str, np.ndarray]) -> None:
    assert auc(scores["ours"]) >= 0.9
    for row, relevant in zip(scores["ours"], RELEVANT, strict=True):
        assert row[relevant].min() > np.median(row[~relevant])


def test_at_one_half_ours_tells_apart_what_raw_cosines_all_accept(scores) -> None:
    """Those crowd, as all states of a model have much in common."""
    assert scores["raw"].min() > 0.5
    assert scores["ours"][~RELEVANT].max() < 0.5
    assert (scores["ours"][RELEVANT] >= 0.5).sum() >= 6


def test_the_same_states_whoever_records_them(real: Engine) -> None:
    """What a River's trace keeps while it is read is what the model gives for the text alone."""
    river = real.agent(system=SAID["bees"], sampling=SamplingParams(max_tokens=2))
    river.think_with()
    river.chat("What is a hive?").text()
    context = real.call(lambda: real.core.contexts.get(river))
    traced = real.call(lambda: np.array(context.trace.hidden.all()))
    alone = real.call(lambda: real.core.runner.hidden_of(context.token_ids))
    assert traced.shape == alone.shape == (context.num_own, 576)
    np.testing.assert_allclose(traced, alone, atol=2e-2 * np.abs(alone).max())
    river.close()


def test_states_read_in_pieces(real: Engine) -> None:
    """Are those of all at once; and a reading that is left takes nothing along."""
    runner = real.core.runner

    def both() -> tuple[np.ndarray, np.ndarray]:
        ids = real.core.model.tokenizer.encode(PLAIN_TEXT, first=True)
        reading, count = HiddenStates(runner, ids), 1
        while reading.read(16):
            runner.pool.check()
            count += 1
        assert count == -(-len(ids) // 16) > 2
        found = reading.all()
        reading.close()
        reading.close()
        return found, runner.hidden_of(ids)

    in_pieces, at_once = real.call(both)
    np.testing.assert_allclose(in_pieces, at_once, atol=2e-2 * np.abs(at_once).max())

    def leave() -> None:
        held, free = len(runner.pool.contexts()), runner.pool.free_bytes
        reading = HiddenStates(runner, [1] * 200)
        assert runner.pool.free_bytes < free - runner.pool.row_nbytes  # room for all of it
        reading.read(16)
        reading.close()
        assert (len(runner.pool.contexts()), runner.pool.free_bytes) == (held, free)

    real.call(leave)


def test_states_that_have_no_room() -> None:
    model = tiny.make("llama")
    row = ModelRunner(model, EngineConfig(kv_format="fp")).pool.row_nbytes
    config = EngineConfig(kv_format="fp", kv_budget_bytes=3 * row)
    runner = ModelRunner(model, config)
    for _ in range(2):
        with pytest.raises(BudgetError, match="no room to read 1,000 tokens"):
            HiddenStates(runner, [1] * 1000)
        assert runner.pool.contexts() == []
    assert len(runner.hidden_of([1] * 20)) == 20
