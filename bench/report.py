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
    """Prints a report on stdout."""
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
        return
    console = Console(highlight=False)
    for part in ("machine", "settings"):
        console.print(", ".join(f"{name} {value}" for name, value in report[part].items()))
    columns = list(dict.fromkeys(key for row in report["rows"] for key in row))
    table = Table(*columns)
    for row in report["rows"]:
        table.add_row(*(_cell(row.get(column, "")) for column in columns))
    console.print(table)
    for name, value in report["figures"].items():
        console.print(f"{name}  [bold]{_cell(value)}[/bold]")


def _cell(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
