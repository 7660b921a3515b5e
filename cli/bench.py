"""`edgecortex bench`: measure this machine."""

from typing import Annotated

import typer
from rich.console import Console

from edgecortex.cli import options

app = typer.Typer(help="Measure this machine.", no_args_is_help=True)

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object: settings, figures and rows.")
]


@app.callback()
def _group() -> None:
    """Measure this machine."""


@app.command()
def blas(model: options.Model = options.DEFAULT_MODEL, as_json: AsJson = False) -> None:
    """Time to read 512 tokens, with our BLAS and with the MLX wheel's own."""
    from edgecortex.bench import blas, report

    with Console(stderr=True).status("measuring; a minute or two"):
        found = blas.measure(model)
    report.show(found, as_json)


@app.command()
def decode(
    model: options.Model = options.DEFAULT_MODEL,
    repeat: Annotated[int, typer.Option("--repeat", min=1, help="Rounds of either side.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Many agents decoding together, against mlx-lm on the same weights."""
    from edgecortex.bench import decode, report

    with Console(stderr=True).status("measuring") as status:
        found = decode.measure(model, repeat, status.update)
    report.show(found, as_json)


@app.command()
def quality(
    model: options.Model = options.DEFAULT_MODEL,
    windows: Annotated[int, typer.Option(min=1, help="Windows of 1,024 tokens.")] = 16,
    long_windows: Annotated[int, typer.Option(min=0, help="Windows of 4,096 tokens.")] = 4,
    as_json: AsJson = False,
) -> None:
    """What each KV format costs in perplexity and KL, against full precision."""
    from edgecortex.bench import quality, report

    counts = {1024: windows} | ({4096: long_windows} if long_windows else {})
    with Console(stderr=True).status("measuring") as status:
        found = quality.measure(model, counts, status.update)
    report.show(found, as_json)
