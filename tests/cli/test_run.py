"""`edgecortex run` on the real model."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

JAPAN = "What is the capital of Japan?"


def test_the_answer_alone_is_on_stdout(cli: Cli, smollm2: Path) -> None:
    result = cli("run", JAPAN, "--model", str(smollm2))
    assert (result.code, result.out) == (0, "The capital of Japan is Tokyo.\n")
    assert result.err == ""


def test_json_has_text_tokens_and_timings(cli: Cli, smollm2: Path) -> None:
    result = cli("run", "--json", "--model", str(smollm2), stdin=JAPAN.encode())
    answer = json.loads(result.out)
    assert answer["text"] == "The capital of Japan is Tokyo."
    assert answer["finish_reason"] == "stop"
    assert answer["model"] == str(smollm2)
    assert answer["num_generated_tokens"] == len(answer["token_ids"])
    assert answer["num_prompt_tokens"] > 10
    assert answer["ttft_s"] > 0
    known = answer["num_memory_tokens"] + answer["num_disk_tokens"]
    assert answer["prefill_tokens_per_s"] == pytest.approx(
        (answer["num_prompt_tokens"] - known) / answer["ttft_s"]
    )
    assert answer["decode_tokens_per_s"] > 0


def test_argument_comes_before_stdin(cli: Cli, smollm2: Path) -> None:
    tokens = ["run", "--json", "--model", str(smollm2), "--max-tokens", "1"]
    both = json.loads(cli(*tokens, "What is the capital of", stdin=b"Japan?\n").out)
    joined = json.loads(cli(*tokens, "What is the capital of\n\nJapan?").out)
    assert both["num_prompt_tokens"] == joined["num_prompt_tokens"]
    assert both["token_ids"] == joined["token_ids"]
    assert both["finish_reason"] == "length"


def test_a_seed_repeats_a_sampled_answer(cli: Cli, smollm2: Path) -> None:
    args = ["run", "Tell me a story.", "--model", str(smollm2), "--temp", "1.5"]
    args += ["--top-p", "0.9", "--max-tokens", "8", "--seed"]
    first, again, other = (cli(*args, seed).out for seed in ("7", "7", "8"))
    assert first == again
    assert first != other


@pytest.mark.parametrize("stdin", [b"", b"\n", b" \n\t"])
def test_an_empty_prompt(cli: Cli, stdin: bytes) -> None:
    result = cli("run", stdin=stdin)
    assert (result.code, result.out) == (1, "")
    assert result.err == (
        "edgecortex: the prompt is empty: expected text as an argument or on stdin\n"
    )


def test_invalid_utf8_on_stdin_says_where(cli: Cli) -> None:
    result = cli("run", stdin=b"caf\xe9 au lait")
    assert (result.code, result.out) == (1, "")
    assert "expected UTF-8, got byte 0xe9 at 3" in result.err
    assert result.err.count("\n") == 1


def test_invalid_utf8_in_the_argument(cli: Cli) -> None:
    result = cli("run", "caf\udce9")
    assert (result.code, result.out) == (1, "")
    assert "expected UTF-8" in result.err


def test_a_prompt_longer_than_the_context(cli: Cli, smollm2: Path) -> None:
    result = cli("run", "--model", str(smollm2), stdin=b"word " * 9000)
    assert (result.code, result.out) == (1, "")
    assert "expected at most 7680 tokens" in result.err
    assert result.err.count("\n") == 1


def _start(smollm2: Path, *args: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "edgecortex.cli.main", "run", "--model", str(smollm2), *args]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize("gone", ["reader", "user"])
def test_an_answer_broken_off_is_quiet(smollm2: Path, gone: str) -> None:
    with _start(smollm2, "Write a long story about a dog.", "--max-tokens", "4000") as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.read(4)
        if gone == "user":
            process.send_signal(signal.SIGINT)
        process.stdout.close()
        assert process.wait(timeout=60) == (130 if gone == "user" else 1)
        assert process.stderr.read() == ""
