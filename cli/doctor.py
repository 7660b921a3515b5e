"""`edgecortex doctor`: what is here, and what is wrong."""

import json
from dataclasses import asdict
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from edgecortex.cli.models import progress_bar
from edgecortex.errors import ConfigError

if TYPE_CHECKING:
    from edgecortex.doctor import Examination
    from edgecortex.selftest import Report


class Device(str, Enum):
    """Where the self-test runs."""

    cpu = "cpu"
    gpu = "gpu"


def doctor(
    selftest: Annotated[
        bool,
        typer.Option(
            "--selftest",
            help="Check instead what this device computes, against plain arithmetic. "
            "Needs no model; takes up to a minute, with CUDA minutes the first time.",
        ),
    ] = False,
    device: Annotated[
        Device | None,
        typer.Option(
            help="Where --selftest runs, cpu or gpu. Default: where MLX does.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show device, versions, speed and folders; exit 1 if something is wrong."""
    if selftest:
        _selftest(device, as_json)
    elif device:
        raise ConfigError("--device says where --selftest runs: give both, or neither")
    else:
        _examine(as_json)


def _examine(as_json: bool) -> None:
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


def _selftest(device: Device | None, as_json: bool) -> None:
    from edgecortex.selftest import run

    with progress_bar() as progress:
        report = run(device.value if device else None, progress)
    if as_json:
        print(json.dumps(asdict(report), indent=2))
    else:
        _show_checks(report)
    if report.num_failed:
        raise typer.Exit(1)


def _show_checks(report: "Report") -> None:
    print(f"{report.device}, MLX {report.versions['mlx']}\n")
    print(f"{'group':<10}{'check':<44}{'error':>9}{'at most':>9}")
    for check in report.checks:
        sizes = (check.error, check.tolerance)
        error, most = ("-" if size is None else f"{size:.2g}" for size in sizes)
        verdict = "ok" if check.passed else "FAILED"
        print(f"{check.group:<10}{check.name:<44}{error:>9}{most:>9}  {verdict}")
        if check.message:
            print(f"  {check.message}")
    count = len(report.checks)
    if report.num_failed:
        print(
            f"\n{report.num_failed} of {count} checks FAILED: do not trust answers of this device"
        )
    else:
        print(f"\nall {count} checks passed, in {report.seconds:.0f} s")
