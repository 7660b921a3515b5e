"""A program at a terminal of its own."""

import os
import select
import subprocess
import sys
import time
from types import TracebackType

WAIT_S = 60
UP, CTRL_C, CTRL_D, ENTER = "\x1b[A", "\x03", "\x04", "\r"
READY = "\x1b[?2004h"
"""A prompt waits: it has asked the terminal to mark what is pasted."""


def pasted(text: str) -> str:
    """What a terminal sends for a paste."""
    return f"\x1b[200~{text}\x1b[201~"


class Terminal:
    """Types into `edgecortex ARGS` and reads what it shows."""

    def __init__(self, *args: str, **environment: str) -> None:
        spawn = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
        command = [sys.executable, "-c", spawn, sys.executable, "-m", "edgecortex.cli.main", *args]
        # Without CPR: nobody here answers a question about where the cursor is.
        known = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | known | environment,
        )
        self._seen = b""

    def send(self, text: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(text.encode())

    def expect(self, text: str) -> None:
        """Reads up to `text`, which must come after whatever was expected before."""
        deadline = time.monotonic() + WAIT_S
        while text.encode() not in self._seen:
            if time.monotonic() > deadline or not self._read():
                raise AssertionError(f"expected {text!r}, got {self._seen!r}")
        self._seen = self._seen.split(text.encode(), 1)[1]

    def wait(self) -> int:
        """The exit status, once the program has ended by itself."""
        while self._read():
            pass
        return self._process.wait(WAIT_S)

    def _read(self) -> bool:
        assert self._process.stdout
        if not select.select([self._process.stdout], [], [], WAIT_S)[0]:
            return False
        piece = os.read(self._process.stdout.fileno(), 1 << 16)
        self._seen += piece
        return bool(piece)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: object, trace: TracebackType | None
    ) -> None:
        with self._process:
            self._process.kill()
