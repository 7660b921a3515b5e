"""Small facts that outlive a run: lost, they are only worked out again."""

import contextlib
import json
import os
from typing import Any

from edgecortex.paths import state_dir


def remembered(name: str) -> dict[str, Any]:
    """What was noted under a name; nothing if that cannot be read."""
    try:
        known = json.loads((state_dir() / f"{name}.json").read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def remember(name: str, facts: dict[str, Any]) -> None:
    """Notes facts under a name, if that can be done."""
    path = state_dir() / f"{name}.json"
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(facts))
        os.replace(temporary, path)
