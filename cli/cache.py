"""`edgecortex cache`: the KV that is kept on disk."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from edgecortex.cli import kept, options
from edgecortex.cli.models import progress_bar
from edgecortex.paths import store_dir

app = typer.Typer(help="See and clear the KV that is kept on disk.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command()
def stats(as_json: AsJson = False) -> None:
    """What is stored, and how much room it takes."""
    with kept.store() as store:
        found = store.stats()
    if as_json:
        print(json.dumps(asdict(found), indent=2))
        return
    table = Table("what", "files", "tokens", "size")
    for kind in found.kinds:
        counts = f"{kind.num_entries:,}", f"{kind.num_tokens:,}"
        table.add_row(kind.kind, *counts, f"{kind.nbytes / 1e6:.1f} MB")
    Console().print(table)
    print(
        f"{found.path}: {found.nbytes / 1e6:.1f} MB in all; {found.num_pinned:,} files held by "
        f"sessions; {found.num_quarantined:,} in quarantine"
    )


@app.command()
def verify(as_json: AsJson = False) -> None:
    """Read and check every file; damaged ones go into quarantine, and the exit status is 1."""
    with kept.store() as store, progress_bar() as progress:
        found = store.verify(lambda done, total: progress("checking", done, total))
    if as_json:
        print(json.dumps(asdict(found), indent=2))
    else:
        for name in found.damaged:
            print(f"damaged, now in quarantine: {name}")
        print(
            f"{found.num_entries:,} files, {found.nbytes / 1e6:.1f} MB, "
            f"{len(found.damaged):,} damaged"
        )
    if found.damaged:
        raise typer.Exit(1)


@app.command()
def prune(
    to: Annotated[
        str, typer.Option("--to", help="What may stay, such as 500M or 2G.", show_default=False)
    ],
) -> None:
    """Remove what was not used for longest until the rest fits; never what a session needs."""
    max_bytes = options.num_bytes_of(to, "--to")
    with kept.store() as store:
        store.tidy()
        store.sessions.unpin_lost()
        print(f"{store.shrink(max_bytes) / 1e6:.1f} MB removed")


@app.command()
def clear(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
) -> None:
    """Remove all KV that no session needs, and what is in quarantine."""
    if not yes:
        typer.confirm("Remove all KV that no session needs?", abort=True, err=True)
    with kept.store() as store:
        store.tidy()
        store.sessions.unpin_lost()
        print(f"{store.clear() / 1e6:.1f} MB removed")


@app.command()
def path() -> None:
    """Print the store's folder."""
    print(store_dir())
