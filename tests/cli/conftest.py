"""Running the command inside the test's process."""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgecortex.bench import journal
from edgecortex.cli.main import main


@dataclass
class Result:
    """What a run of the command left behind."""

    code: int | str | None
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture(autouse=True)
def no_users_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user's stopped benchmarks have left is not theirs."""
    monkeypatch.setattr(journal, "home", lambda: tmp_path / "home")


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
