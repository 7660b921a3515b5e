"""A chat as a file that needs no model to be read."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from edgecortex.errors import EdgeCortexError

Messages = Sequence[dict[str, str]]


def save(messages: Messages, name: str) -> Path:
    """Writes JSON lines to a name that ends in `.jsonl`, Markdown to any other.

    Without a name the file is called by the time, in the current folder.

    Raises:
        EdgeCortexError: the file is there already, or cannot be written.
    """
    path = Path(name or time.strftime("chat-%Y%m%d-%H%M%S.md")).expanduser()
    text = _json_lines(messages) if path.suffix == ".jsonl" else _markdown(messages)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise EdgeCortexError(f"{path} exists and is left alone; choose another name") from error
    except OSError as error:
        raise EdgeCortexError(f"cannot write {path}: {error.strerror}") from error
    return path.absolute()


def _markdown(messages: Messages) -> str:
    return "\n".join(f"## {m['role']}\n\n{m['content']}\n" for m in messages)


def _json_lines(messages: Messages) -> str:
    return "".join(json.dumps(message, ensure_ascii=False) + "\n" for message in messages)
