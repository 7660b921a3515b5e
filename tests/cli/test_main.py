"""The command as a whole: what it loads, what it exits with."""

import subprocess
import sys

import pytest

import edgecortex
from tests.cli.conftest import Cli

COMMANDS = ["chat", "run", "batch", "models", "doctor", "bench"]


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; import edgecortex.cli.main; "
        "heavy = {'mlx', 'mlx.core', 'mlx_lm', 'transformers', 'numpy', 'prompt_toolkit'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_help_lists_every_command(cli: Cli) -> None:
    result = cli("--help")
    assert result.code == 0
    for command in COMMANDS:
        assert command in result.out


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"edgecortex {edgecortex.__version__}\n"


@pytest.mark.parametrize(
    "args",
    [("nonsense",), ("run", "--nonsense"), ("run", "--temp", "warm", "hi"), ("chat", "extra")],
)
def test_wrong_usage_is_status_2(cli: Cli, args: tuple[str, ...]) -> None:
    result = cli(*args)
    assert (result.code, result.out) == (2, "")
    assert "Usage:" in result.err


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--temp", "-1", "temperature"),
        ("--top-p", "0", "top_p"),
        ("--max-tokens", "0", "max_tokens"),
        ("--seed", "-1", "seed"),
    ],
)
@pytest.mark.parametrize("command", ["run", "chat"])
def test_a_setting_out_of_range_is_status_2(
    cli: Cli, command: str, option: str, value: str, named: str
) -> None:
    result = cli(command, option, value)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"edgecortex: {named} must be ")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("command", ["run", "chat"])
def test_an_unknown_model_names_the_valid_ones(cli: Cli, command: str) -> None:
    result = cli(command, "--model", "nope", stdin=b"hello")
    assert (result.code, result.out) == (1, "")
    assert "unknown model 'nope'" in result.err
    assert "smollm2-135m" in result.err
    assert result.err.count("\n") == 1
