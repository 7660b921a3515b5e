"""The memory benchmark, small: the real model on disk, a tiny geometry in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from edgecortex.bench import memory, memory_agents
from edgecortex.bench.asking import archive_in, ask, context_of, finish, open_core, passage
from edgecortex.bench.memory_disk import _num_values, disk
from edgecortex.errors import EdgeCortexError

TINY = {"layers": 6, "kv_heads": 1, "head_dim": 64, "window": 128, "full_every": 3}


@pytest.fixture(scope="module")
def stored(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Three agents of 300 tokens, 150 of which are the same: by what each row is about."""
    folder = tmp_path_factory.mktemp("disk")
    rows = disk(str(smollm2), str(folder), tokens=300, prefix_tokens=150, agents=3)
    assert [path.name for path in folder.iterdir()] == ["first"]
    return {row["what"]: row for row in rows}


def test_bits_on_disk(stored: dict[str, dict[str, Any]]) -> None:
    blocks, tail = stored["blocks on disk"], stored["with the tail"]
    all_of_it = stored["with tail and index"]
    assert blocks["values"] == (4 + 4 * 64) * 30 * 3 * 2 * 64
    assert tail["values"] == all_of_it["values"] == 300 * 30 * 3 * 2 * 64
    assert 4.5 < blocks["bits_per_value"] < tail["bits_per_value"] < all_of_it["bits_per_value"]
    assert blocks["bytes"] < tail["bytes"] < all_of_it["bytes"]


def test_a_shared_prefix_is_stored_once(stored: dict[str, dict[str, Any]]) -> None:
    row = stored["one prefix on disk"]
    assert (row["tokens"], row["prefix_tokens"], row["agents"]) == (300, 150, 3)
    assert row["pct_of_separate"] == 100 * row["bytes"] / row["separate_bytes"]
    # Two of four blocks are shared, tails and indices are not.
    assert 60 < row["pct_of_separate"] < 85
    blocks = stored["one prefix, blocks only"]
    assert blocks["bytes"] < row["bytes"]
    # The first block is larger, as it has the sinks.
    assert blocks["pct_of_separate"] == pytest.approx(100 * (2 + 3 * 2) / (3 * 4), rel=0.06)


@pytest.mark.parametrize(("model", "tokens"), [("smollm2", 200), ("gemma3", 700)])
def test_values_are_counted_as_they_are_stored(
    model: str, tokens: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """By the shapes of the arrays in the files; Gemma's windows hold less than its blocks."""
    core = open_core(str(request.getfixturevalue(model)), str(tmp_path / "own"), tokens)
    answer = ask(core, passage(core, tokens), 1)
    finish(core, answer)
    archive = archive_in(core, tmp_path / "other")
    archive.save(context_of(answer, tokens), tail=True).result()
    archive.close()
    counts = {"block": 0, "window": 0, "tail": 0}
    for path in (tmp_path / "other" / "blocks").iterdir():
        counts[path.name.split(".")[1]] += _values_in(path)
    sealed, tail = _num_values(core, context_of(answer, tokens))
    assert (counts["block"] + counts["window"], counts["tail"]) == (sealed, tail)
    assert bool(counts["window"]) == (model == "gemma3")


def _values_in(path: Path) -> int:
    """Words hold eight values; rows one in each number."""
    arrays: dict[str, np.ndarray] = safetensors.numpy.load_file(path)
    words = sum(array.size for array in arrays.values() if array.dtype == np.uint32)
    return 8 * words + sum(array.size for name, array in arrays.items() if "row" in name)


def agent_nbytes(tokens: int) -> int:
    """Of the tiny geometry: 4.5 bits a sealed value, two bytes a value in a row."""
    sealed = (tokens - 4) // 64 * 64
    held = 2 * sealed + 4 * min(sealed, 128)
    return held * 128 * 9 // 16 + 6 * 68 * 128 * 2


def test_agents_fill_the_budget() -> None:
    ours, stock, published, taken = memory.agents(1000, 10_000_000, TINY)
    assert {row["tokens"] for row in (ours, stock, published, taken)} == {1000}
    assert (ours["system"], ours["agents"]) == (memory.OURS, 10_000_000 // agent_nbytes(1000))
    assert ours["agent_bytes"] == agent_nbytes(1000)
    assert stock["agent_bytes"] == (2 * 1000 + 4 * 128) * 2 * 64 * 2
    assert stock["agents"] == 10_000_000 // stock["agent_bytes"]
    assert published["agents"] is None
    assert 9_000_000 < taken["used_bytes"] <= 10_000_000
    assert taken["mlx_growth_bytes"] == pytest.approx(taken["used_bytes"], abs=2_000_000)


def test_stock_mlx_lm_holds_no_more_than_its_windows() -> None:
    full, sliding = 8 * 8192, 40 * 1024
    stock = memory.stock_nbytes(8192, **memory.GEMMA3_12B)
    assert stock == (full + sliding) * 8 * (256 + 256) * 2
    assert memory.stock_nbytes(100, **memory.GEMMA3_12B) == 48 * 100 * 8 * 512 * 2


def test_the_geometry_is_gemmas() -> None:
    windows, shapes = memory_agents.layers(**memory.GEMMA3_12B)
    assert windows == ([1024] * 5 + [None]) * 8
    assert {shape[:3] for shape in shapes} == {(8, 256, 256)}


def test_too_little_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_agents, "available_bytes", lambda: 1_000_000)
    with pytest.raises(EdgeCortexError, match="too little memory is free: expected 1,0"):
        memory_agents.fill(tokens=1000, max_bytes=10_000_000, geometry=TINY)


def test_a_budget_for_no_agent_is_an_error() -> None:
    with pytest.raises(EdgeCortexError, match="not even one agent of 1,000 tokens fits"):
        memory_agents.fill(tokens=1000, max_bytes=200_000, geometry=TINY)


def test_a_quick_run_puts_no_agents_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = []

    def run(module: str, job: str, makes: str = "", **arguments: Any) -> Any:
        jobs.append(job)
        if job == "fill":
            return {"agents": 37, "agent_bytes": 1}
        on_disk = {"blocks on disk": "bits_per_value", "one prefix on disk": "pct_of_separate"}
        return [{"what": what, key: 1.0} for what, key in on_disk.items()]

    monkeypatch.setattr(memory.side, "run", run)
    monkeypatch.setattr(memory, "resolve", Path)
    quick = memory.measure("m", lambda line: None, quick=True)["figures"]
    assert jobs == ["disk"]
    full = memory.measure("m", lambda line: None)["figures"]
    assert jobs[1:] == ["disk", *["fill"] * len(memory.AGENT_TOKENS)]
    assert full == quick | {"memory.gemma3_12b_agents_8k": 37}
    assert len(quick) == 2
