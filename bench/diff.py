"""Two results of the same benchmarks held against each other, figure by figure."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from edgecortex.bench.figures import FIGURES, LESS, MORE
from edgecortex.bench.report import (
    WIDTH,
    Report,
    Row,
    between,
    cell,
    made_on,
    read_report,
    read_reports,
    settings_of,
    to_json,
)
from edgecortex.errors import ConfigError


def diff(a: Path, b: Path) -> dict[str, Any]:
    """Compares two files, or what two folders have in common.

    Returns: `figures`, a row for each: values, ratio and spreads, and whether the difference
    lies within these; `differs`, what else is not the same; `only`, what one side has alone.

    Raises:
        ConfigError: they have no benchmark in common, or a folder has one twice.
        EdgeCortexError: a file cannot be read, or is no report.
    """
    sides = _read(a), _read(b)
    pairs = list(_pairs(*sides))
    if not pairs:
        here, there = (sorted({key[0] for key in side}) for side in sides)
        raise ConfigError(
            f"expected two results of the same benchmark, got {', '.join(here)} in {a} and "
            f"{', '.join(there)} in {b}"
        )
    done = {key for keys, _ in pairs for key in keys}
    return {
        "a": str(a),
        "b": str(b),
        "figures": [row for _, pair in pairs for row in compare(*pair)],
        "differs": [line for _, pair in pairs for line in _differences(*pair)],
        "only": [
            f"{' '.join(key)} in {path}"
            for side, path in zip(sides, (a, b), strict=True)
            for key in side
            if key not in done
        ],
    }


SAME = 1e-3  # of a figure: three digits
Key = tuple[str, str]  # a benchmark and its model


def _read(path: Path) -> dict[Key, Report]:
    reports = read_reports(path) if path.is_dir() else {path.stem: read_report(path)}
    stems: dict[Key, str] = {}
    for stem, report in reports.items():
        key = report["benchmark"], str(report["settings"].get("model", ""))
        if key in stems:
            raise ConfigError(
                f"{path} has two results of {' '.join(key)}, {stems[key]}.json and {stem}.json: "
                "name one of these files instead of the folder"
            )
        stems[key] = stem
    return {key: reports[stem] for key, stem in stems.items()}


def _pairs(
    a: dict[Key, Report], b: dict[Key, Report]
) -> Iterator[tuple[tuple[Key, Key], tuple[Report, Report]]]:
    """By benchmark and model; two files may be of different models."""
    if len(a) == len(b) == 1:
        (one,), (other,) = a, b
        if one[0] == other[0]:
            yield (one, other), (a[one], b[other])
        return
    for key in a:
        if key in b:
            yield (key, key), (a[key], b[key])


def compare(a: Report, b: Report) -> list[Row]:
    """A row for each figure that both have; None stands for what was no number."""
    return [
        _row(name, *(_value(report, name) for report in (a, b)))
        for name in a["figures"]
        if None not in (a["figures"][name], b["figures"].get(name))
    ]


Value = tuple[float, list[float] | None]


def _value(report: Report, name: str) -> Value:
    return report["figures"][name], report.get("spread", {}).get(name)


def _row(name: str, a: Value, b: Value) -> Row:
    (one, spread_a), (other, spread_b) = a, b
    return {
        "figure": name,
        "a": one,
        "b": other,
        "ratio": other / one if one else None,
        "spread_a": spread_a,
        "spread_b": spread_b,
        "verdict": _verdict(name, a, b),
    }


def _verdict(name: str, a: Value, b: Value) -> str:
    """In words: whether the two spreads meet, and if not, which is better."""
    (one, spread_a), (other, spread_b) = a, b
    if abs(one - other) <= SAME * abs(one):
        return "the same"
    low_a, high_a = spread_a or (one, one)
    low_b, high_b = spread_b or (other, other)
    known = spread_a or spread_b
    if known and low_a <= high_b and low_b <= high_a:
        return "within the spreads"
    better = FIGURES[name].better if name in FIGURES else ""
    word = {MORE: "better", LESS: "worse"}.get(better, "more")
    if other < one:
        word = {MORE: "worse", LESS: "better"}.get(better, "less")
    return f"{word}, beyond the spreads" if known else f"{word}, no spread is known"


def _differences(a: Report, b: Report) -> Iterator[str]:
    """What else than the figures is not the same."""
    name = a["benchmark"]
    here, there = (made_on(report).partition(";")[0] for report in (a, b))
    if here != there:
        yield f"{name}: measured on {here}; and on {there}"
    one, other = settings_of(a), settings_of(b)
    for key in one | other:
        if one.get(key) != other.get(key):
            yield f"{name}: {key} is {one.get(key, 'not set')}; and {other.get(key, 'not set')}"


def show(found: dict[str, Any], as_json: bool) -> None:
    """Prints a comparison on stdout."""
    if as_json:
        print(to_json(found))
        return
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(f"A  {found['a']}\nB  {found['b']}\n")
    table = Table("figure", "A", "B", "B ÷ A", "spread of A", "spread of B", "", show_edge=False)
    for row in found["figures"]:
        values = [cell(row[key]) for key in ("a", "b", "ratio")]
        spreads = [between(row["spread_a"]), between(row["spread_b"])]
        table.add_row(row["figure"], *values, *spreads, row["verdict"])
    console.print(table, "")
    for line in found["differs"]:
        console.print(f"not the same, {line}")
    for line in found["only"]:
        console.print(f"only {line}")
