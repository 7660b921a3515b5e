"""TOML files that people write: read, and checked table by table."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecortex.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Types = Mapping[str, tuple[type, ...]]
TEXT: tuple[type, ...] = (str,)


def read(path: Path) -> dict[str, Any]:
    """
    Raises:
        OSError, ValueError: it cannot be read, or is no TOML.
    """
    return tomllib.loads(path.read_text("utf-8"))


def checked(values: Any, where: str, types: Types) -> dict[str, Any]:
    """
    Raises:
        ConfigError: no table, an unknown key, or a value of another type.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a table, got {values!r:.60}")
    for key, value in values.items():
        if key not in types:
            raise ConfigError(f"{where}: unknown key {key!r}, expected some of {', '.join(types)}")
        if type(value) not in types[key]:
            expected = " or ".join(kind.__name__ for kind in types[key])
            raise ConfigError(f"{where}: {key} must be {expected}, got {value!r:.60}")
    return values
