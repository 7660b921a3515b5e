"""`edgecortex batch` on the real model: order, failures, stops and going on."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli
from tests.cli.terminal import Terminal

JAPAN = {"prompt": "What is the capital of Japan?"}
TOKYO = "The capital of Japan is Tokyo."
LINES = [
    {"prompt": "Write a story about a dog.", "id": "long", "max_tokens": 24},
    JAPAN,
    {"prompt": "word " * 9000, "id": 7},
    {"prompt": "Tell me a story.", "temperature": 1.2, "seed": 3},
    {"prompt": "Count to ten.", "stop": "t", "system": "Be brief."},
]
COMMAND = [sys.executable, "-m", "edgecortex.cli.main"]


@pytest.fixture
def args(tmp_path: Path, smollm2: Path) -> list[str]:
    """A command for `LINES`, and as its last argument the file it writes to."""
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    options = ["--model", str(smollm2), "--max-tokens", "12", "--concurrency", "4"]
    return ["batch", str(file), *options, "-o", str(tmp_path / "out.jsonl")]


def told(text: str) -> list[dict[str, Any]]:
    """Results without the times, which differ from run to run."""
    lines = text.splitlines()
    return [{k: v for k, v in json.loads(x).items() if not k.endswith("_s")} for x in lines]


def test_results_in_order_and_how_to_go_on(cli: Cli, args: list[str]) -> None:
    out = Path(args[-1])
    result = cli(*args)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("5 of 5 done, 1 failed; ")
    whole, done = out.read_bytes(), told(out.read_text())
    assert [line["id"] for line in done] == ["long", 2, 7, 4, 5]
    assert (done[1]["text"], done[1]["finish_reason"]) == (TOKYO, "stop")
    assert (done[0]["finish_reason"], done[0]["num_generated_tokens"]) == ("length", 24)
    assert "the prompt is too long" in done[2]["error"]
    assert "text" not in done[2]
    assert "t" not in done[4]["text"]

    assert cli(*args).code == 1
    assert out.read_bytes() == whole

    first, second, *_ = whole.splitlines(keepends=True)
    out.write_bytes(first + second[:30])
    again = cli(*args)
    assert (again.code, again.out) == (1, "")
    assert told(out.read_text()) == done
    assert out.read_bytes().startswith(first)


def stop(args: list[str], how: signal.Signals) -> tuple[int, str]:
    """Runs the command until it has written one more line. Returns its status and stderr."""
    out = Path(args[-1])
    size = out.stat().st_size if out.exists() else 0
    with subprocess.Popen([*COMMAND, *args], stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (out.exists() and out.stat().st_size > size) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(how)
        shown = process.communicate(timeout=60)[1]
    assert out.read_bytes().endswith(b"\n")
    return process.returncode, shown


def test_a_run_that_was_stopped_goes_on(cli: Cli, args: list[str]) -> None:
    file, out = Path(args[1]), Path(args[-1])
    lines = [JAPAN, *[{"prompt": f"Write a story about {n} dogs."} for n in range(4)]]
    lines = [line | {"max_tokens": 6 + 6 * n} for n, line in enumerate(lines)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert stop(args, signal.SIGKILL)[0] == -signal.SIGKILL
    code, shown = stop(args, signal.SIGINT)
    assert code == 130
    assert shown.endswith("the same command goes on from there\n")
    kept = out.read_bytes()
    assert 2 <= kept.count(b"\n") < 5
    assert cli(*args).code == 0
    assert out.read_bytes().startswith(kept)
    resumed = told(out.read_text())
    out.unlink()
    cli(*args)
    assert told(out.read_text()) == resumed


def test_stdin_and_stdout(cli: Cli, smollm2: Path) -> None:
    line = json.dumps(JAPAN | {"system": ""}).encode()
    result = cli("batch", "-", "--model", str(smollm2), "--kv-format", "fp", stdin=line)
    assert result.code == 0
    assert told(result.out)[0]["finish_reason"] == "stop"


def test_no_prompts_are_no_results(cli: Cli) -> None:
    assert cli("batch", "-", "--model", "nope", stdin=b"\n").code == 0


def test_a_wrong_line_is_named_before_anything_is_loaded(cli: Cli, args: list[str]) -> None:
    Path(args[1]).write_text('{"prompt": "a"}\n{"promt": "b"}\n')
    result = cli(*args, "--model", "nope")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"edgecortex: {args[1]} line 2: unknown key 'promt'")
    assert not Path(args[-1]).exists()


def test_input_that_is_not_text(cli: Cli, args: list[str]) -> None:
    Path(args[1]).write_bytes(b'{"prompt": "\xff"}')
    result = cli(*args)
    assert result.code == 1
    assert f"{args[1]} is not text: expected UTF-8" in result.err


@pytest.mark.parametrize(
    "held",
    [b"notes", b"notes\n", b"\n", b'{"id": "long", "digest": "0"', b'{"id": "long"}\n', b"\0" * 9],
)
def test_a_file_of_something_else_is_left_alone(cli: Cli, args: list[str], held: bytes) -> None:
    out = Path(args[-1])
    out.write_bytes(held)
    result = cli(*args, "--model", "nope")
    assert result.code == 1
    assert f"{out} is left alone" in result.err
    assert out.read_bytes() == held


def test_input_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    result = cli("batch", str(tmp_path / "none.jsonl"))
    assert result.code == 1
    assert result.err.endswith("none.jsonl: No such file or directory\n")


def test_a_place_that_cannot_be_written(cli: Cli, args: list[str], tmp_path: Path) -> None:
    args[-1] = str(tmp_path / "none" / "out.jsonl")
    result = cli(*args)
    assert result.code == 1
    assert "No such file or directory" in result.err


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--kv-format", "kv5", "kv_format must be one of ['auto', 'kv4', "),
        ("--kv-budget", "much", "--kv-budget must be a number of bytes such as"),
        ("--kv-budget", "0", "kv_budget_bytes must be at least 1"),
        ("--kv-budget", "1T", "--kv-budget must be"),
    ],
)
@pytest.mark.parametrize("command", ["chat", "run", "batch"])
def test_kv_options_out_of_range(
    cli: Cli, command: str, option: str, value: str, complaint: str
) -> None:
    result = cli(command, *["-"] * (command == "batch"), option, value)
    assert (result.code, result.out) == (2, "")
    assert complaint in result.err


def test_a_budget_too_small(cli: Cli, smollm2: Path) -> None:
    result = cli("run", "hello", "--model", str(smollm2), "--kv-budget", "0.5M")
    assert (result.code, result.out) == (1, "")
    assert (
        "free of the KV budget of 524,288, got 524,288; close agents or raise the budget"
        in result.err
    )


def test_progress_at_a_terminal(args: list[str]) -> None:
    Path(args[1]).write_text("".join(json.dumps(line) + "\n" for line in LINES[1:3]))
    with Terminal(*args) as terminal:
        terminal.expect("0/2")
        terminal.expect("tok/s")
        terminal.expect("2 of 2 done, 1 failed; ")
        assert terminal.wait() == 1
