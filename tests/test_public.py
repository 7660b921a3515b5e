"""What others may import, and what the README shows."""

import re
from pathlib import Path

import pytest

import edgecortex
from tests.cli.conftest import Cli, cli  # noqa: F401

README = Path(__file__).parents[1].joinpath("README.md").read_text("utf-8")


def test_public_names() -> None:
    assert sorted(edgecortex.__all__) == [
        "Agent",
        "EdgeCortexError",
        "Engine",
        "EngineConfig",
        "Generation",
        "SamplingParams",
    ]
    for name in edgecortex.__all__:
        assert getattr(edgecortex, name).__name__ == name


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Motor'"):
        _ = edgecortex.Motor


@pytest.mark.usefixtures("smollm2")
def test_the_readme_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(re.findall(r"\S.*\n", example)) <= 5
    exec(example, {})
    assert "Tokyo" in capsys.readouterr().out


@pytest.mark.usefixtures("smollm2")
def test_the_readme_transcript_is_the_program_s(cli: Cli) -> None:  # noqa: F811
    (shown,) = re.findall(r"```text\n(> .*?)```", README, re.S)
    questions = [line.removeprefix("> ") for line in shown.splitlines() if line.startswith("> ")]
    result = cli("chat", "--temp", "0", stdin="\n".join(questions).encode())
    assert result.out == shown
    assert re.search(r"Tokyo.*7", shown, re.S)
