"""`edgecortex council`, and side agents in `edgecortex chat`, on the real model."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgecortex.cli.chat import Chat
from edgecortex.cli.thoughts import Listener
from edgecortex.warp.stream import Thought
from tests import scripted
from tests.cli.conftest import Cli
from tests.cli.terminal import CTRL_C, CTRL_D, ENTER, READY, Terminal

JAPAN = "What is the capital of Japan?"
SAME = ("--task", "Name the capital of Japan.", "--task", "Name the capital of Japan.")
TWO = ("--task", "Name the capital of Japan.", "--task", "Name three colours.", "--no-gate")
LINE = re.compile(r"\d+\. .+ → (accepted|rejected|failed|cancelled)\b")


def record(cli: Cli, smollm2: Path, *args: str, stdin: bytes = b"") -> dict[str, Any]:
    """What `--json` prints: one object, and nothing else."""
    result = cli("council", *args, "--json", "--model", str(smollm2), stdin=stdin)
    assert result.code == 0, result.err
    assert result.out.endswith("}\n")
    assert result.out.count("\n") == 1
    return dict(json.loads(result.out))


# The council.


def test_the_answer_alone_is_on_stdout(cli: Cli, smollm2: Path) -> None:
    result = cli("council", JAPAN, "--model", str(smollm2), "--max-tokens", "40")
    assert result.code == 0
    assert "Tokyo" in result.out
    assert "→" not in result.out
    lines = result.err.splitlines()
    assert sorted(line.split(".")[0] for line in lines) == ["1", "2", "3"]
    assert all(LINE.match(line) for line in lines)


def test_json_has_the_answer_thoughts_and_settings(cli: Cli, smollm2: Path) -> None:
    args = (JAPAN, *TWO, "--role", "You are a teacher.", "--stream-tokens", "24", "--seed", "3")
    args += ("--max-tokens", "16")
    found = record(cli, smollm2, *args)
    assert found.keys() == {"question", "answer", "model", "settings", "thoughts", "stats"}
    assert (found["question"], found["model"]) == (JAPAN, str(smollm2))
    assert (
        found["settings"].items()
        >= {
            "threshold": None,
            "mode": "forward",
            "stream_tokens": 24,
            "wait": True,
            "seed": 3,
        }.items()
    )
    first, second, third = map(Thought.from_dict, found["thoughts"])
    assert (first.task, second.task) == ("Name the capital of Japan.", "Name three colours.")
    assert (third.task, third.role) == (JAPAN, "You are a teacher.")
    for thought in (first, second):
        assert (thought.status, thought.origin) == ("accepted", "planned")
        assert thought.text
        assert thought.id
        assert -1 <= (thought.score or -2) <= 1
        assert min(thought.think_s, thought.inject_s, thought.num_tokens, thought.num_said) > 0
    stats = found["stats"]
    assert stats["finish_reason"] in ("stop", "length")
    assert 0 < stats["num_generated_tokens"] <= 16
    assert stats["ttft_s"] > max(first.think_s, second.think_s)  # it waited for them


def test_thoughts_may_be_longer_than_a_short_question(cli: Cli, smollm2: Path) -> None:
    found = record(cli, smollm2, "Why is the sky blue?", *TWO, "--task", "Say what the sun is.")
    accepted = [thought for thought in found["thoughts"] if thought["status"] == "accepted"]
    assert len(accepted) == 3
    assert sum(t["num_tokens"] for t in accepted) > found["stats"]["num_prompt_tokens"]
    assert "[" not in found["answer"]  # of what marks a thought nothing shows


def test_one_thought_of_two_streams_is_injected_once(cli: Cli, smollm2: Path) -> None:
    thoughts = record(cli, smollm2, JAPAN, *SAME, "--no-gate")["thoughts"]
    assert thoughts[0]["text"] == thoughts[1]["text"]
    verdicts = {(thought["status"], thought["reason"]) for thought in thoughts}
    assert verdicts == {("accepted", ""), ("rejected", "already known")}


def test_the_gate_rejects_what_does_not_reach_its_threshold(cli: Cli, smollm2: Path) -> None:
    (thought,) = record(cli, smollm2, JAPAN, *SAME[:2], "--threshold", "1")["thoughts"]
    assert (thought["status"], thought["id"]) == ("rejected", "")
    assert thought["reason"] == "unlike what the River is about"
    assert thought["score"] < 1


def test_all_can_be_in_a_file(cli: Cli, smollm2: Path, tmp_path: Path) -> None:
    file = tmp_path / "council.toml"
    file.write_text(
        f"""
        question = "{JAPAN}"
        system = "You are brief."
        threshold = -1
        landmarks = 16
        mode = "graft"
        [[stream]]
        task = "Name the capital of Japan."
        kind = "CHECK"
        [[stream]]
        role = "You are a teacher."
        mode = "forward"
        """
    )
    found = record(cli, smollm2, "--file", str(file), "--task", "Name three colours.")
    assert found["question"] == JAPAN
    given = {"threshold": -1, "landmarks": 16, "mode": "graft", "system": "You are brief."}
    assert found["settings"].items() >= given.items()
    first, second, third = map(Thought.from_dict, found["thoughts"])
    assert (first.kind, first.mode, first.status) == ("CHECK", "graft", "accepted")
    assert (second.role, second.task, second.mode) == ("You are a teacher.", JAPAN, "forward")
    assert (third.task, third.mode) == ("Name three colours.", "graft")
    other = ("--file", str(file), "Why?", "--mode", "forward", "--max-tokens", "1", "--no-gate")
    found = record(cli, smollm2, *other, "--stream-tokens", "1")
    assert (found["question"], found["settings"]["mode"]) == ("Why?", "forward")
    assert found["settings"]["threshold"] is None


def test_text_comes_before_the_question(cli: Cli, smollm2: Path, tmp_path: Path) -> None:
    text = "The password of the library is 'orange'.\n"
    file = tmp_path / "text"
    file.write_text(text)
    args = ("What is the password of the library?", *SAME[:2], "--max-tokens", "24", "--context")
    found = record(cli, smollm2, *args, str(file))
    assert "orange" in found["answer"].lower()
    assert found["settings"]["context"] == str(file)
    piped = record(cli, smollm2, *args, "-", stdin=text.encode())
    assert piped["answer"] == found["answer"]


def test_the_answer_need_not_wait(cli: Cli, smollm2: Path) -> None:
    found = record(cli, smollm2, JAPAN, *TWO, "--no-wait", "--max-tokens", "8")
    assert "Tokyo" in found["answer"]
    for thought in found["thoughts"]:
        assert thought["origin"] == "asked"
        assert thought["status"] in ("accepted", "cancelled")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 1, "the question is empty: expected some text, as an argument or in a file"),
        ([" \n"], 1, "the question is empty"),
        (["caf\udce9"], 1, "the question is not text: expected UTF-8"),
        (["Why?", "--role", ""], 1, "the role is empty"),
        (["Why?", "--task", " "], 1, "the task is empty"),
        (["Why?", "--threshold", "1.5"], 2, "threshold must be between -1 and 1, got 1.5"),
        (["Why?", "--threshold", "nan"], 2, "threshold must be between -1 and 1, got nan"),
        (["Why?", "--no-gate", "--threshold", "0"], 2, "leave out --threshold"),
        (["Why?", "--mode", "paste"], 2, "mode must be forward or graft, got 'paste'"),
        (["Why?", "--landmarks", "3"], 2, "landmarks: num_landmarks must be at least 16, got 3"),
        (["Why?", "--temp", "-1"], 2, "temperature"),
        (["Why?", "--file", "none.toml"], 2, "none.toml is no council: expected a TOML file"),
        (["Why?", "--file", "."], 2, ". is no council: expected a TOML file, got: Is a directory"),
        (["--file", "bad.toml"], 2, "bad.toml: stream 1: unknown key 'rolle'"),
        (["Why?", "--context", "none"], 1, "cannot read the context none: No such file"),
        (["Why?", "--context", "latin"], 1, "latin is not text: expected UTF-8, got byte 0xe9"),
    ],
)
def test_mistakes_are_a_line_and_nothing_is_begun(
    cli: Cli,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    code: int,
    message: str,
) -> None:
    (tmp_path / "bad.toml").write_text('question = "Why?"\n[[stream]]\nrolle = "Cook"\n')
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    monkeypatch.chdir(tmp_path)
    result = cli("council", *args)
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("edgecortex: ")
    assert message in result.err
    assert result.err.count("\n") == 1
    assert not home.exists()


def test_a_question_longer_than_the_context(cli: Cli, smollm2: Path) -> None:
    result = cli("council", "word " * 9000, *TWO, "--model", str(smollm2))
    assert (result.code, result.out) == (1, "")
    assert "expected at most 7680 tokens" in result.err
    assert result.err.count("\n") == 1


def test_at_a_terminal(smollm2: Path) -> None:
    with Terminal("council", JAPAN, *SAME, "--no-gate", "--model", str(smollm2)) as terminal:
        terminal.expect("role or task")
        terminal.expect("thinking")
        terminal.expect("accepted")
        terminal.expect("already known")
        terminal.expect("└")
        terminal.expect("Tokyo")
        assert terminal.wait() == 0


def test_ctrl_c_ends_it_quietly(smollm2: Path) -> None:
    command = [sys.executable, "-m", "edgecortex.cli.main", "council", JAPAN, *TWO]
    command += ["--model", str(smollm2), "--role", "You write long stories.", "--no-wait"]
    command += ["--system", "You write long stories."]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.read(4)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        lines = process.stderr.read().splitlines()
    assert len(lines) == 3
    assert all(LINE.match(line) for line in lines)


# In a chat.


@pytest.fixture
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECORTEX_STORE", str(tmp_path / "store"))


def test_the_model_asks_for_helpers_by_itself(cli: Cli, smollm2: Path, own_store: None) -> None:
    args = ("chat", "--council", "--session", "sky", "--model", str(smollm2))
    result = cli(*args, "--max-tokens", "128", stdin=b"Why is the sky blue?\n")
    assert result.code == 0
    asked = re.search(r"\[TASK: (.+?)\]", result.out.replace("\n", " "))
    assert asked, result.out
    (line,) = (line for line in result.err.splitlines() if LINE.match(line))
    assert line.startswith(f"1. {asked[1][:30]}")
    shown = cli("session", "show", "sky").out
    assert shown.count("## user") == 4  # three of them examples
    again = cli("chat", "--council", "--session", "sky", stdin=b"")
    assert again.code == 0
    assert cli("session", "show", "sky").out == shown


def test_a_system_prompt_of_the_users_own_stands_alone(cli: Cli, smollm2: Path) -> None:
    args = ("chat", "--council", "--system", "Be brief.", "--model", str(smollm2))
    result = cli(*args, stdin=f"{JAPAN}\n/stats\n".encode())
    assert (result.code, "Tokyo" in result.out) == (0, True)
    assert re.search(r"prompt   \d\d tokens", result.out)


def test_helpers_go_on_when_the_answer_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    script = {"Why?": ["So. [TASK: look", " it up] And [TASK: look it up.] ", "[CHECK]", " that"]}
    with scripted.engine(script) as engine:
        talk = Chat(engine, engine.agent(), council=True)
        talk.take("Why?")
        talk.take("Why?")  # another answer may ask the same again
        talk.finish(wait=True)
        asked = [(thought.kind, thought.task) for thought in talk.agent.thoughts]
        ended = [thought.ended for thought in talk.agent.thoughts]
    assert asked == [("TASK", "look it up"), ("CHECK", "that")] * 2
    assert all(ended)
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.split(" →")[0] for line in lines) == [
        "1. look it up",
        "2. that",
        "3. look it up",
        "4. that",
    ]


def test_what_a_stopped_answer_asked_for_is_let_go() -> None:
    with scripted.engine({"Why?": ["So."]}) as engine:
        agent = engine.agent()
        agent.chat("Why?").text()
        listener = Listener(agent)
        listener.hear("[TASK: a][SEARCH] b")
        listener.end(whole=False)
        for stream in list(agent.think_with().streams):
            stream.result(60)
        (thought,) = agent.thoughts
    assert (thought.task, thought.status) == ("a", "cancelled")


def test_only_those_who_want_it_are_listened_to() -> None:
    with scripted.engine({"Why?": ["So. [TASK: look it up]"]}) as engine:
        talk = Chat(engine, engine.agent())
        talk.take("Why?")
        assert talk.agent.thoughts == []


def test_thoughts_are_kept_with_a_session(cli: Cli, smollm2: Path, own_store: None) -> None:
    lines = f"{JAPAN}\n/task Name the capital of Japan.\n".encode()
    first = cli("chat", "--session", "bob", "--model", str(smollm2), stdin=lines)
    assert first.code == 0
    assert "1. Name the capital of Japan. → accepted" in first.err
    assert first.err.endswith("session bob is saved\n")

    def chat(stdin: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "edgecortex.cli.main", "chat", "--session", "bob"]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True)

    listed = chat("/thoughts\n")
    assert "session bob: 3 messages, 1 thoughts, " in listed.stderr
    assert "→" not in listed.stderr  # it was told before
    found = re.search(r"1\. ([0-9a-f]{8}) Name the capital of Japan\. → accepted", listed.stdout)
    assert found
    shown = json.loads(cli("session", "show", "bob", "--json").out)
    assert [thought["id"][:8] for thought in shown["thoughts"]] == [found[1]]

    gone = chat(f"/forget {found[1]}\n/thoughts\nAnd of France?\n")
    assert "taken back: " in gone.stderr
    assert "→ rejected" in gone.stdout
    assert "(taken back)" in gone.stdout
    assert "Paris" in gone.stdout
    assert json.loads(cli("session", "show", "bob", "--json").out)["thoughts"] == []
    assert "thoughts" not in chat("").stderr


def test_thoughts_at_a_terminal(tmp_path: Path, smollm2: Path) -> None:
    home = str(tmp_path / "home")
    with Terminal("chat", "--model", str(smollm2), EDGECORTEX_HOME=home) as terminal:
        terminal.expect(READY)
        terminal.send("/task Name the capital of Japan." + ENTER)
        terminal.expect("there is nothing to think about yet: ask something first")
        terminal.expect(READY)
        terminal.send(JAPAN + ENTER)
        terminal.expect("Tokyo")
        terminal.expect(READY)
        terminal.send("/task Name the capital of Japan." + ENTER)
        terminal.expect(READY)
        terminal.expect("1. Name the capital of Japan. → accepted")  # nobody had to ask
        terminal.send(CTRL_C)
        terminal.expect(READY)
        terminal.send("/task" + ENTER)
        terminal.expect("the task is empty")
        terminal.expect(READY)
        terminal.send("/forget 0123" + ENTER)
        terminal.expect("no thought '0123' to take back; there are: ")
        terminal.expect(READY)
        terminal.send("/reset" + ENTER)
        terminal.expect("forgotten")
        terminal.expect(READY)
        terminal.send("/thoughts" + ENTER)
        terminal.expect("no thoughts so far")
        terminal.expect(READY)
        terminal.send(CTRL_D)
        assert terminal.wait() == 0
