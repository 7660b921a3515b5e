"""What every benchmark shares: the record of machine and versions, and how a report looks."""

import json
import os
import platform
from collections.abc import Sequence
from statistics import median as median
from typing import Any

from rich.console import Console
from rich.table import Table

from edgecortex import doctor
from edgecortex.models.machine import this_machine

WIDTH = 200  # columns of what is not printed on a terminal
Row = dict[str, Any]
Report = dict[str, Any]


def make_report(
    benchmark: str, settings: dict[str, Any], figures: dict[str, float], rows: Sequence[Row]
) -> Report:
    """One benchmark's result. `figures` are named as in `<benchmark>.<figure>`; `rows` are the
    single measurements, with units in their keys."""
    return {
        "benchmark": benchmark,
        "machine": machine(),
        "versions": doctor.versions(),
        "settings": settings,
        "figures": figures,
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


def show(report: Report, as_json: bool) -> None:
    """Prints a report on stdout: a table for each kind of rows."""
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
        return
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = WIDTH
    for name, value in (*report["machine"].items(), *report["settings"].items()):
        for line in _lines(name, value):
            console.print(line)
    tables: dict[tuple[str, ...], list[Row]] = {}
    for row in report["rows"]:
        tables.setdefault(tuple(row), []).append(row)
    for columns, rows in tables.items():
        table = Table(*columns, show_edge=False)
        for row in rows:
            table.add_row(*map(_cell, row.values()))
        console.print("", table)
    console.print("")
    for name, value in report["figures"].items():
        console.print(f"{name}  {_cell(value)}", style="bold")


def _lines(name: str, value: object) -> list[str]:
    """A setting; one that has parts has a line for each."""
    if isinstance(value, dict):
        return [f"{name}.{part}  {_cell(of_it)}" for part, of_it in value.items()]
    return [f"{name}  {_cell(value)}"]


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
