"""Running the command inside the test's process."""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from edgecortex.cli.main import main


@dataclass
class Result:
    """What a run of the command left behind."""

    code: int | str | None
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs `edgecortex ARGS` with bytes on stdin."""

    def run(*args: str, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "argv", ["edgecortex", *args])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as done:
            main()
        out, err = capsys.readouterr()
        return Result(done.value.code or 0, out, err)

    return run
