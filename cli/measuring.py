"""What the commands of `edgecortex bench` share: checks before they measure, and progress."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.text import Text

from edgecortex import bench, models
from edgecortex.bench import plot, render
from edgecortex.bench.suite import Pace, duration
from edgecortex.cli.models import progress_bar

Say = Callable[[str], None]


def prepare(model: str, device: str | None, out: Path | None) -> None:
    """Finds out what cannot work before anything is measured, and fetches the model."""
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
def progress() -> Iterator[Say]:
    """Shows on stderr what is being measured: in one line on a terminal, else a line for each."""
    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        with console.status("measuring") as status:
            yield lambda line: status.update(Text(line))
    else:
        yield lambda line: console.print(line, markup=False, soft_wrap=True)


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
    columns = (
        SpinnerColumn(),
        Elapsed(),
        _Left(pace),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda line: progress.update(task, description=line), note


class _Left(ProgressColumn):
    """The time that all benchmarks together will still take."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace

    def render(self, task: Task) -> Text:
        return Text(f"{duration(self._pace.left_s())} left", style="dim")
