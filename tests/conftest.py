"""Fixtures for all tests. Models are real: pulled once, kept in the ordinary model folder."""

import os
from pathlib import Path

import pytest

import edgecortex  # noqa: F401  (before mlx: it loads a fast BLAS)
from edgecortex.models import resolve


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct: chat, full attention."""
    return resolve("smollm2-135m")


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """The folder of Gemma 3 270M: no chat template, 15 of 18 layers with a window of 512."""
    return resolve("gemma3-270m")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for EdgeCortex, also in processes that the test starts."""
    monkeypatch.setenv("EDGECORTEX_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EDGECORTEX_STORE")
    return tmp_path / "home"


@pytest.fixture(scope="session", autouse=True)
def no_users_store(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Engines and commands keep their KV in a folder of this run, not in the user's."""
    os.environ["EDGECORTEX_STORE"] = str(tmp_path_factory.mktemp("store"))
