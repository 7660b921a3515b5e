"""`edgecortex bench`: measure this machine."""

import contextlib
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgecortex.bench.benches import BENCHES
from edgecortex.cli import options
from edgecortex.errors import ConfigError

if TYPE_CHECKING:
    from edgecortex.bench.suite import Record

app = typer.Typer(help="Measure this machine.", no_args_is_help=True)
INTERRUPTED = 130


# Options that several commands have.


def _default(bench: str, setting: str) -> str:
    """What a setting is where it is not given, for a help text."""
    values = (BENCHES[bench].chosen(quick)[setting] for quick in (False, True))
    full, quick = (",".join(map(str, v)) if isinstance(v, list) else str(v) for v in values)
    return f"Default: {full}, with --quick {quick}."


Contexts = Annotated[
    str | None,
    typer.Option(
        "--contexts",
        help=f"Lengths of the contexts in tokens. {_default('ttft', 'contexts')}",
        show_default=False,
    ),
]
Repeat = Annotated[
    int | None,
    typer.Option(
        "--repeat",
        min=1,
        help=f"Rounds of all sides. {_default('ttft', 'repeat')}",
        show_default=False,
    ),
]
Passages = Annotated[
    int | None,
    typer.Option(
        "--passages",
        min=2,
        help=f"Passages of the text. {_default('synapse', 'contexts')}",
        show_default=False,
    ),
]
OwnText = Annotated[
    Path | None,
    typer.Option(
        "--text",
        help="Measure on this file's text. Default: Python's language reference.",
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="Where MLX computes, cpu or gpu. Default: gpu where there is one.",
        show_default=False,
    ),
]
Quick = Annotated[bool, typer.Option("--quick", help="Measure less, in a minute or two.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", help="Write results, a page and pictures into this folder.", show_default=False
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object: settings, figures and rows.")
]


@app.callback()
def _group() -> None:
    """Measure this machine."""


# One benchmark.


@app.command()
def ttft(
    model: options.Model = options.DEFAULT_MODEL,
    contexts: Contexts = None,
    repeat: Repeat = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the times into this .svg or .png file.", show_default=False),
    ] = None,
    device: Device = None,
    quick: Quick = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Time to the first token: context read anew, on disk, in memory; and mlx-lm's."""
    from edgecortex.bench.plot import check_plot, draw

    if plot:
        check_plot(plot)
    given = {"contexts": _token_counts(contexts), "repeat": repeat}
    found = _measure("ttft", model, device, quick, out, as_json, **given)
    if plot:
        draw(found, plot)


@app.command()
def decode(
    model: options.Model = options.DEFAULT_MODEL,
    repeat: Repeat = None,
    device: Device = None,
    quick: Quick = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Many agents decoding together, against mlx-lm on the same weights."""
    _measure("decode", model, device, quick, out, as_json, repeat=repeat)


@app.command()
def memory(
    model: options.Model = options.DEFAULT_MODEL,
    device: Device = None,
    quick: Quick = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """What KV takes on disk, and how many agents of Gemma 3 12B fit in 10.2 GB of memory.

    With --quick agents of 8,192 tokens only are counted in memory.
    """
    _measure("memory", model, device, quick, out, as_json)


@app.command()
def quality(
    model: options.Model = options.DEFAULT_MODEL,
    windows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Windows of 1,024 tokens. Default: 16, with --quick 2.",
            show_default=False,
        ),
    ] = None,
    long_windows: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Windows of 4,096 tokens. Default: 4, with --quick none.",
            show_default=False,
        ),
    ] = None,
    device: Device = None,
    quick: Quick = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """What each KV format costs in perplexity and KL, against full precision."""
    chosen = BENCHES["quality"].chosen(quick)["windows"]
    counts = {1024: windows or chosen[1024]}
    counts[4096] = chosen.get(4096, 0) if long_windows is None else long_windows
    counts = {length: count for length, count in counts.items() if count}
    _measure("quality", model, device, quick, out, as_json, windows=counts)


@app.command()
def council(
    model: options.Model = options.DEFAULT_MODEL,
    device: Device = None,
    quick: Quick = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Streams on a River's landmarks: what each takes, and what they cost the River."""
    _measure("council", model, device, quick, out, as_json)


@app.command()
def synapse(
    model: options.Model = options.DEFAULT_MODEL,
    passages: Passages = None,
    text: OwnText = None,
    device: Device = None,
    quick: Quick = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """What a few landmarks are worth, against as many sinks and recent tokens."""
    _measure("synapse", model, device, quick, out, as_json, contexts=passages, text=text)


@app.command()
def injection(
    model: options.Model = options.DEFAULT_MODEL,
    passages: Passages = None,
    text: OwnText = None,
    device: Device = None,
    quick: Quick = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """What an injected thought does, against the same words pasted; and the gate."""
    _measure("injection", model, device, quick, out, as_json, contexts=passages, text=text)


@app.command()
def compare(
    model: options.Model = options.DEFAULT_MODEL,
    device: Device = None,
    quick: Quick = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """The same work on EdgeCortex, mlx-lm and llama.cpp, side by side."""
    _measure("compare", model, device, quick, out, as_json)


@app.command()
def roofline(
    model: options.Model = options.DEFAULT_MODEL,
    device: Device = None,
    quick: Quick = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """How near reading and decoding come to what the machine can do."""
    _measure("roofline", model, device, quick, out, as_json)


@app.command()
def blas(
    model: options.Model = options.DEFAULT_MODEL,
    quick: Quick = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Time to read 512 tokens, with our BLAS and with the MLX wheel's own."""
    _measure("blas", model, None, quick, out, as_json)


def _measure(
    name: str,
    model: str,
    device: str | None,
    quick: bool,
    out: Path | None,
    as_json: bool,
    **given: Any,
) -> dict[str, Any]:
    """Runs a benchmark, and writes and prints what it found."""
    from edgecortex.bench import render, report, suite
    from edgecortex.cli import measuring

    measuring.prepare(model, device, out)
    with measuring.progress() as progress:
        found = suite.measure(name, model, quick, given, progress)
        if out:
            progress(f"drawing into {out}")
            render.save(found, out, name)
    report.show(found, as_json)
    if out:
        measuring.note_missing_plots()
    return found


# All of them, and what they gave.


@app.command("all")
def all_(
    model: options.Model = options.DEFAULT_MODEL,
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
    measuring.prepare(model, device, out)
    with contextlib.ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        record, names = suite.Record(folder, model, quick, again), suite.names()
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
        raise typer.Exit(INTERRUPTED) from None


@app.command("report")
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


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="A result's JSON file, or a folder of them.")],
    b: Annotated[Path, typer.Argument(help="What it is held against.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Hold two results of the same benchmarks against each other, figure by figure."""
    from edgecortex.bench import diff

    diff.show(diff.diff(a, b), as_json)


def _token_counts(text: str | None) -> list[int] | None:
    """
    Raises:
        ConfigError: not numbers of tokens with commas between them.
    """
    if text is None:
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,6}(,[1-9][0-9]{0,6})*", text):
        raise ConfigError(f"--contexts must be numbers such as 512,2048, got {text!r}")
    return sorted({int(number) for number in text.split(",")})
