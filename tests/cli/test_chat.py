"""`edgecortex chat` on the real model, by pipe and at a terminal."""

import json
import signal
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from edgecortex import Engine, EngineConfig, Generation
from edgecortex.cli.chat import Chat, _interrupt_cancels
from edgecortex.errors import StoreError
from tests.cli.conftest import Cli
from tests.cli.terminal import CTRL_C, CTRL_D, ENTER, READY, UP, Terminal, pasted


@pytest.fixture(scope="module")
def small_engine(smollm2: Path) -> Iterator[Engine]:
    """With so short a context that a few turns fill it."""
    with Engine.load(str(smollm2), config=EngineConfig(context_length=96)) as engine:
        yield engine


@pytest.fixture
def talk(small_engine: Engine) -> Iterator[Chat]:
    agent = small_engine.agent(system="You are a helpful assistant.")
    yield Chat(small_engine, agent)
    agent.close()


def test_piped_lines_make_a_transcript(cli: Cli, home: Path, smollm2: Path) -> None:
    lines = "What is the capital of Japan?\n\nHow many days are in a week?\n/stats\n/quit\nnever\n"
    result = cli(
        "chat", "--model", str(smollm2), "--no-cache", "--kv-format", "kv4", stdin=lines.encode()
    )
    assert result.code == 0
    first, second = result.out.split("> How many days are in a week?\n")
    assert first == "> What is the capital of Japan?\nThe capital of Japan is Tokyo.\n> \n"
    assert "7" in second.splitlines()[0]
    assert "of 8,192 tokens; KV" in second
    assert "never" not in second
    assert f"{smollm2}, context of 8,192 tokens, " in result.err
    assert not home.exists()


def test_a_piped_line_that_is_not_utf8(cli: Cli, smollm2: Path) -> None:
    result = cli("chat", "--model", str(smollm2), stdin=b"/help\n\xff\n")
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith("edgecortex: stdin is not text")


def test_help_and_unknown_commands_list_what_there_is(
    talk: Chat, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["/help", "/stats", "/task", "/thoughts", "/forget"]
    names += ["/reset", "/save", "/session", "/quit"]
    talk.take("/help")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == names
    talk.take("/hlep me")
    assert capsys.readouterr().err == (f"unknown command /hlep; there are {', '.join(names)}\n")


def test_quit(talk: Chat) -> None:
    with pytest.raises(EOFError):
        talk.take("/quit")


def test_reset_forgets_all_but_the_system_prompt(talk: Chat) -> None:
    talk.take("Say hello.")
    assert talk.agent.kv_nbytes > 0
    talk.take("/reset")
    assert talk.agent.messages == [{"role": "system", "content": "You are a helpful assistant."}]
    assert (talk.agent.num_tokens, talk.agent.kv_nbytes) == (0, 0)


def test_stats_before_and_after_an_answer(talk: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    talk.take("/stats")
    assert capsys.readouterr().out == "context  0 of 96 tokens; KV 0.0 MB\n"
    talk.take("What is the capital of Japan?")
    capsys.readouterr()
    talk.take("/stats")
    prompt, answer, context = capsys.readouterr().out.splitlines()
    assert prompt.startswith(
        "prompt   27 tokens: 0 from memory, 0 from disk, 27 read anew; first token after "
    )
    assert answer.startswith("answer   7 tokens (")
    assert context.startswith("context  34 of 96 tokens; KV ")


def test_a_full_context_is_said_and_goes_on(talk: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(4):
        talk.take("What is the capital of Japan?")
    shown = capsys.readouterr()
    assert "the context is full: the oldest 4 messages were dropped" in shown.err
    assert shown.out.count("Tokyo") == 4
    assert talk.agent.messages[0]["role"] == "system"
    assert talk.agent.num_tokens <= 96


def test_an_answer_that_meets_the_limit_says_so(
    talk: Chat, capsys: pytest.CaptureFixture[str]
) -> None:
    talk.take("Write a long story about a dog.")
    assert capsys.readouterr().err == "(stopped: the context is full)\n"


def test_a_session_that_a_chat_begins_is_locked(talk: Chat, small_engine: Engine) -> None:
    sessions = small_engine.store.sessions
    talk.take("Say hello.")
    talk.take("/session begun")
    talk.take("/session begun")  # once more is harmless
    with pytest.raises(StoreError, match="in use by another"), sessions.locked("begun"):
        pass
    talk.finish(wait=True)
    with pytest.raises(StoreError, match="there is a session 'begun'"):
        talk.take("/session BEGUN")
    talk.held.close()
    with sessions.locked("begun"):
        assert sessions.load("begun").messages == talk.agent.messages


def test_what_cannot_be_kept_is_said_and_kept_later(
    talk: Chat, small_engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    sessions = small_engine.store.sessions
    with pytest.MonkeyPatch.context() as patch, talk.held:
        patch.setattr(sessions, "write", full)
        talk.take("/session later")
        talk.take("Say hello.")
        assert "session later is not saved: the disk is full" in capsys.readouterr().err
        patch.undo()
        with suppress(StoreError):
            talk.finish(wait=True)
        talk.take("What is the capital of Japan?")
        talk.finish(wait=True)
    assert capsys.readouterr().err.endswith("session later is saved\n")
    assert len(sessions.load("later").messages) == len(talk.agent.messages)


def test_ctrl_c_twice_is_as_good_as_once() -> None:
    generation = Generation()
    with _interrupt_cancels(generation):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert generation.cancelled
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_at_a_terminal(tmp_path: Path, smollm2: Path) -> None:
    home, saved = tmp_path / "home", tmp_path / "chat.jsonl"
    chat = ["chat", "--model", str(smollm2)]
    with Terminal(*chat, EDGECORTEX_HOME=str(home)) as terminal:
        terminal.expect(READY)
        terminal.send("Write a long story about a dog." + ENTER)
        terminal.expect("Once")
        terminal.send(CTRL_C)
        terminal.expect("(stopped)")
        terminal.expect(READY)
        terminal.send(CTRL_C)
        terminal.expect("Ctrl-D or /quit leaves")
        terminal.expect(READY)
        terminal.send(pasted("What is the capital\nof Japan?") + ENTER)
        terminal.expect("Tokyo")
        terminal.expect(READY)
        terminal.send(f"/save {saved}" + ENTER)
        terminal.expect("saved to ")
        terminal.expect(READY)
        terminal.send(CTRL_D)
        assert terminal.wait() == 0
    messages = [json.loads(line) for line in saved.read_text().splitlines()]
    assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * 2]
    assert messages[3]["content"] == "What is the capital\nof Japan?"
    history = home / "state" / "history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert stat.S_IMODE(history.parent.stat().st_mode) == 0o700
    with Terminal(*chat, EDGECORTEX_HOME=str(home)) as terminal:
        terminal.expect(READY)
        terminal.send(UP + UP + ENTER)
        terminal.expect("Tokyo")
        terminal.expect(READY)
        terminal.send("/quit" + ENTER)
        assert terminal.wait() == 0
