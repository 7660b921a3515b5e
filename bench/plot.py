"""A picture of the times to the first token."""

from importlib.util import find_spec
from pathlib import Path

from edgecortex.bench.report import Report
from edgecortex.errors import ConfigError, EdgeCortexError

SUFFIXES = (".svg", ".png")
# A label, a colour and a marker for each state that is drawn.
LINES = {
    "mlx_lm": ("mlx-lm, read anew", "#8c8c8c", "s"),
    "cold": ("EdgeCortex, read anew", "#d1495b", "o"),
    "warm": ("EdgeCortex, from disk", "#2e86ab", "o"),
    "hot": ("EdgeCortex, in memory", "#3a7d44", "o"),
}


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
    if find_spec("matplotlib") is None:
        raise EdgeCortexError('--plot needs matplotlib: pip install "edgecortex[bench]"')


def draw(report: Report, path: Path) -> None:
    """Draws a ttft report: seconds over tokens of context, both on logarithmic scales."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for state, (label, colour, marker) in LINES.items():
        wanted = {"what": "ttft", "state": state, "new_tokens": 1}
        rows = [row for row in report["rows"] if wanted.items() <= row.items()]
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
    axes.set_title(f"{report['settings']['model']} on {report['machine']['device']}", fontsize=10)
    axes.legend(frameon=False)
    with mpl.rc_context({"svg.hashsalt": "edgecortex"}):
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
