"""The `edgecortex` command. Nothing heavy is imported before a command needs it."""

import os
import sys
from typing import Annotated

import typer

import edgecortex
from edgecortex.cli import (
    batch,
    bench,
    cache,
    chat,
    council,
    doctor,
    models,
    options,
    run,
    session,
    workflow,
)
from edgecortex.errors import ConfigError, EdgeCortexError

app = typer.Typer(
    name="edgecortex",
    help="Run many LLM agents on one machine, on Apple's MLX.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(chat.chat)
app.command()(run.run)
app.command()(batch.batch)
app.command()(council.council)
app.command()(workflow.workflow)
app.add_typer(session.app, name="session")
app.add_typer(cache.app, name="cache")
app.add_typer(models.app, name="models")
app.command()(doctor.doctor)
app.add_typer(bench.app, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"edgecortex {edgecortex.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options of the command itself."""


def main() -> None:
    """Runs the command: an error is one line on stderr and status 1, or 2 for a bad setting."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        app()
    except EdgeCortexError as error:
        print(f"edgecortex: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except SystemExit as done:
        if done.code == options.INTERRUPTED:
            os._exit(options.INTERRUPTED)  # an engine that is still loading cannot be closed
        raise


if __name__ == "__main__":
    main()
