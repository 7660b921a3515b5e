"""The bench group, with the runs themselves scripted: they take minutes."""

import json
from typing import Any

import pytest

from edgecortex.bench import blas
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
