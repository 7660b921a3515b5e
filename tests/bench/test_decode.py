"""What the benchmark of decoding measures of ours, and that wrong answers are found."""

from pathlib import Path
from typing import Any

import pytest

from edgecortex.bench import decode, decode_ours
from edgecortex.bench.asking import open_core
from edgecortex.bench.side import BLOCKS
from edgecortex.errors import EdgeCortexError

LENGTHS = {"alone": [70], "mixed16": [20, 5, 90]}
STEPS = 2  # of a block


@pytest.fixture(scope="module")
def said(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The last row of each scenario, which has all that was said."""
    core = open_core(str(smollm2), str(tmp_path_factory.mktemp("store")), 100)
    rows = [decode_ours._scenario(core, *each, STEPS) for each in LENGTHS.items()]
    core.close()
    assert [len(blocks) for blocks in rows] == [BLOCKS] * len(LENGTHS)
    assert all(row["tokens_per_s"] > 0 for blocks in rows for row in blocks)
    return [blocks[-1] for blocks in rows]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "SCENARIOS", LENGTHS)


def test_what_was_said_is_what_the_model_says(said: list[dict[str, Any]], smollm2: Path) -> None:
    assert [len(row["said"]) for row in said] == [1, 3]
    assert all(len(tokens) > STEPS * BLOCKS for row in said for tokens in row["said"])
    rows = [dict(row) for row in said]
    decode.check(str(smollm2), rows)
    assert all(0 <= row["regret_nats"] <= decode.MOST_REGRET for row in rows)
    assert not any("said" in row for row in rows)


@pytest.mark.parametrize("agent", [0, 2])
def test_another_answer_is_refused(said: list[dict[str, Any]], smollm2: Path, agent: int) -> None:
    """Such as another agent's."""
    rows = [dict(row) for row in said]
    rows[1]["said"] = list(rows[1]["said"])
    rows[1]["said"][agent] = rows[1]["said"][1]
    with pytest.raises(EdgeCortexError, match="mixed16: expected tokens within"):
        decode.check(str(smollm2), rows)


def test_rows_of_a_side_that_says_nothing_stay_as_they_are() -> None:
    rows = [{"scenario": "alone", "tokens_per_s": 3.0}]
    decode.check("no model", rows)
    assert rows == [{"scenario": "alone", "tokens_per_s": 3.0}]
