"""A picture of each benchmark's results."""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgecortex.bench.figures import FIGURES, MORE
from edgecortex.bench.report import Report, Row, median
from edgecortex.errors import ConfigError, EdgeCortexError

SUFFIXES = (".svg", ".png")
IN_MEMORY = "agents in memory"  # rows that are drawn of the memory benchmark
OURS, OURS_TOO, PEER, COLD, FAINT = "#2e86ab", "#3a7d44", "#8c8c8c", "#d1495b", "#c9a227"
# A label, a colour and a marker for each state that is drawn.
LINES = {
    "mlx_lm": ("mlx-lm, read anew", PEER, "s"),
    "llama_cpp": ("llama.cpp, read anew", FAINT, "^"),
    "cold": ("EdgeCortex, read anew", COLD, "o"),
    "warm": ("EdgeCortex, from disk", OURS, "o"),
    "hot": ("EdgeCortex, in memory", OURS_TOO, "o"),
}
SIDES = {"ours": ("EdgeCortex", OURS), "mlx_lm": ("mlx-lm", PEER)}
Ends = tuple[Sequence[float], Sequence[float]]  # how far a bar's error reaches down and up


def available() -> bool:
    return find_spec("matplotlib") is not None


def check_plot(path: Path) -> None:
    """
    Raises:
        ConfigError: neither .svg nor .png.
        EdgeCortexError: matplotlib is missing, or there is no such folder.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--plot must end in .svg or .png, got {str(path)!r}")
    if not path.absolute().parent.is_dir():
        raise EdgeCortexError(f"no folder {path.absolute().parent} to draw {path.name} in")
    if not available():
        raise EdgeCortexError('--plot needs matplotlib: pip install "edgecortex[bench]"')


def draw_all(report: Report, folder: Path, stem: str) -> None:
    """Draws a report into a folder in each kind of file, where it can be drawn."""
    if available() and draws(report):
        for suffix in SUFFIXES:
            draw(report, folder / f"{stem}{suffix}")


def draws(report: Report) -> bool:
    """Whether there is something to draw: a quick run has no agents in memory."""
    known = report["benchmark"] in DRAWINGS
    return known and (report["benchmark"] != "memory" or bool(_rows(report, what=IN_MEMORY)))


def draw(report: Report, path: Path) -> None:
    """Draws a report into a file; the same report gives the same file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    DRAWINGS[report["benchmark"]](report, figure)
    of = report["settings"].get("model", "")
    figure.suptitle(f"{of} on {report['machine']['device']}", fontsize=10)
    with mpl.rc_context({"svg.hashsalt": "edgecortex"}):
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


# What is drawn of each benchmark.


def _ttft(report: Report, figure: Any) -> None:
    """Seconds over tokens of context, both on logarithmic scales."""
    axes = figure.subplots()
    for state, (label, colour, marker) in LINES.items():
        rows = _rows(report, what="ttft", state=state, new_tokens=1)
        if rows:
            tokens, seconds = [r["tokens"] for r in rows], [r["ttft_s"] for r in rows]
            axes.plot(tokens, seconds, color=colour, marker=marker, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sizes = report["settings"]["contexts"]
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_xlabel("tokens of context")
    axes.set_ylabel("seconds to the first token")
    axes.legend(frameon=False)


def _decode(report: Report, figure: Any) -> None:
    """Tokens per second, the median of the rounds with the least and the most."""
    axes = figure.subplots()
    measured = [row for row in report["rows"] if "tokens_per_s" in row]
    names = list(dict.fromkeys(row["scenario"] for row in measured))
    for place, (side, (label, colour)) in enumerate(SIDES.items()):
        rounds = [_values(_rows(report, side=side, scenario=name)) for name in names]
        at = [i + 0.4 * (place - 0.5) for i, values in enumerate(rounds) if values]
        there = [values for values in rounds if values]
        heights = [median(values) for values in there]
        axes.bar(at, heights, 0.38, yerr=_ends(there), color=colour, label=label, capsize=3)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("tokens per second, all agents")
    axes.legend(frameon=False)


def _values(rows: Sequence[Row]) -> list[float]:
    return [row["tokens_per_s"] for row in rows]


def _ends(rounds: Sequence[Sequence[float]]) -> Ends:
    middles = [median(values) for values in rounds]
    down = [middle - min(values) for middle, values in zip(middles, rounds, strict=True)]
    return down, [max(values) - middle for middle, values in zip(middles, rounds, strict=True)]


def _memory(report: Report, figure: Any) -> None:
    """Agents that fit, by their length."""
    axes = figure.subplots()
    rows = _rows(report, what=IN_MEMORY)
    sizes = sorted({row["tokens"] for row in rows})
    systems = list(dict.fromkeys(row["system"] for row in rows))
    for place, system in enumerate(systems):
        counts = {r["tokens"]: r["agents"] or 0 for r in rows if r["system"] == system}
        at = [i + 0.27 * (place - 1) for i in range(len(sizes))]
        colour = (OURS, PEER, FAINT)[place % 3]
        bars = axes.bar(at, [counts[n] for n in sizes], 0.25, color=colour, label=system)
        axes.bar_label(bars, [str(counts[n] or "") for n in sizes])
    axes.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
    axes.set_xlabel("tokens of each agent")
    axes.set_ylabel(f"agents in {report['settings']['budget_bytes'] / 1e9:.1f} GB")
    axes.legend(frameon=False)


def _quality(report: Report, figure: Any) -> None:
    """KL divergence of each format, by the length of the windows."""
    axes = figure.subplots()
    lost = [row for row in report["rows"] if row["kl"] > 0]
    names = list(dict.fromkeys(row["format"] for row in lost))
    sizes = sorted({row["tokens"] for row in lost})
    for place, (size, colour) in enumerate(zip(sizes, (OURS, FAINT), strict=False)):
        rows = [row for row in lost if row["tokens"] == size]
        at = [names.index(row["format"]) + 0.4 * (place - 0.5) for row in rows]
        label = f"windows of {size:,} tokens"
        axes.barh(at, [row["kl"] for row in rows], 0.38, color=colour, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("KL divergence from full precision, nats per token")
    figure.legend(loc="outside lower center", ncols=len(sizes), frameon=False)


def _synapse(report: Report, figure: Any) -> None:
    """The share of the gap that each rule closes, with its standard error."""
    rows = report["rows"]
    axes = figure.subplots()
    errors = [row["gap_closed_se"] for row in rows]
    _ways(axes, {row["rule"]: row["gap_closed"] for row in rows}, errors)
    axes.set_xlabel(f"share of the gap closed by {report['settings']['kept']} landmarks")


def _injection(report: Report, figure: Any) -> None:
    """The effect of each way to tell a thought, and how well each score tells thoughts apart."""
    effects, gates = figure.subplots(2, 1)
    rows = [row for row in report["rows"] if "way" in row]
    errors = [row["effect_share_se"] for row in rows]
    _ways(effects, {row["way"]: row["effect_share"] for row in rows}, errors)
    effects.set_xlabel("effect ÷ effect of pasted text")
    _ways(gates, {row["score"]: row["auc"] for row in report["rows"] if "auc" in row})
    gates.axvline(0.5, color=PEER, linestyle=":")
    gates.set_xlabel("area under the ROC curve; 0.5 is guessing")


def _council(report: Report, figure: Any) -> None:
    """Memory of a Stream, and the River's speed beside busy ones, by the number of Streams."""
    memory, speed = figure.subplots(1, 2)
    rows = _rows(report, what="memory")
    models = dict.fromkeys(row["model"] for row in rows)
    for model, colour in zip(models, (OURS, FAINT), strict=False):
        # Of several rows for a number of Streams the last is of those that have said most.
        of_it = {row["streams"]: row for row in rows if row["model"] == model}
        sizes = [row["mb_per_stream"] for row in of_it.values()]
        memory.plot(list(of_it), sizes, color=colour, marker="o", label=model)
    published = {r["streams"]: r["published_mb"] for r in rows if r.get("published_mb")}
    memory.plot(list(published), list(published.values()), "s", color=PEER, label="Warp-Cortex")
    memory.set_xscale("log")
    memory.set_yscale("log")
    memory.set_xlabel("Streams")
    memory.set_ylabel("MB for each Stream")
    memory.legend(frameon=False, fontsize=8)
    rounds: dict[str, list[float]] = {}
    for row in _rows(report, what="speed"):
        if row["streams"]:
            rounds.setdefault(str(row["streams"]), []).append(row["river_share"])
    middles, ends = [median(shares) for shares in rounds.values()], _ends([*rounds.values()])
    speed.bar(list(rounds), middles, yerr=ends, color=OURS, capsize=3)
    speed.axhline(1, color=PEER, linestyle=":")
    speed.set_xlabel("busy Streams")
    speed.set_ylabel("speed of the River ÷ alone")


def _compare(report: Report, figure: Any) -> None:
    """How many times better each ratio is, whatever its direction."""
    axes = figure.subplots()
    gains = {
        name.removeprefix("compare.").replace("_over_", " / "): ratio
        if FIGURES[name].better == MORE
        else 1 / ratio
        for name, ratio in report["figures"].items()
    }
    colours = [OURS if gain >= 1 else COLD for gain in gains.values()]
    axes.barh(list(gains), [gain - 1 for gain in gains.values()], left=1, color=colours)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("times better than the other")


def _roofline(report: Report, figure: Any) -> None:
    axes, shares = figure.subplots(), dict[str, list[float]]()
    for row in _rows(report, what="limit"):
        shares.setdefault(row["limit_of"], []).append(row["share"])
    _ways(axes, {name: median(values) for name, values in shares.items()})
    axes.axvline(1, color=PEER, linestyle=":")
    axes.set_xlabel("share of the machine's limit")


def _workflow(report: Report, figure: Any) -> None:
    """Seconds to the first token in each phase, the median of the rounds."""
    names = list(dict.fromkeys(row["workflow"] for row in report["rows"]))
    for axes, name in zip(figure.subplots(len(names), squeeze=False).flat, names, strict=True):
        rows = _rows(report, workflow=name)
        phases = list(dict.fromkeys(row["phase"] for row in rows))
        for place, (state, colour) in enumerate((("kept", OURS), ("cold", COLD))):
            times = [
                median(row[f"ttft_{state}_s"] for row in _rows(report, workflow=name, phase=phase))
                for phase in phases
            ]
            at = [i + 0.4 * (place - 0.5) for i in range(len(phases))]
            axes.barh(at, times, 0.38, color=colour, label=state)
        axes.set_yticks(range(len(phases)), phases)
        axes.invert_yaxis()
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("seconds to the first token")
        axes.legend(frameon=False)


def _blas(report: Report, figure: Any) -> None:
    axes = figure.subplots()
    times: dict[str, list[float]] = {}
    for row in report["rows"]:
        times.setdefault(row["blas"], []).append(row["ttft_s"])
    _ways(axes, {name: median(seconds) for name, seconds in times.items()})
    axes.set_xlabel("seconds to read 512 tokens")


def _ways(axes: Any, values: Mapping[str, float], errors: Sequence[float] | None = None) -> None:
    """A horizontal bar for each name, the first on top."""
    axes.barh(list(values), list(values.values()), xerr=errors, color=OURS, capsize=3)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.invert_yaxis()


def _rows(report: Report, **wanted: object) -> list[Row]:
    return [row for row in report["rows"] if wanted.items() <= row.items()]


DRAWINGS: dict[str, Callable[[Report, Any], None]] = {
    "ttft": _ttft,
    "decode": _decode,
    "memory": _memory,
    "quality": _quality,
    "council": _council,
    "synapse": _synapse,
    "injection": _injection,
    "compare": _compare,
    "roofline": _roofline,
    "workflow": _workflow,
    "blas": _blas,
}
