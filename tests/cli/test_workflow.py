"""`edgecortex workflow`."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.test_workflow import TOML


def test_a_workflow_is_compared_with_a_cold_run(cli: Cli, smollm2: Path, tmp_path: Path) -> None:
    (tmp_path / "flow.toml").write_text(TOML)
    args = ("workflow", str(tmp_path / "flow.toml"), "--model", str(smollm2), "--no-cache")
    result = cli(*args)
    assert result.code == 0
    assert "[review] critic:" in result.out
    assert "read cold" in result.out
    assert "saved" in result.out
    found = json.loads(cli(*args, "--json").out)
    assert [phase["name"] for phase in found["phases"]] == ["plan", "review"]
    plan, review = found["phases"]
    assert plan["num_saved_tokens"] == 0
    assert review["num_saved_tokens"] == review["num_cold_tokens"] - review["num_read_tokens"] > 30
    assert [turn["agent"] for turn in found["turns"]] == ["ann", "critic", "ann"]
    alone = json.loads(cli(*args, "--json", "--no-compare").out)
    for phase, other in zip(alone["phases"], found["phases"], strict=True):
        assert phase["num_read_tokens"] == other["num_read_tokens"]
        assert phase["ttft_kept_s"] > 0
        assert (phase["num_saved_tokens"], phase["speedup"]) == (None, None)


def test_an_earlier_run_is_no_part_of_a_comparison(
    cli: Cli, smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECORTEX_STORE", str(tmp_path / "store"))
    (tmp_path / "flow.toml").write_text(TOML.replace("Plan a", "Plan a wide " + "and wet " * 30))
    args = ("workflow", str(tmp_path / "flow.toml"), "--model", str(smollm2), "--json")
    for _ in range(2):  # the second finds the KV of the first
        alone = json.loads(cli(*args, "--no-compare").out)
    assert alone["turns"][0]["num_disk_tokens"] > 60
    plan = json.loads(cli(*args).out)["phases"][0]
    assert (plan["num_reused_tokens"], plan["num_saved_tokens"]) == (0, 0)


def test_wrong_usage(cli: Cli, tmp_path: Path) -> None:
    assert "prisoners-dilemma" in cli("workflow", "--list").out
    for args in ((), ("none.toml",), (str(tmp_path),)):
        result = cli("workflow", *args)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith("edgecortex: ")
