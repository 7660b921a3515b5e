"""What every benchmark shares: its record, how that is read again, and how it is printed."""

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from math import isfinite
from pathlib import Path
from statistics import median as median
from typing import Any

from rich.console import Console
from rich.table import Table

from edgecortex import doctor
from edgecortex.bench.figures import FIGURES
from edgecortex.errors import EdgeCortexError
from edgecortex.models.machine import this_machine

WIDTH = 200  # columns of what is not printed on a terminal
KEYS = ("benchmark", "machine", "versions", "settings", "figures", "rows")
Row = dict[str, Any]
Report = dict[str, Any]


def make_report(
    benchmark: str,
    settings: dict[str, Any],
    figures: dict[str, float],
    rows: Sequence[Row],
    spread: dict[str, list[float]] | None = None,
) -> Report:
    """One benchmark's result. `figures` are named as in `<benchmark>.<figure>`, and `spread` has
    the least and the most of those that were measured several times; `rows` are the single
    measurements, with units in their keys."""
    return {
        "benchmark": benchmark,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": doctor.versions(),
        "settings": settings,
        "figures": figures,
        "spread": spread or {},
        "rows": list(rows),
    }


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "device": doctor.device_name(),
        "num_cpus": os.cpu_count(),
        "memory_bytes": this_machine().memory_bytes,
    }


GROUPS = 4
ROUNDS = f"where there are enough contexts, {GROUPS} groups of them"


def groups(contexts: int) -> list[slice]:
    """Contexts in groups that count as rounds, so that a figure about all has a spread; none
    where they are few."""
    return [slice(i, None, GROUPS) for i in range(GROUPS)] if contexts >= 2 * GROUPS else []


def spread(
    figures: Mapping[str, float], rounds: Sequence[Mapping[str, float]]
) -> dict[str, list[float]]:
    """The least and the most of each figure over the rounds, where there are several. Figures
    that are the worst of some medians may lie outside of all rounds: they count too."""
    found = {}
    for name, value in figures.items():
        values = [figures[name] for figures in rounds if name in figures]
        if len(values) > 1:
            found[name] = [min(value, *values), max(value, *values)]
    return found


# Kept and read again.


def to_json(content: Any) -> str:
    """JSON that any reader takes: what is not a number, nor finite, is null."""
    return json.dumps(_finite(content), ensure_ascii=False, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not isfinite(content) else content


def read_report(path: Path) -> Report:
    """A report from its file.

    Raises:
        EdgeCortexError: the file cannot be read, or is none.
    """
    found = _read_json(path)
    if not is_report(found):
        raise EdgeCortexError(
            f"{path} is no result of a benchmark: expected an object with {', '.join(KEYS)}"
        )
    return dict(found)


def read_reports(folder: Path) -> dict[str, Report]:
    """All reports of a folder by their files' stems; other JSON files are passed over.

    Raises:
        EdgeCortexError: there are none, or a file cannot be read.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    except OSError as error:
        raise EdgeCortexError(f"cannot read the folder {folder}: {error.strerror}") from error
    found = {path.stem: _read_json(path) for path in paths}
    reports = {stem: content for stem, content in found.items() if is_report(content)}
    if not reports:
        raise EdgeCortexError(
            f"{folder} has no results: expected files that `edgecortex bench NAME --out` wrote"
        )
    return reports


def is_report(content: Any) -> bool:
    return isinstance(content, dict) and all(key in content for key in KEYS)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise EdgeCortexError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise EdgeCortexError(f"{path} is not JSON: {error}") from error


# In words and numbers.


def made_on(report: Report) -> str:
    """The machine, the versions and the date, in a line."""
    here, versions = report["machine"], report["versions"]
    parts = [
        here["system"],
        here["device"],
        f"{here['num_cpus']} CPUs",
        f"{here['memory_bytes'] / 1e9:.1f} GB of memory",
        *(f"{name} {version}" for name, version in versions.items() if version),
    ]
    date = report.get("date")
    return ", ".join(parts) + (f"; {date}" if date else "")


def settings_of(report: Report) -> dict[str, str]:
    """Settings as text; one that has parts is a setting for each. Definitions are none."""
    found: dict[str, str] = {}
    for name, value in report["settings"].items():
        if isinstance(value, dict):
            parts = {} if name == "definitions" else value
            found |= {f"{name}.{part}": cell(of_it) for part, of_it in parts.items()}
        else:
            found[name] = cell(value)
    return found


def definitions_of(report: Report) -> dict[str, str]:
    """What the words in a report's rows mean."""
    return dict(report["settings"].get("definitions", {}))


def tables(rows: Iterable[Row]) -> list[tuple[list[str], list[list[str]]]]:
    """Columns and lines of text, a table for each kind of rows. Rounds of the same thing are one
    line: the median, with the least and the most."""
    found: dict[tuple[str, ...], list[list[str]]] = {}
    for row in _over_rounds(list(rows)):
        found.setdefault(tuple(row), []).append(list(row.values()))
    return [(list(columns), lines) for columns, lines in found.items()]


def _over_rounds(rows: Sequence[Row]) -> list[dict[str, str]]:
    kinds: dict[Any, list[Row]] = {}
    for row in rows:
        kinds.setdefault(_kind(row), []).append(row)
    asked = {kind: _asked(of_it) for kind, of_it in kinds.items()}
    groups: dict[Any, list[Row]] = {}
    for number, row in enumerate(rows):
        kind = _kind(row)
        same = tuple(row[name] for name in asked[kind]) if "round" in row else number
        groups.setdefault((kind, same), []).append(row)
    return [
        {name: _cell_of([row[name] for row in group]) for name in group[0] if name != "round"}
        for group in groups.values()
    ]


def _kind(row: Row) -> tuple[Any, ...]:
    """A row's columns, and what it has in them that is no number."""
    return tuple((name, None if _is_number(value) else str(value)) for name, value in row.items())


def _asked(rows: Sequence[Row]) -> list[str]:
    """The columns whose whole numbers say what was measured, in rows of one kind: no round has
    one there that the first has not. Others are measurements themselves."""
    first = [row for row in rows if row.get("round") == rows[0].get("round")]
    whole = [name for name, value in rows[0].items() if type(value) is int and name != "round"]
    return [name for name in whole if {row[name] for row in rows} == {row[name] for row in first}]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell_of(values: list[Any]) -> str:
    if len(set(map(str, values))) == 1:
        return cell(values[0])
    middle = median(values)
    if all(isinstance(value, int) for value in values):
        middle = round(middle)
    return f"{cell(middle)} ({between([min(values), max(values)])})"


def between(ends: Sequence[float] | None) -> str:
    """Such as `1.2 to 1.5`; nothing where there is no spread."""
    return f"{cell(ends[0])} to {cell(ends[1])}" if ends else ""


def cell(value: object) -> str:
    """A value as text, numbers to four digits."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def figure_line(name: str, report: Report) -> str:
    """A figure with its spread, and whether it is what it should be."""
    value = report["figures"][name]
    parts = [f"{name}  {cell(value)}"]
    if ends := report.get("spread", {}).get(name):
        parts.append(f"({between(ends)})")
    if name in FIGURES and FIGURES[name].goal:
        parts.append(f" {FIGURES[name].goal} {FIGURES[name].verdict(value)}")
    return " ".join(parts)


def show(report: Report, as_json: bool) -> None:
    """Prints a report on stdout: a table for each kind of rows, then what its words mean, then
    the figures."""
    if as_json:
        print(to_json(report))
        return
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(made_on(report))
    for name, value in settings_of(report).items():
        console.print(f"{name}  {value}")
    for columns, lines in tables(report["rows"]):
        table = Table(*columns, show_edge=False)
        for line in lines:
            table.add_row(*line)
        console.print("", table)
    console.print("")
    for name, meaning in definitions_of(report).items():
        console.print(f"{name}: {meaning}")
    if definitions_of(report):
        console.print("")
    for name in report["figures"]:
        console.print(figure_line(name, report), style="bold")
