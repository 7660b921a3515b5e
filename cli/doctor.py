"""`edgecortex doctor`: what is here, and what is wrong."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgecortex.doctor import Examination


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show device, versions, speed and folders; exit 1 if something is wrong."""
    from edgecortex.doctor import examine

    found = examine()
    if as_json:
        print(json.dumps(asdict(found), indent=2))
    else:
        _show(found)
    if found.problems:
        raise typer.Exit(1)


def _show(found: "Examination") -> None:
    for name, value in _lines(found):
        print(f"{name:<16}{value}")
    for problem in found.problems:
        print(f"PROBLEM: {problem.what}\n  remedy: {problem.remedy}")
    if not found.problems:
        print("nothing is wrong")


def _lines(found: "Examination") -> list[tuple[str, str]]:
    rows = [("device", found.device or "none"), ("memory", f"{found.memory_bytes / 1e9:.1f} GB")]
    rows += [(name, version or "not installed") for name, version in found.versions.items()]
    if found.blas:
        rows.append(("BLAS", found.blas.serving or "the system's own"))
        rows.append(("fp32 matmul", f"{found.blas.gflops:.0f} GFLOP/s"))
    for name, folder in found.folders.items():
        size = "" if folder.num_bytes is None else f", {folder.num_bytes / 1e6:,.1f} MB"
        rows.append((name, folder.path + (size or ", not there yet")))
    return rows
