"""Where EdgeCortex keeps its files. Nothing here creates a folder."""

import os
import sys
from pathlib import Path

from edgecortex.errors import ConfigError


def expanded(name: str) -> Path:
    """A path as it was typed, with `~` for a home.

    Raises:
        ConfigError: there is no such user.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{name}: expected a user's home after ~, got none: {error}") from error


def home() -> Path:
    """The root: `EDGECORTEX_HOME`, or the platform's cache folder."""
    if chosen := os.environ.get("EDGECORTEX_HOME"):
        return expanded(chosen).absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "edgecortex"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgecortex"


def models_dir() -> Path:
    """One folder per model."""
    return home() / "models"


def store_dir() -> Path:
    """KV blocks and saved sessions: `EDGECORTEX_STORE`, or a folder of the root."""
    if chosen := os.environ.get("EDGECORTEX_STORE"):
        return expanded(chosen).absolute()
    return home() / "store"


def state_dir() -> Path:
    """Small things that outlive a run, such as the chat's line history."""
    return home() / "state"
