"""`edgecortex workflow`."""

import json
from pathlib import Path

from tests.cli.conftest import Cli
from tests.test_workflow import TOML


def test_a_workflow_is_compared_with_a_cold_run(cli: Cli, smollm2: Path, tmp_path: Path) -> None:
    (tmp_path / "flow.toml").write_text(TOML)
    args = ("workflow", str(tmp_path / "flow.toml"), "--model", str(smollm2), "--no-cache")
    result = cli(*args)
    assert result.code == 0
    assert "[review] critic:" in result.out
    assert "read cold" in result.out
    found = json.loads(cli(*args, "--json").out)
    assert [phase["name"] for phase in found["phases"]] == ["plan", "review"]
    assert found["phases"][1]["num_read_tokens"] < found["phases"][1]["num_cold_tokens"]
    assert [turn["agent"] for turn in found["turns"]] == ["ann", "critic", "ann"]
    alone = json.loads(cli(*args, "--json", "--no-compare").out)
    assert alone["phases"] == []


def test_wrong_usage(cli: Cli, tmp_path: Path) -> None:
    assert "prisoners-dilemma" in cli("workflow", "--list").out
    for args in ((), ("none.toml",), (str(tmp_path),)):
        result = cli("workflow", *args)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith("edgecortex: ")
