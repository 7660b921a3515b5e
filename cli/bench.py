"""`edgecortex bench`: measure this machine."""

import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from edgecortex.bench.benches import BENCHES
from edgecortex.cli import bench_all, options
from edgecortex.cli.bench_options import (
    Again,
    Agents,
    AsJson,
    CompareRepeat,
    Contexts,
    DecodeRepeat,
    Device,
    Gguf,
    InjectionPassages,
    Out,
    OwnText,
    Quick,
    SynapsePassages,
    TtftRepeat,
    WorkflowRepeat,
    counts,
)

app = typer.Typer(help="Measure this machine.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Measure this machine."""
    # Other ways to end it end the processes that measure, too; `nohup` is respected.
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


# One benchmark.


@app.command()
def ttft(
    model: options.Model = options.DEFAULT_MODEL,
    contexts: Contexts = None,
    repeat: TtftRepeat = None,
    gguf: Gguf = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the times into this .svg or .png file.", show_default=False),
    ] = None,
    device: Device = None,
    quick: Quick = False,
    again: Again = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Time to the first token: context read anew, on disk, in memory; and mlx-lm's.

    With --gguf llama.cpp's, too, where llama-cpp-python is installed.
    Contexts have 512, 1,024, 2,048, 4,096 and 8,192 tokens, with --quick 512.
    """
    from edgecortex.bench.plot import check_plot, draw

    if plot:
        check_plot(plot)
    given = {"contexts": counts(contexts, "--contexts"), "repeat": repeat, "gguf": gguf}
    found = _measure("ttft", model, device, quick, again, out, as_json, **given)
    if plot:
        draw(found, plot)


@app.command()
def decode(
    model: options.Model = options.DEFAULT_MODEL,
    repeat: DecodeRepeat = None,
    device: Device = None,
    quick: Quick = False,
    again: Again = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Many agents decoding together, against mlx-lm on the same weights.

    Both sides are in one process, so the model is in memory twice. With --quick
    three slow ones are left out: 64 agents on one prefix, agents that decode while
    another one reads a prompt, and mlx-lm's batch of prompts of unequal length.
    """
    _measure("decode", model, device, quick, again, out, as_json, repeat=repeat)


@app.command()
def memory(
    model: options.Model = options.DEFAULT_MODEL,
    device: Device = None,
    quick: Quick = False,
    again: Again = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """What KV takes on disk, and how many agents of Gemma 3 12B fit in 10.2 GB of memory.

    With --quick agents are counted on disk only: in memory they take 11.3 GB.
    """
    _measure("memory", model, device, quick, again, out, as_json)


@app.command()
def quality(
    model: options.Model = options.DEFAULT_MODEL,
    windows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Windows of 1,024 tokens. Default: 16, with --quick one of 512 instead.",
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
    again: Again = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """What each KV format costs in perplexity and KL, against full precision."""
    asked = {1024: windows, 4096: long_windows}
    given = {length: number for length, number in asked.items() if number is not None}
    chosen: dict[int, int] = BENCHES["quality"].chosen(quick)["windows"]
    if given and not quick:
        given = chosen | given
    given = {length: number for length, number in given.items() if number} or chosen
    _measure("quality", model, device, quick, again, out, as_json, windows=given)


@app.command()
def council(
    model: options.Model = options.DEFAULT_MODEL,
    agents: Agents = None,
    device: Device = None,
    quick: Quick = False,
    again: Again = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Streams on a River's landmarks: what each takes, and what they cost the River.

    Up to 1,000 Streams are resident and up to 100 busy, with --quick 100 and 16, and
    no thoughts are timed.
    """
    given = {"agents": counts(agents, "--agents")}
    _measure("council", model, device, quick, again, out, as_json, **given)


@app.command()
def synapse(
    model: options.Model = options.DEFAULT_MODEL,
    passages: SynapsePassages = None,
    text: OwnText = None,
    device: Device = None,
    quick: Quick = False,
    again: Again = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """What a few landmarks are worth, against as many sinks and recent tokens."""
    _measure("synapse", model, device, quick, again, out, as_json, contexts=passages, text=text)


@app.command()
def injection(
    model: options.Model = options.DEFAULT_MODEL,
    passages: InjectionPassages = None,
    text: OwnText = None,
    device: Device = None,
    quick: Quick = False,
    again: Again = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """What an injected thought does, against the same words pasted; and the gate."""
    _measure("injection", model, device, quick, again, out, as_json, contexts=passages, text=text)


@app.command()
def compare(
    model: options.Model = options.DEFAULT_MODEL,
    contexts: Contexts = None,
    repeat: CompareRepeat = None,
    gguf: Gguf = None,
    device: Device = None,
    quick: Quick = False,
    again: Again = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """The same work on EdgeCortex, mlx-lm and llama.cpp, side by side.

    llama.cpp takes part with --gguf, where llama-cpp-python is installed.
    Contexts have 512, 2,048 and 4,096 tokens, with --quick 256, and no agents decode.
    """
    given = {"contexts": counts(contexts, "--contexts"), "rounds": repeat, "gguf": gguf}
    _measure("compare", model, device, quick, again, out, as_json, **given)


@app.command()
def roofline(
    model: options.Model = options.DEFAULT_MODEL,
    contexts: Contexts = None,
    device: Device = None,
    quick: Quick = False,
    again: Again = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """How near reading and decoding come to what the machine can do.

    Contexts have 512, 2,048 and 4,096 tokens, with --quick 512, of which none is restored.
    """
    given = {"contexts": counts(contexts, "--contexts")}
    _measure("roofline", model, device, quick, again, out, as_json, **given)


@app.command()
def workflow(
    model: options.Model = options.DEFAULT_MODEL,
    repeat: WorkflowRepeat = None,
    device: Device = None,
    quick: Quick = False,
    again: Again = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Agents kept from phase to phase: times to the first token, against new ones.

    The workflows that come along are run, each in new processes; with --quick
    only one, the prisoner's dilemma.
    """
    _measure("workflow", model, device, quick, again, out, as_json, repeat=repeat)


@app.command()
def blas(
    model: options.Model = options.DEFAULT_MODEL,
    quick: Quick = False,
    again: Again = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Time to read 512 tokens, with our BLAS and with the MLX wheel's own."""
    _measure("blas", model, None, quick, again, out, as_json)


def _measure(
    name: str,
    model: str,
    device: str | None,
    quick: bool,
    again: bool,
    out: Path | None,
    as_json: bool,
    **given: Any,
) -> dict[str, Any]:
    """Runs a benchmark, and writes and prints what it found."""
    from edgecortex.bench import render, report, suite
    from edgecortex.cli import measuring

    measuring.prepare(model, device, out, given.get("gguf"))
    with (
        measuring.going_on(),
        suite.resumable(name, model, quick, given, again) as parts,
        measuring.progress(_expected_s(name, quick, given) - parts.spent_s) as progress,
    ):
        if parts.num_parts:
            progress(f"{parts.num_parts} parts are complete since an earlier start")
        found = suite.measure(name, model, quick, given, progress)
        if out:
            progress(f"drawing into {out}")
            render.save(found, out, name)
    report.show(found, as_json)
    if out:
        measuring.note_missing_plots()
    return found


def _expected_s(name: str, quick: bool, given: dict[str, Any]) -> float:
    """About how long it takes; 0 where that is not known, as other settings than its own are
    given."""
    own = BENCHES[name].chosen(quick)
    known = all(value is None or value == own.get(key) for key, value in given.items())
    return BENCHES[name].expected_s(quick) if known else 0.0


app.command("all")(bench_all.all_)
app.command("report")(bench_all.report_)
app.command()(bench_all.diff)
