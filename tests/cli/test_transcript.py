"""Saved chats."""

import json
from pathlib import Path

import pytest

from edgecortex.cli.transcript import save
from edgecortex.errors import EdgeCortexError

MESSAGES = [{"role": "user", "content": "Où?"}, {"role": "assistant", "content": "Ici.\nLà."}]


def test_json_lines(tmp_path: Path) -> None:
    path = save(MESSAGES, str(tmp_path / "chat.jsonl"))
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == MESSAGES


def test_markdown(tmp_path: Path) -> None:
    path = save(MESSAGES, str(tmp_path / "chat.md"))
    assert path.read_text("utf-8") == "## user\n\nOù?\n\n## assistant\n\nIci.\nLà.\n"


def test_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(MESSAGES, "")
    assert path.parent == tmp_path
    assert path.name.startswith("chat-")


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    path = save(MESSAGES, str(tmp_path / "chat.md"))
    with pytest.raises(EdgeCortexError, match="choose another name"):
        save([], str(path))
    assert "Ici" in path.read_text("utf-8")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EdgeCortexError, match="No such file"):
        save(MESSAGES, str(tmp_path / "none" / "chat.md"))
