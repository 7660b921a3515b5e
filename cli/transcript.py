"""A chat as a file that needs no model to be read."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from edgecortex.errors import EdgeCortexError
from edgecortex.paths import expanded

Messages = Sequence[dict[str, str]]


def save(messages: Messages, name: str) -> Path:
    """Writes JSON lines to a name that ends in `.jsonl`, Markdown to any other.

    Without a name the file is called by the time, in the current folder.

    Raises:
        EdgeCortexError: the file is there already, or cannot be written.
    """
    path = expanded(name or time.strftime("chat-%Y%m%d-%H%M%S.md"))
    text = _json_lines(messages) if path.suffix == ".jsonl" else markdown(messages)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise EdgeCortexError(f"{path} exists and is left alone; choose another name") from error
    except OSError as error:
        raise EdgeCortexError(f"cannot write {path}: {error.strerror}") from error
    return path.absolute()


def read(path: Path) -> tuple[str | None, list[tuple[str, str]]]:
    """The system prompt and the turns, question and answer, of a chat saved as JSON lines.

    Raises:
        EdgeCortexError: it cannot be read, or is no such chat.
    """
    try:
        messages = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
        told = [(message["role"], str(message["content"])) for message in messages]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EdgeCortexError(f"cannot read {path} as a chat in JSON lines: {error}") from error
    system = told.pop(0)[1] if told and told[0][0] == "system" else None
    asked, answered = told[::2], told[1::2]
    roles = [role for role, _ in asked], [role for role, _ in answered]
    if not told or roles != (["user"] * len(asked), ["assistant"] * len(asked)):
        raise EdgeCortexError(
            f"{path} is no whole chat: expected turns of user and assistant in JSON lines, as "
            "/save NAME.jsonl writes them"
        )
    return system, [(q, a) for (_, q), (_, a) in zip(asked, answered, strict=True)]


def markdown(messages: Messages) -> str:
    """Messages to be read by people."""
    return "\n".join(f"## {m['role']}\n\n{m['content']}\n" for m in messages)


def _json_lines(messages: Messages) -> str:
    return "".join(json.dumps(message, ensure_ascii=False) + "\n" for message in messages)
