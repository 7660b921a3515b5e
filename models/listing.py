"""What there is to choose from, and what is here, in plain values to print."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgecortex.errors import ModelError
from edgecortex.models import find, folders, installed, unknown
from edgecortex.models.catalogue import CONTEXT, LIMIT, Entry, catalogue, recommended
from edgecortex.models.machine import Machine


@dataclass(frozen=True)
class Row:
    """One model. `size_bytes` is its folder's size, or that of the download while not here.

    `memory_bytes` is needed at 8,192 tokens of context; it and `fits` are None for a model
    that is not in the catalogue.
    """

    name: str
    description: str
    installed: bool
    size_bytes: int
    memory_bytes: int | None = None
    fits: bool | None = None
    recommended: bool = False


def listing(machine: Machine) -> list[Row]:
    """The catalogue, then whatever else is in the model folder."""
    here = installed()
    choice = recommended(machine)
    rows = [_row(entry, here.get(entry.name), machine, choice) for entry in catalogue().values()]
    others = ((name, path) for name, path in here.items() if name not in catalogue())
    return rows + [Row(name, str(path), True, folders.size_of(path)) for name, path in others]


def _row(entry: Entry, path: Path | None, machine: Machine, choice: Entry | None) -> Row:
    memory = entry.memory_bytes(CONTEXT, machine)
    return Row(
        entry.name,
        entry.description,
        path is not None,
        folders.size_of(path) if path else entry.download_bytes,
        memory,
        memory <= LIMIT * machine.memory_bytes,
        entry is choice,
    )


def info(name: str) -> dict[str, Any]:
    """All that is known of one model, here or not.

    Raises:
        ModelError: no such name; the message lists those there are.
    """
    path, entry = find(name), catalogue().get(name)
    if path is None and entry is None:
        raise unknown(name)
    facts: dict[str, Any] = {"name": name, "path": str(path) if path else None}
    if entry:
        facts |= asdict(entry) | {"source": entry.source}
    if path:
        facts |= {"size_bytes": folders.size_of(path)}
        facts["config"] = _config(path / "config.json")
    return facts


def _config(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: expected JSON, got: {error}") from error
