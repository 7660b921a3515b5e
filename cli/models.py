"""`edgecortex models`: see, fetch and remove models."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from edgecortex import models
from edgecortex.errors import ModelError
from edgecortex.models.catalogue import catalogue

app = typer.Typer(help="See, fetch and remove models.", no_args_is_help=True)

Name = Annotated[
    str, typer.Argument(help="A name of the catalogue, a folder, a .gguf file or owner/repository.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@contextmanager
def progress_bar() -> Iterator[Any]:
    """Gives a `progress(step, done, total)` that draws on stderr, one bar for each step."""
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as bars:
        tasks: dict[str, TaskID] = {}

        def report(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total)
            bars.update(tasks[step], completed=done, total=total)

        yield report


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """The catalogue and what is here: size, memory at 8K of context, and what fits."""
    from edgecortex.models.listing import listing
    from edgecortex.models.machine import this_machine

    machine = this_machine()
    rows = listing(machine)
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    names = ("model", "size", "at 8K", "fits", "here", "what it is")
    table = Table(*(Column(name, no_wrap=name != names[-1]) for name in names))
    for row in rows:
        fits = {True: "yes", False: "no", None: "?"}[row.fits]
        size, memory = _size(row.size_bytes), _size(row.memory_bytes)
        here = "yes" if row.installed else ""
        table.add_row(row.name, size, memory, fits, here, row.description)
    console = Console()
    console.print(table)
    weights = "dequantized to fp32 on this CPU" if machine.fp32 else "as stored"
    best = next((row.name for row in rows if row.recommended), "none")
    console.print(f"At 8K: memory for weights, {weights}, and 8,192 tokens of 4-bit context.")
    console.print(f"This machine has {_size(machine.memory_bytes)}. Recommended for it: {best}")


def _size(num_bytes: int | None) -> str:
    if num_bytes is None:
        return "?"
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


@app.command()
def pull(name: Name) -> None:
    """Fetch a model, or import a .gguf file, and print its folder."""
    with progress_bar() as progress:
        path = models.resolve(name, progress=progress)
    print(path)


@app.command()
def info(name: Name, as_json: AsJson = False) -> None:
    """What is known of one model."""
    from edgecortex.models.listing import info as facts_of

    facts = facts_of(name)
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    table = Table.grid(padding=(0, 2))
    for key, value in facts.items():
        if isinstance(value, str | int):
            table.add_row(key, str(value))
    Console().print(table)


@app.command()
def path(name: Name) -> None:
    """Print the folder of a model that is here."""
    here = models.find(name)
    if here is None:
        if "/" not in name and name not in catalogue():
            raise models.unknown(name)
        raise ModelError(f"{name!r} is not here; run `edgecortex models pull {name}`")
    print(here)


@app.command()
def rm(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
) -> None:
    """Remove a model from the model folder."""
    if not yes:
        typer.confirm(f"Remove {name} from the model folder?", abort=True, err=True)
    print(f"removed {models.remove(name)}")
