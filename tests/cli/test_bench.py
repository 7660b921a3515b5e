"""The bench group, with the runs themselves scripted: they take minutes."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgecortex.bench import blas, memory, plot, ttft
from edgecortex.errors import EdgeCortexError
from tests.cli.conftest import Cli


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template of 21 tokens; 2 s with our BLAS, 60 s with the wheel's."""

    def run(library: str, model: str, prompt: str) -> dict[str, Any]:
        seconds = {"ours": 2.0, "wheel": 60.0}[library]
        tokens = 21 + len(prompt.split())
        rate = tokens / seconds
        return {
            "num_prompt_tokens": tokens,
            "ttft_s": seconds,
            "prefill_tokens_per_s": rate,
            "text": "",
        }

    monkeypatch.setattr(blas, "_run", run)


@pytest.mark.usefixtures("scripted")
def test_json_report(cli: Cli) -> None:
    result = cli("bench", "blas", "--json")
    report = json.loads(result.out)
    keys = ["benchmark", "machine", "versions", "settings", "figures", "rows"]
    assert list(report) == keys
    assert report["figures"] == {"blas.prefill512_speedup": 30.0}
    assert [row["blas"] for row in report["rows"]] == ["ours", "ours", "ours", "wheel"]


@pytest.mark.usefixtures("scripted")
def test_table(cli: Cli) -> None:
    result = cli("bench", "blas")
    assert result.code == 0
    assert "blas.prefill512_speedup  30" in result.out


def test_a_run_that_fails_is_an_error() -> None:
    with pytest.raises(EdgeCortexError, match="unknown model 'nope'"):
        blas.measure("nope")


def test_a_prompt_of_another_length_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_run", lambda *_: {"num_prompt_tokens": 30})
    with pytest.raises(EdgeCortexError, match="512 tokens, got 30"):
        blas.measure("some")


def test_ttft(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(ttft, "measure", lambda *args: asked.append(args[:3]) or {"rows": []})
    result = cli("bench", "ttft", "--contexts", "2048,512", "--repeat", "2", "--json")
    assert (result.code, json.loads(result.out)) == (0, {"rows": []})
    assert asked == [("smollm2-135m", [512, 2048], 2)]


@pytest.mark.parametrize("contexts", ["", "0", "512,", "many", "512;1024"])
def test_sizes_that_are_none(cli: Cli, contexts: str) -> None:
    result = cli("bench", "ttft", "--contexts", contexts)
    assert (result.code, "--contexts must be numbers" in result.err) == (2, True)


def test_what_cannot_be_drawn_is_refused_before_measuring(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "must end in .svg or .png" in cli("bench", "ttft", "--plot", "times.pdf").err
    assert "no folder" in cli("bench", "ttft", "--plot", str(tmp_path / "no" / "a.png")).err
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    missing = cli("bench", "ttft", "--plot", str(tmp_path / "a.svg"))
    assert (missing.code, 'pip install "edgecortex[bench]"' in missing.err) == (1, True)


@pytest.mark.parametrize(("options", "num_lengths"), [((), 4), (("--quick",), 1)])
def test_memory(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], num_lengths: int
) -> None:
    """With the processes that measure scripted."""
    monkeypatch.setattr(memory.side, "run", _memory_job)
    result = cli("bench", "memory", *options)
    assert "memory.gemma3_12b_agents_8k  30" in result.out
    assert "memory.shared_prefix_disk_pct  51" in result.out
    assert "memory.disk_bits_per_value  4.6" in result.out
    assert result.out.count("mlx-lm fp16") == num_lengths
    assert "storing 50 agents of 4,096 tokens" in result.err


def _memory_job(module: str, job: str, **arguments: Any) -> Any:
    if job == "fill":
        return {"agents": 30, "agent_bytes": 1, "used_bytes": 30}
    return [
        {"what": "blocks on disk", "bits_per_value": 4.6},
        {"what": "one prefix on disk", "pct_of_separate": 51},
    ]
