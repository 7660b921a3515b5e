"""The benchmark of workflows, on a small one and the real model."""

from pathlib import Path

import pytest

from edgecortex import workflow
from edgecortex.bench import workflow as bench
from edgecortex.bench.benches import BENCHES
from edgecortex.errors import EdgeCortexError
from tests.test_workflow import TOML

FIGURE = "workflow.small_one_speedup"


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "small-one.toml"
    path.write_text(TOML)
    monkeypatch.setattr(workflow, "built_in", lambda: {"small-one": path})
    monkeypatch.setattr(bench, "SPEEDUPS", {"small-one": FIGURE})
    return path


@pytest.mark.usefixtures("small")
def test_both_ways_are_measured(smollm2: Path) -> None:
    lines: list[str] = []
    found = bench.measure(str(smollm2), lines.append, repeat=2, names=["small-one"])
    assert lines == ["small-one, round 1 of 2", "small-one, round 2 of 2"]
    assert [row["phase"] for row in found["rows"]] == ["plan", "review"] * 2
    ratios = []
    for plan, review in (found["rows"][:2], found["rows"][2:]):
        assert plan["saved"] == 0 < review["saved"]
        assert min(row["ttft_kept_s"] for row in (plan, review)) > 0
        ratios.append(review["ttft_cold_s"] / review["ttft_kept_s"])
    assert found["figures"] == {FIGURE: pytest.approx(sum(ratios) / 2)}
    assert found["spread"] == {FIGURE: [pytest.approx(min(ratios)), pytest.approx(max(ratios))]}


def test_those_that_come_along_are_run() -> None:
    assert set(BENCHES["workflow"].settings["names"]) == set(workflow.built_in())
    assert set(bench.SPEEDUPS) == set(workflow.built_in())


def test_a_workflow_that_saves_nothing(small: Path, smollm2: Path) -> None:
    small.write_text(TOML[: TOML.index("[[phases]]", TOML.index("[[phases]]") + 1)])
    with pytest.raises(EdgeCortexError, match="expected small-one to save tokens, got none"):
        bench.measure(str(smollm2), print, repeat=1, names=["small-one"])
