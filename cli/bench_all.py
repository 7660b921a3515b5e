"""`edgecortex bench all`, `report` and `diff`: all benchmarks, and what they gave."""

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecortex.cli import options
from edgecortex.cli.bench_options import AsJson, Device, Gguf, Out
from edgecortex.errors import ConfigError

if TYPE_CHECKING:
    from edgecortex.bench.suite import Record


def all_(
    model: options.Model = options.DEFAULT_MODEL,
    gguf: Gguf = None,
    device: Device = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure less, all of it in about ten minutes.")
    ] = False,
    out: Out = None,
    again: Annotated[
        bool, typer.Option("--again", help="Begin anew: replace what --out has of an earlier run.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Every benchmark, one after the other.

    Each runs in a process of its own; what one that fails leaves out is told at
    the end, and the exit status is 1. Ctrl-C stops. The same command with the
    same --out goes on from there. Without --out only the figures are shown.
    """
    from edgecortex.bench import render, report, suite
    from edgecortex.cli import measuring

    if again and not out:
        raise ConfigError("--again replaces what is in a folder: name it with --out")
    measuring.prepare(model, device, out, gguf)
    with contextlib.ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        record, names = suite.Record(folder, model, quick, again, gguf), suite.names(quick)
        problems = _run_all(record, names)
        if out and len(problems) < len(names):
            render.collect(out)
        report.show(suite.summary(record, names, problems), as_json)
    if out:
        measuring.note(f"all about it is in {out / render.COLLECTED}")
        measuring.note_missing_plots()
    if problems:
        raise typer.Exit(1)


def _run_all(record: "Record", names: list[str]) -> dict[str, str]:
    """Runs what is not complete and shows how that goes."""
    from edgecortex.bench import suite
    from edgecortex.cli import measuring

    todo = [name for name in names if not record.complete(name)]
    pace = suite.Pace({name: record.expected_s(name) for name in todo})
    try:
        with measuring.progress_of_all(pace) as (say, note):
            return suite.run(record, names, pace, say, note)
    except KeyboardInterrupt:
        done = sum(record.complete(name) for name in names)
        measuring.note(f"stopped; {done} of {len(names)} are complete")
        raise typer.Exit(options.INTERRUPTED) from None


def report_(
    folder: Annotated[Path, typer.Argument(help="Where results are, as --out wrote them.")],
    readme: Annotated[
        Path | None,
        typer.Option(
            help="Put the figures between the markers of this Markdown file, too.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write one page about all results of a folder, and draw them."""
    from edgecortex.bench import render
    from edgecortex.cli import measuring

    reports = render.collect(folder)
    print(folder / render.COLLECTED)
    if readme:
        render.replace_block(readme, reports, folder)
        print(readme)
    measuring.note_missing_plots()


def diff(
    a: Annotated[Path, typer.Argument(help="A result's JSON file, or a folder of them.")],
    b: Annotated[Path, typer.Argument(help="What it is held against.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Hold two results of the same benchmarks against each other, figure by figure."""
    from edgecortex.bench import diff

    diff.show(diff.diff(a, b), as_json)
