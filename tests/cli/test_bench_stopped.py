"""Benchmarks that are stopped, with their processes scripted; and the time that is left."""

import json
import sys
from typing import Any

import pytest

from edgecortex.bench import side
from edgecortex.cli import measuring
from tests.cli.conftest import Cli


def test_a_stopped_command_goes_on(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes are scripted; the fourth is stopped."""
    asked: list[str] = []

    def answer(*_: Any, **variables: str) -> Any:
        asked.append(variables["EDGECORTEX_BLAS"])
        if len(asked) == 4:
            raise KeyboardInterrupt
        return {"num_prompt_tokens": 512, "ttft_s": 2.0, "prefill_tokens_per_s": 256.0}

    monkeypatch.setattr(side, "_answer", answer)
    monkeypatch.setattr("edgecortex.cli.main.os._exit", sys.exit)
    stopped = cli("bench", "blas")
    assert (stopped.code, "the same command goes on from there" in stopped.err) == (130, True)
    done = cli("bench", "blas", "--json")
    assert "3 parts are complete since an earlier start" in done.err
    assert json.loads(done.out)["figures"] == {"blas.prefill512_speedup": 1.0}
    assert asked == ["", "", "", "", "", "off"]
    assert "parts are complete" not in cli("bench", "blas").err
    assert len(asked) == 11


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1200, "about 20 min left"), (61, "about 2 min left"), (1, "about 1 min left"), (0, "")],
)
def test_about_how_long(seconds: float, text: str) -> None:
    assert measuring.about_left(seconds) == text
