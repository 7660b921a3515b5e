"""`edgecortex session`, `cache` and `chat --session`, on the real model."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgecortex.config import EngineConfig
from tests.cli.conftest import Cli, Result

JAPAN = "What is the capital of Japan?"


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "store"
    monkeypatch.setenv("EDGECORTEX_STORE", str(folder))
    return folder


@pytest.fixture
def bob(cli: Cli, smollm2: Path) -> Result:
    """A session with one turn."""
    args = ("chat", "--session", "bob", "--model", str(smollm2), "--max-tokens", "16")
    return cli(*args, stdin=JAPAN.encode())


def test_a_chat_goes_on_where_it_was_left(cli: Cli, bob: Result) -> None:
    assert bob.code == 0
    assert "session bob is saved" in bob.err
    again = cli("chat", "--session", "bob", stdin=b"And of France?\n/stats\n")
    assert "The capital of France is Paris." in again.out
    assert "session bob: 3 messages, 34 of 34 tokens back" in again.err
    assert "assistant: The capital of Japan is Tokyo." in again.err
    assert "34 from memory, 0 from disk" in again.out
    shown = cli("session", "show", "bob").out
    assert shown.count("## assistant") == 2
    manifest = json.loads(cli("session", "show", "bob", "--json").out)
    assert manifest["num_kv_tokens"] == len(manifest["token_ids"])


def test_a_chat_becomes_a_session(cli: Cli, smollm2: Path) -> None:
    lines = f"/session\n{JAPAN}\n/session carol\n/session\n".encode()
    result = cli("chat", "--model", str(smollm2), stdin=lines)
    assert result.code == 0
    assert "kept as no session" in result.err
    assert result.err.count("kept as session carol") == 2
    assert json.loads(cli("session", "list", "--json").out)[0]["num_messages"] == 3


def test_a_reset_empties_the_session(cli: Cli, bob: Result) -> None:
    result = cli("chat", "--session", "bob", stdin=b"/reset\n/quit\n")
    assert (result.code, "session bob is saved" in result.err) == (0, True)
    assert "Tokyo" not in cli("session", "show", "bob", "--json").out
    again = cli("chat", "--session", "bob", stdin=f"{JAPAN}\n/stats\n".encode())
    assert "session bob: 1 messages, 0 of 0 tokens back" in again.err
    assert "The capital of Japan is Tokyo." in again.out
    assert cli("session", "show", "bob").out.count("## assistant") == 1


def test_a_session_has_its_own_system_prompt(cli: Cli, bob: Result) -> None:
    result = cli("chat", "--session", "bob", "--system", "Be brief.", stdin=b"")
    assert (result.code, result.out) == (2, "")
    assert "leave --system out" in result.err


def test_wrong_names_and_options(cli: Cli) -> None:
    assert "cannot name a session" in cli("chat", "--session", "../x", stdin=b"").err
    result = cli("chat", "--session", "x", "--no-cache", stdin=b"")
    assert (result.code, "leave out --no-cache" in result.err) == (2, True)
    for command in ("show", "restore", "rm", "verify"):
        result = cli("session", command, "nobody", *(["-y"] if command == "rm" else []))
        assert (result.code, "nobody" in result.err + result.out) == (1, True), command


def test_verbs_of_a_session(cli: Cli, bob: Result, tmp_path: Path) -> None:
    assert cli("session", "fork", "bob", "alice").code == 0
    assert cli("session", "rename", "alice", "carol").code == 0
    assert {row["name"] for row in json.loads(cli("session", "list", "--json").out)} == {
        "bob",
        "carol",
    }
    assert "carol" in cli("session", "list").out
    file = str(tmp_path / "file")
    assert cli("session", "export", "bob", file).code == 0
    assert cli("session", "export", "bob", file).code == 1
    assert cli("session", "import", file, "--name", "dave").code == 0
    assert cli("session", "rm", "carol", "--yes").code == 0
    rows = json.loads(cli("session", "verify", "--json").out)
    assert [(row["name"], row["num_stored"]) for row in rows] == [("bob", 34), ("dave", 34)]
    restored = json.loads(cli("session", "restore", "dave", "--json").out)
    assert (restored["num_disk_tokens"], restored["num_read_tokens"]) == (34, 0)
    assert "read again" not in cli("session", "restore", "dave").err
    other = cli("session", "restore", "dave", "--kv-format", "kv8")
    assert "the session's KV has another format: its tokens are read again" in other.err


def test_a_session_moves_to_another_store(
    cli: Cli, smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its KV, and goes on there as it does here."""
    goes_on = ("chat", "--session", "bob", "--max-tokens", "12")
    story = "Remember this. " + "The boat is late, and the river is wide and slow. " * 12
    assert cli(*goes_on, "--model", str(smollm2), stdin=story.encode()).code == 0
    file = str(tmp_path / "bob.safetensors")
    assert cli("session", "export", "bob", file).code == 0
    here = cli(*goes_on, stdin=b"What is late?")
    monkeypatch.setenv("EDGECORTEX_STORE", str(tmp_path / "other"))
    assert "missing" not in cli("session", "import", file).out
    (row,) = json.loads(cli("session", "verify", "bob", "--json").out)
    assert row["num_stored"] == row["num_kv_tokens"] > 2 * 64
    there = cli(*goes_on, stdin=b"What is late?")
    told = re.search(r"3 messages, (\d+) of (\d+) tokens back", there.err)
    assert told is not None
    assert int(told[1]) == row["num_kv_tokens"]
    assert int(told[2]) - int(told[1]) <= 1  # the answer's last token has not been fed
    assert there.out == here.out != ""


def test_restore_reads_again_what_is_lost(cli: Cli, bob: Result, own_store: Path) -> None:
    for path in (own_store / "blocks").iterdir():
        path.unlink()
    assert cli("session", "verify", "bob").code == 1
    result = cli("session", "restore", "bob")
    assert "0 of 34 tokens from disk" in result.out
    assert "34 read anew" in result.out
    assert "the KV of 34 of its 34 tokens is read again" in result.err
    assert cli("session", "verify", "bob").code == 0


def test_a_transcript_becomes_a_session(cli: Cli, smollm2: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    lines = f"{JAPAN}\n/save {file}\n".encode()
    cli("chat", "--model", str(smollm2), stdin=lines)
    result = cli("session", "save", "told", str(file), "--model", str(smollm2))
    assert result.code == 0
    again = cli("chat", "--session", "told", stdin=b"And of France?\n/stats")
    assert "The capital of France is Paris." in again.out
    assert "from memory, 0 from disk" in again.out
    file.write_text('{"role": "user", "content": "x"}\n')
    assert "no whole chat" in cli("session", "save", "half", str(file)).err
    assert cli("session", "save", "none", str(tmp_path / "none")).code == 1


def test_a_chat_that_is_killed_loses_one_answer_at_most(bob: Result, own_store: Path) -> None:
    command = [sys.executable, "-m", "edgecortex.cli.main", "chat", "--session", "bob"]
    chat = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert chat.stdin
    assert chat.stdout
    chat.stdin.write("And of France?\nTell me a long story.\n")
    chat.stdin.flush()
    for line in chat.stdout:
        if line.startswith("> Tell me"):
            break
    time.sleep(1)
    chat.send_signal(signal.SIGKILL)
    chat.wait()
    ask = [*command[:-1], "bob"]
    again = subprocess.run(ask, input="/stats\n", capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "session bob: 5 messages, 56 of 56 tokens back" in again.stderr


# The cache.


def test_the_cache_can_be_seen_checked_and_cleared(cli: Cli, bob: Result, own_store: Path) -> None:
    assert cli("cache", "path").out.strip() == str(own_store)
    stats = json.loads(cli("cache", "stats", "--json").out)
    assert stats["nbytes"] == sum(p.stat().st_size for p in (own_store / "blocks").iterdir())
    assert stats["max_bytes"] == EngineConfig.store_max_bytes
    assert "held by" in cli("cache", "stats").out
    assert cli("cache", "verify").code == 0
    assert "0.0 MB removed" in cli("cache", "prune", "--to", "0").out
    cli("session", "rm", "bob", "-y")
    assert "0.0 MB" not in cli("cache", "clear", "--yes").out
    assert json.loads(cli("cache", "stats", "--json").out)["nbytes"] == 0


def test_pruning_leaves_what_fits(cli: Cli, smollm2: Path, own_store: Path) -> None:
    """And it is the beginnings that are left."""
    prompt = " ".join(f"Number {i}." for i in range(150))
    args = ("run", prompt, "--json", "--model", str(smollm2), "--max-tokens", "1")
    cli(*args)
    before = json.loads(cli("cache", "stats", "--json").out)["nbytes"]
    assert "removed" in cli("cache", "prune", "--to", str(before // 2)).out
    after = json.loads(cli("cache", "stats", "--json").out)["nbytes"]
    assert before // 4 < after <= before // 2
    assert after == sum(path.stat().st_size for path in (own_store / "blocks").iterdir())
    assert cli("cache", "verify").code == 0
    found = json.loads(cli(*args).out)
    assert 128 < found["num_disk_tokens"] < found["num_prompt_tokens"] - 128


def test_verify_finds_a_damaged_file(cli: Cli, bob: Result, own_store: Path) -> None:
    (path,) = (own_store / "blocks").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    result = cli("cache", "verify")
    assert result.code == 1
    assert path.name in result.out
    assert json.loads(cli("cache", "stats", "--json").out)["num_quarantined"] == 1


def test_wrong_arguments_of_the_cache(cli: Cli) -> None:
    assert cli("cache", "prune", "--to", "much").code == 2
    assert cli("cache", "prune").code == 2


def test_a_newer_store_is_left_alone(cli: Cli, smollm2: Path, own_store: Path) -> None:
    own_store.mkdir()
    (own_store / "version").write_text("99\n")
    assert "upgrade" in cli("cache", "stats").err
    result = cli("run", JAPAN, "--model", str(smollm2))
    assert (result.code, result.out) == (0, "The capital of Japan is Tokyo.\n")
    assert "nothing is kept on disk" in result.err
    assert cli("chat", "--session", "x", stdin=b"").code == 1


def test_run_says_where_the_prompt_came_from(cli: Cli, smollm2: Path) -> None:
    prompt = "Say what this is about. " + " ".join(f"Number {i}." for i in range(60))
    args = ("run", prompt, "--json", "--model", str(smollm2), "--max-tokens", "2")
    first, second = (json.loads(cli(*args).out) for _ in range(2))
    assert (first["num_disk_tokens"], first["num_memory_tokens"]) == (0, 0)
    assert second["num_disk_tokens"] > 100
    assert second["token_ids"] == first["token_ids"]
    without = json.loads(cli(*args, "--no-cache").out)
    assert without["num_disk_tokens"] == 0
    assert without["token_ids"] == first["token_ids"]
