"""The benchmark of the time to the first token, small, on the real model."""

import os
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from edgecortex.bench import plot, ttft
from edgecortex.bench.asking import open_core, passage
from edgecortex.core import EngineCore
from edgecortex.errors import EdgeCortexError

TOKENS = 128
RESTORED = ["warm", "dropped"] if hasattr(os, "posix_fadvise") else ["warm"]


@pytest.fixture(scope="module")
def report(smollm2: Path) -> dict[str, Any]:
    """One round at one size, with no more agents or sizes than any other has."""
    return ttft.measure(str(smollm2), [TOKENS], 1, lambda line: None)


def rows(report: dict[str, Any], what: str) -> dict[tuple[str, int], dict[str, Any]]:
    """By state and new tokens."""
    found = [row for row in report["rows"] if row["what"] == what]
    return {(row["state"], row["new_tokens"]): row for row in found}


def test_every_state_is_there(report: dict[str, Any]) -> None:
    states = {"cold", "hot", *RESTORED}
    both = {(state, new) for state in states for new in (1, 16)}
    assert set(rows(report, "ttft")) == both | {("mlx_lm", 1)}
    assert {row["tokens"] for row in rows(report, "ttft").values()} == {TOKENS}
    assert all(row["ttft_s"] > 0 for row in rows(report, "ttft").values())


def test_the_limit_is_reading_and_a_step(report: dict[str, Any]) -> None:
    for state in RESTORED:
        row = rows(report, "ttft")[state, 1]
        assert row["limit_s"] == pytest.approx(row["read_s"] + row["step_s"])
        assert row["over_limit"] == pytest.approx(row["ttft_s"] / row["limit_s"])
        assert row["kl"] < ttft.max_kl()


def test_phases_add_up(report: dict[str, Any]) -> None:
    for key, phases in rows(report, "phases").items():
        whole = [phases[f"{name}_s"] for name in (*ttft.STAGES, "other")]
        assert sum(whole) == pytest.approx(rows(report, "ttft")[key]["ttft_s"])
        assert min(phases[f"{name}_s"] for name in ttft.STAGES) > 0
        assert min(phases[f"{name}_s"] for name in ("open", "read", "verify", "copy")) > 0


def test_figures_are_those_that_the_sizes_allow(report: dict[str, Any]) -> None:
    assert set(report["figures"]) == {"ttft.hot_over_step", "ttft.saving_slowdown_pct"}
    savings = [row for row in report["rows"] if row["what"] == "saving"]
    assert [row["round"] for row in savings] == [1, 2, 3, 4, 5]
    slower = [100 * (1 - r["beside_tokens_per_s"] / r["without_tokens_per_s"]) for r in savings]
    name = "ttft.saving_slowdown_pct"
    assert report["figures"][name] == pytest.approx(median(slower))
    assert report["spread"] == {name: pytest.approx([min(slower), max(slower)])}
    assert all(row["saved_mb"] > 1 for row in savings)  # of each round new


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_plot(report: dict[str, Any], tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"ttft{suffix}"
    plot.check_plot(path)
    plot.draw(report, path)
    assert path.stat().st_size > 1000


def made_up(state: str, tokens: int, seconds: float) -> dict[str, Any]:
    """A row of one new token, with a limit and a step of a tenth of a second."""
    row = {"what": "ttft", "state": state, "tokens": tokens, "new_tokens": 1}
    return row | {"ttft_s": seconds, "over_limit": seconds / 0.1, "step_s": 0.1}


def test_figures() -> None:
    times = {
        ("warm", 256): 0.9,  # too small to count
        ("warm", 4096): 0.12,
        ("warm", 8192): 0.11,
        ("cold", 4096): 10.0,
        ("cold", 8192): 22.0,
        ("mlx_lm", 4096): 8.0,
        ("hot", 4096): 0.1,
        ("hot", 8192): 0.13,
    }
    rows = [made_up(*key, seconds) for key, seconds in times.items()]
    figures = ttft._figures([*rows, {"what": "saving", "slowdown_pct": 3.0}])
    assert figures == {
        "ttft.warm_over_limit": pytest.approx(1.2),
        "ttft.cold_over_warm_8k": pytest.approx(200),
        "ttft.cold_4k_over_mlx_lm": pytest.approx(1.25),
        "ttft.hot_over_step": pytest.approx(1.3),
        "ttft.saving_slowdown_pct": 3.0,
    }


# The check of what a restored context says.


@pytest.fixture(scope="module")
def core(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineCore:
    return open_core(str(smollm2), str(tmp_path_factory.mktemp("check")), TOKENS)


def logits_after(core: EngineCore, ids: list[int]) -> np.ndarray:
    """(1, vocab), of a context that is read anew."""
    context = core.pool.open()
    found = np.array(core.runner.run([(context, ids)])[1])
    core.pool.close(context)
    return found


def test_a_block_of_another_text_is_found(core: EngineCore) -> None:
    ids = passage(core, 400)
    right = logits_after(core, ids[:TOKENS])
    wrong = logits_after(core, ids[:4] + ids[300:364] + ids[68:TOKENS])
    assert ttft.check(right, right, "same") == 0
    with pytest.raises(EdgeCortexError, match="same size: the restored context says something"):
        ttft.check(right, wrong, "same size")


def test_rounding_passes_and_ends_at_a_near_tie() -> None:
    cold = np.array([[5.0, 1, 0], [2.0, 2.001, 0], [9, 0, 0]])
    warm = np.array([[5.0, 1, 0], [2.001, 2.0, 0], [0, 9, 0]])  # after another token
    assert 0 < ttft.check(cold, warm, "tie") < 1e-5
    with pytest.raises(EdgeCortexError, match="at token 3:"):
        ttft.check(cold[[0, 0, 2]], warm[[0, 0, 2]], "no tie")


def test_another_token_is_an_error_even_at_little_divergence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ttft, "max_kl", lambda: 1.0)
    cold, warm = np.array([[2.0, 1.9, 0]]), np.array([[1.9, 2.0, 0]])
    with pytest.raises(EdgeCortexError, match="goes another way: expected token 0 at place 1"):
        ttft.check(cold, warm, "both")


def test_numbers_that_are_none_are_found() -> None:
    cold = np.zeros((1, 3))
    with pytest.raises(EdgeCortexError, match="got nan"):
        ttft.check(cold, np.full((1, 3), np.nan), "nan")
