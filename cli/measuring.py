"""What the commands of `edgecortex bench` share: checks before they measure, and progress."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from math import ceil
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.text import Text

from edgecortex import bench, models
from edgecortex.bench import plot, render
from edgecortex.bench.suite import Pace, duration
from edgecortex.cli import options
from edgecortex.cli.models import progress_bar
from edgecortex.errors import EdgeCortexError

Say = Callable[[str], None]


def prepare(model: str, device: str | None, out: Path | None, gguf: Path | None = None) -> None:
    """Finds out what cannot work before anything is measured, and fetches the model."""
    if gguf and not gguf.is_file():
        raise EdgeCortexError(f"no file {gguf}: expected the model's GGUF file")
    if device:
        bench.use_device(device)
    if out:
        render.prepare(out)
    if models.find(model) is None:
        with progress_bar() as progress:
            models.resolve(model, progress=progress)


def note(text: str) -> None:
    print(f"edgecortex: {text}", file=sys.stderr)


def note_missing_plots() -> None:
    if not plot.available():
        note(render.NO_PLOTS)


@contextlib.contextmanager
def going_on() -> Iterator[None]:
    """Says what a Ctrl-C leaves."""
    try:
        yield
    except KeyboardInterrupt:
        note("stopped; the same command goes on from there within a week, with --again anew")
        raise typer.Exit(options.INTERRUPTED) from None


@contextlib.contextmanager
def progress(expected_s: float) -> Iterator[Say]:
    """Shows on stderr what is being measured: in one line on a terminal, with about how long it
    will still take, else a line for each."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda line: console.print(line, markup=False, soft_wrap=True)
        return
    pace = Pace({"": expected_s})
    pace.begin("")
    with _line(console, lambda: about_left(pace.left_s())) as say:
        say("measuring")
        yield say


def about_left(seconds: float) -> str:
    """Such as `about 3 min left`; nothing once the time is over."""
    return f"about {ceil(seconds / 60)} min left" if seconds > 0 else ""


@contextlib.contextmanager
def progress_of_all(pace: Pace) -> Iterator[tuple[Say, Say]]:
    """Shows what is being done with the time that is left, and what has been done in lines of
    its own."""
    console = Console(stderr=True, highlight=False, markup=False)

    def note(line: str) -> None:
        console.print(line, soft_wrap=True)

    if not console.is_terminal:
        yield lambda line: note(f"{duration(pace.left_s())} left, {line}"), note
        return
    with _line(console, lambda: f"{duration(pace.left_s())} left") as say:
        yield say, note


@contextlib.contextmanager
def _line(console: Console, left: Callable[[], str]) -> Iterator[Say]:
    """A line of a terminal that says what is being done, since when, and how long it will take."""
    text = TextColumn("{task.description}", markup=False)
    with Progress(
        SpinnerColumn(), Elapsed(), _Left(left), text, console=console, transient=True
    ) as progress:
        task = progress.add_task("", total=None)
        yield lambda line: progress.update(task, description=line)


class _Left(ProgressColumn):
    """The time that is left, as `left` says it."""

    def __init__(self, left: Callable[[], str]) -> None:
        super().__init__()
        self._left = left

    def render(self, task: Task) -> Text:
        return Text(self._left(), style="dim")
