"""What the benchmark of decoding measures of ours, and that wrong answers are found."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from edgecortex.bench import decode, decode_ours, decode_turns
from edgecortex.bench.decode_mlx_lm import Agents, Theirs
from edgecortex.errors import EdgeCortexError

LENGTHS = {"alone": [70], "equal16": [6, 6], "mixed16": [20, 5, 90]}
STEPS = 2  # of a block
RATE = "tokens_per_s"


@pytest.fixture(scope="module")
def found(smollm2: Path) -> dict[str, Any]:
    """What a process finds, the slow part left out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_turns, "SCENARIOS", LENGTHS)
        return decode_turns.turns(str(smollm2), STEPS, slow=False)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "SCENARIOS", LENGTHS)


def test_sides_take_turns(found: dict[str, Any]) -> None:
    turn = [(side, name) for name in ("alone", "equal16") for side in ("ours", "mlx_lm")]
    turn.append(("ours", "mixed16"))
    assert [(row["side"], row["scenario"]) for row in found["rows"]] == turn * decode.ROUNDS
    rounds = [number for number in range(1, decode.ROUNDS + 1) for _ in turn]
    assert [row["round"] for row in found["rows"]] == rounds
    assert all(row[RATE] > 0 and row["kv_bytes"] > 0 for row in found["rows"])
    assert all(0 < r["overhead_pct"] < 100 for r in found["rows"] if r["side"] == "ours")


def test_what_was_said_is_what_the_model_says(found: dict[str, Any], smollm2: Path) -> None:
    said = found["said"]
    assert {name: len(answers) for name, answers in said.items()} == {
        "alone": 1,
        "equal16": 2,
        "mixed16": 3,
    }
    # A first one, steps that are not timed, and blocks with one of these each.
    steps = 1 + decode.WARM_UP + decode.ROUNDS * (1 + STEPS)
    assert [len(tokens) for tokens in said["alone"]] == [steps]
    assert all(len(tokens) >= steps for tokens in said["mixed16"])
    rows = [dict(row) for row in found["rows"]]
    decode.check(str(smollm2), rows, said)
    ours = [row for row in rows if row["side"] == "ours"]
    assert all(0 <= row["regret_nats"] <= decode.MOST_REGRET for row in ours)
    assert not any("regret_nats" in row for row in rows if row["side"] != "ours")


@pytest.mark.parametrize("agent", [0, 2])
def test_another_answer_is_refused(found: dict[str, Any], smollm2: Path, agent: int) -> None:
    """Such as another agent's."""
    said = {name: list(answers) for name, answers in found["said"].items()}
    said["mixed16"][agent] = said["mixed16"][1]
    with pytest.raises(EdgeCortexError, match="mixed16: expected tokens within"):
        decode.check(str(smollm2), [dict(row) for row in found["rows"]], said)


def test_64_agents_are_fed_on_one_prefix_and_on_copies(
    smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_ours, "PREFIX", 128)
    ours = decode_ours.Ours(str(smollm2))
    rows = decode_turns._prefixes(ours, 1)
    assert [row["scenario"] for row in rows] == ["prefix64", "private64"] * decode.ROUNDS
    assert all(row[RATE] > 0 for row in rows)
    assert 1 <= rows[0]["memory_ratio"] < 1.5
    assert "memory_ratio" not in rows[1]


def test_mlx_lm_times_the_steps_that_it_computes() -> None:
    """What it says first was computed before its turn."""
    steps = []
    agents = Agents(lambda: len(steps.append("step") or ["token"]), lambda: 7)  # type: ignore
    assert len(steps) == decode.WARM_UP
    row = agents.block(STEPS)
    assert len(steps) == decode.WARM_UP + 2 + STEPS
    assert (row["kv_bytes"], row[RATE] > 0) == (7, True)


def test_mlx_lms_stream_is_not_left_to_others(smollm2: Path) -> None:
    before = mx.default_stream(mx.default_device())
    agents = Theirs(str(smollm2)).agents([5])
    agents.block(1)
    assert mx.default_stream(mx.default_device()) == before


def test_a_gap_is_measured_beside_a_prompt(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_ours, "GAP_STEPS", 3)
    monkeypatch.setattr(decode_ours, "LATE", 300)
    row = decode_ours.gap(decode_ours.Ours(str(smollm2)).core())
    ratios = [row[f"beside_{q}_s"] / row[f"without_{q}_s"] for q in ("median", "p95")]
    assert row["ratio"] == max(ratios)
    assert row["prefill_s"] > row["beside_median_s"]
