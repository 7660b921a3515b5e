"""Where a chat's lines come from: a person at a terminal, or a pipe."""

import asyncio
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

from edgecortex.cli.options import decoded
from edgecortex.paths import state_dir

PROMPT = "> "
NEWS_S = 0.25  # between looks for news


def is_interactive() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def piped_lines() -> Iterator[str]:
    """Lines of stdin, each echoed after a prompt so that the output reads as a transcript.

    Raises:
        PromptError: a line is not UTF-8.
    """
    for data in sys.stdin.buffer:
        line = decoded(data).rstrip("\r\n")
        print(f"{PROMPT}{line}", flush=True)
        yield line


class Teller(Protocol):
    """Who has something to say between the lines."""

    def note(self, text: str) -> None: ...

    def has_news(self) -> bool:
        """Whether there is something that was not told yet."""

    def tell_news(self) -> None:
        """Notes it."""


def typed_lines(teller: Teller) -> Iterator[str]:
    """Lines typed at a terminal, with editing and a history that outlives the run.

    A paste may hold several lines. Ctrl-C empties the line, Ctrl-D on an empty one ends. News are
    told above the line.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    session: PromptSession[str]
    try:
        session = PromptSession(PROMPT, history=FileHistory(str(private_file("history"))))
    except OSError as error:
        teller.note(f"no history is kept: {error}")
        session = PromptSession(PROMPT, history=InMemoryHistory())
    while True:
        try:
            line = session.prompt(pre_run=partial(_tell_meanwhile, teller))
        except KeyboardInterrupt:
            if not session.default_buffer.text:
                teller.note("Ctrl-D or /quit leaves, /help lists what else there is")
            continue
        except EOFError:
            return
        yield line


def _tell_meanwhile(teller: Teller) -> None:
    """Looks for news for as long as a line is typed."""
    from prompt_toolkit.application import get_app, run_in_terminal

    async def look() -> None:
        while True:
            await asyncio.sleep(NEWS_S)
            if teller.has_news():
                await run_in_terminal(teller.tell_news)

    get_app().create_background_task(look())


def private_file(name: str) -> Path:
    """A file of the state folder that only its owner can read, made if it is not there."""
    folder = state_dir()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / name
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    path.chmod(0o600)
    return path
