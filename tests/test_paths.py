"""Where files are."""

from pathlib import Path

import pytest

from edgecortex import workflow
from edgecortex.cli import transcript
from edgecortex.errors import ConfigError
from edgecortex.models import find
from edgecortex.paths import expanded, store_dir

NOBODY = "~nobody-of-this-name/x"


def test_a_home_is_put_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert expanded("~/x") == Path("/somewhere/x")


def test_a_home_that_nobody_has_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECORTEX_STORE", NOBODY)
    for action in (
        store_dir,
        lambda: find(NOBODY),
        lambda: workflow.load(NOBODY),
        lambda: transcript.save([], NOBODY),
    ):
        with pytest.raises(ConfigError, match=f"{NOBODY}: expected a user's home"):
            action()
