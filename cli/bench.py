"""`edgecortex bench`: measure this machine."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edgecortex.cli import options
from edgecortex.errors import ConfigError

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

    with _progress() as progress:
        found = decode.measure(model, repeat, progress)
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
    with _progress() as progress:
        found = quality.measure(model, counts, progress)
    report.show(found, as_json)


@app.command()
def ttft(
    model: options.Model = options.DEFAULT_MODEL,
    contexts: Annotated[
        str, typer.Option(help="Lengths of the contexts in tokens.")
    ] = "512,1024,2048,4096,8192",
    repeat: Annotated[int, typer.Option(min=1, help="Rounds of all states.")] = 3,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the times into this .svg or .png file.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time to the first token: context read anew, on disk, in memory; and mlx-lm's."""
    from edgecortex.bench import report, ttft
    from edgecortex.bench.plot import check_plot, draw

    lengths = _token_counts(contexts)
    if plot:
        check_plot(plot)
    with _progress() as progress:
        found = ttft.measure(model, lengths, repeat, progress)
    report.show(found, as_json)
    if plot:
        draw(found, plot)


@app.command()
def memory(
    model: options.Model = options.DEFAULT_MODEL,
    quick: Annotated[
        bool, typer.Option("--quick", help="Count agents of 8,192 tokens only.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What KV takes on disk, and how many agents of Gemma 3 12B fit in 10.2 GB of memory."""
    from edgecortex.bench import memory, report

    with _progress() as progress:
        found = memory.measure(model, progress, quick=quick)
    report.show(found, as_json)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Shows on stderr what is being measured: in one line on a terminal, else a line for each."""
    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        with console.status("measuring") as status:
            yield status.update
    else:
        yield lambda line: console.print(line, markup=False)


def _token_counts(text: str) -> list[int]:
    """
    Raises:
        ConfigError: not numbers of tokens with commas between them.
    """
    if not re.fullmatch(r"[1-9][0-9]{0,6}(,[1-9][0-9]{0,6})*", text):
        raise ConfigError(f"--contexts must be numbers such as 512,2048, got {text!r}")
    return sorted({int(number) for number in text.split(",")})
