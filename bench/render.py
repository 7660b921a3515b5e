"""Reports as files: JSON, Markdown that is readable without any other page, and pictures."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgecortex.bench import plot
from edgecortex.bench.benches import BENCHES
from edgecortex.bench.figures import FIGURES, figures_of
from edgecortex.bench.report import (
    Report,
    between,
    cell,
    definitions_of,
    made_on,
    read_reports,
    settings_of,
    tables,
    to_json,
)
from edgecortex.errors import ConfigError, EdgeCortexError

COLLECTED = "REPORT.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
NO_PLOTS = 'no pictures are drawn without matplotlib: pip install "edgecortex[bench]"'
_COLUMNS = ("figure", "what it is", "here", "spread", "target", "verdict", "held against")
SHOWN = ("ttft", "decode")  # benchmarks whose pictures a README shows
TOKENS = "tokens of context"
# The states whose times to the first token a README has, and what their columns are called.
STATES = {
    "cold": "cold",
    "warm": "warm",
    "hot": "hot",
    "mlx_lm": "mlx-lm, cold",
    "llama_cpp": "llama.cpp, cold",
}
_RIGHT = ("here", "spread", "target", TOKENS, *STATES.values())


def prepare(folder: Path) -> None:
    """Makes a folder for results, before anything is measured.

    Raises:
        EdgeCortexError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise EdgeCortexError(
            f"cannot write in {folder}: {error.strerror}; name another folder with --out"
        ) from error


def save(report: Report, folder: Path, stem: str) -> None:
    """Writes a report's JSON, its pictures where they can be drawn, and its Markdown. Old ones of
    that name are replaced.

    Raises:
        EdgeCortexError: the folder cannot be written.
    """
    for name in _pictures(folder, stem):
        (folder / name).unlink()
    write(folder / f"{stem}.json", to_json(report) + "\n")
    plot.draw_all(report, folder, stem)
    lines = [f"# {_title(report)}", "", *_about(stem, report, folder)]
    write(folder / f"{stem}.md", _text(lines))


def collect(folder: Path) -> dict[str, Report]:
    """Draws all reports of a folder and writes one page about them. Pictures that are older than
    their reports' files go.

    Returns: the reports by their files' stems.

    Raises:
        EdgeCortexError: there are none, or the folder cannot be read or written.
    """
    reports = read_reports(folder)
    prepare(folder)
    for stem, report in reports.items():
        _remove_old_pictures(folder, stem, report)
        plot.draw_all(report, folder, stem)
    write(folder / COLLECTED, page(reports, folder))
    return reports


def write(path: Path, text: str) -> None:
    """Puts a text file in place of another, whole."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, "utf-8")
    os.replace(part, path)


# Pages.


def page(reports: Mapping[str, Report], folder: Path) -> str:
    """All about the reports of a folder."""
    lines = ["# What EdgeCortex does on this machine", "", *_told(reports), ""]
    lines += figure_table(reports)
    if missing := _missing(reports):
        lines += ["", f"Not measured here: {'; '.join(missing)}."]
    if not plot.available() and not any(_pictures(folder, stem) for stem in reports):
        lines += ["", f"There are no pictures: {NO_PLOTS}."]
    for stem, report in reports.items():
        lines += ["", f"## {_title(report)}", "", *_about(stem, report, folder)]
    return _text(lines)


def readme_block(reports: Mapping[str, Report], folder: Path, base: Path) -> str:
    """What a README says of the results in a folder, benchmark by benchmark, in links from its
    own folder."""
    lines, links = _told(reports), []
    usual, model = _usual(_kind, reports), _usual(_model, reports)
    to = Path(os.path.relpath(folder, base)).as_posix()
    for stem, report in sorted(reports.items(), key=_place):
        device = _elsewhere(report, usual)
        lines += ["", f"**{_heading(report, model, device)}**", "", *figure_table({stem: report})]
        lines += _first_tokens(report, device)
        if f"{stem}.svg" not in _pictures(folder, stem):
            continue
        if report["benchmark"] in SHOWN and not device:
            lines += ["", f"![{_title(report)}]({to}/{stem}.svg)"]
        else:
            links.append(f"[{stem}]({to}/{stem}.svg)")
    if links:
        lines += ["", f"More pictures: {', '.join(links)}."]
    return _text(lines)


def _place(item: tuple[str, Report]) -> tuple[int, str]:
    """In the order of the benchmarks, those of the future last."""
    stem, report = item
    names = [*BENCHES, report["benchmark"]]
    return names.index(report["benchmark"]), stem


def _heading(report: Report, usual_model: str, device: str) -> str:
    name = report["benchmark"]
    model = _model(report) if _model(report) != usual_model else ""
    named = ", ".join(filter(None, (model, device, "quick" if _is_quick(report) else "")))
    title = f": {BENCHES[name].title}" if name in BENCHES else ""
    return f"{name} ({named}){title}" if named else f"{name}{title}"


def replace_block(readme: Path, reports: Mapping[str, Report], folder: Path) -> None:
    """Puts the results of a folder between a README's markers.

    Raises:
        ConfigError: there are no markers.
        EdgeCortexError: it cannot be read or written.
    """
    try:
        before, after = around_block(readme.read_text("utf-8"))
        block = readme_block(reports, folder, readme.absolute().parent)
        write(readme, f"{before}{BEGIN}\n{block}{END}{after}")
    except OSError as error:
        raise EdgeCortexError(f"cannot change {readme}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(
            f"{readme}: expected a line {BEGIN} and after it a line {END}; put them where the "
            "results are to stand"
        ) from error


def around_block(text: str) -> tuple[str, str]:
    """What stands before and after a README's results.

    Raises:
        ValueError: there are no markers.
    """
    begin = text.index(BEGIN)
    end = text.index(END, begin)
    return text[:begin], text[end + len(END) :]


# Parts of pages.


def figure_table(reports: Mapping[str, Report]) -> list[str]:
    """A line of Markdown for each figure of some reports."""
    usual, kind, lines = _usual(_model, reports), _usual(_kind, reports), []
    all_quick = all(map(_is_quick, reports.values()))
    for report in reports.values():
        named = [_model(report) if _model(report) != usual else "", _format(report)]
        named.append(_elsewhere(report, kind))
        named += ["quick"] if _is_quick(report) and not all_quick else []
        of = f" ({', '.join(filter(None, named))})" if any(named) else ""
        for name, value in report["figures"].items():
            ends = report.get("spread", {}).get(name)
            lines.append(_figure(name, f"`{name}`{of}", value, ends))
    return _table(_COLUMNS, lines)


def _first_tokens(report: Report, device: str) -> list[str]:
    """Times to the first token as Markdown, a line for each length of a context and a column for
    each state; nothing where a report has none. `device` is named if it is not the usual one."""
    rows = [r for r in report["rows"] if (r.get("what"), r.get("new_tokens")) == ("ttft", 1)]
    seconds = {(row["tokens"], row["state"]): row["ttft_s"] for row in rows}
    states = [state for state in STATES if any(state == s for _, s in seconds)]
    if not states:
        return []
    known = definitions_of(report)
    means = "; ".join(f"{state}: {known[state]}" for state in states if state in known)
    lines = [
        [f"{tokens:,}", *(_seconds(seconds.get((tokens, state))) for state in states)]
        for tokens in sorted({tokens for tokens, _ in seconds})
    ]
    of = ", ".join(filter(None, (_model(report), device)))
    told = f"Seconds to the first token ({of}){f' — {means}' if means else ''}."
    return ["", told, "", *_table([TOKENS, *(STATES[state] for state in states)], lines)]


def _seconds(value: float | None) -> str:
    """To three digits."""
    return "" if value is None else f"{float(f'{value:.3g}'):,.10g}"


def _told(reports: Mapping[str, Report]) -> list[str]:
    """Paragraphs: on what was measured, and how to read the figures."""
    machines = _machines(reports)
    lines = []
    for made, stems in machines.items():
        lines += [made + (f" ({', '.join(stems)})." if len(machines) > 1 else "."), ""]
    text = f"The model is {_usual(_model, reports)} unless said otherwise."
    if any(report.get("spread") for report in reports.values()):
        text += (
            " Spread is the least and the most of several rounds, or of several groups of contexts."
        )
    if any(map(_is_quick, reports.values())):
        text += (
            " A quick run measures shorter contexts and fewer of them; targets are about full ones."
        )
    return [*lines, text + _measured(reports)]


def _measured(reports: Mapping[str, Report]) -> str:
    """When, as far as the reports say it."""
    dates = sorted({report["date"][:10] for report in reports.values() if report.get("date")})
    undated = [stem for stem, report in reports.items() if not report.get("date")]
    if not dates:
        return ""
    text = f" Measured {' to '.join(sorted({dates[0], dates[-1]}))}"
    return text + (f"; without a date: {', '.join(undated)}." if undated else ".")


def _usual(fact: Callable[[Report], str], reports: Mapping[str, Report]) -> str:
    """What most reports have in common."""
    facts = [fact(report) for report in reports.values()]
    return max(facts, key=facts.count)


def _figure(name: str, label: str, value: float, ends: Sequence[float] | None) -> list[str]:
    if name not in FIGURES:
        return [label, "", cell(value), between(ends), "", "", ""]
    figure = FIGURES[name]
    unit = f" {figure.unit}" if figure.unit else ""
    texts = [figure.meaning, cell(value) + unit, between(ends), figure.goal]
    return [label, *texts, figure.verdict(value), figure.against]


def _about(stem: str, report: Report, folder: Path) -> list[str]:
    """A report without its heading."""
    command = _command(report["benchmark"], _is_quick(report))
    lines = [f"Measured by {command}, with the settings below, on {made_on(report)}.", ""]
    settings = [f"{name}: {value}" for name, value in settings_of(report).items()]
    lines += [f"Settings: {'; '.join(settings)}.", "", *figure_table({stem: report})]
    if pictures := _pictures(folder, stem):
        lines += ["", f"![{_title(report)}]({pictures[0]})"]
    for columns, rows in tables(report["rows"]):
        lines += ["", *_table(columns, rows)]
    if definitions := definitions_of(report):
        lines += ["", *(f"- {name}: {meaning}" for name, meaning in definitions.items())]
    return lines


def _title(report: Report) -> str:
    name = report["benchmark"]
    title = f"{name}: {BENCHES[name].title}" if name in BENCHES else name
    return f"{title} ({_model(report)})" if _model(report) else title


def _model(report: Report) -> str:
    return str(report["settings"].get("model", ""))


def _kind(report: Report) -> str:
    """Of device, such as CPU."""
    return str(report["machine"]["device"]).partition(" (")[0]


def _elsewhere(report: Report, usual: str) -> str:
    """The device, if it is not of the usual kind."""
    return "" if _kind(report) == usual else str(report["machine"]["device"])


def _format(report: Report) -> str:
    """Of the KV that the figures are about, where there are several."""
    return str(report["settings"].get("format", ""))


def _is_quick(report: Report) -> bool:
    return bool(report["settings"].get("quick"))


def _machines(reports: Mapping[str, Report]) -> dict[str, list[str]]:
    """Machine and versions, without dates, and the stems of what was measured there."""
    found: dict[str, list[str]] = {}
    for stem, report in reports.items():
        found.setdefault(made_on(report).partition(";")[0], []).append(stem)
    return found


def _missing(reports: Mapping[str, Report]) -> list[str]:
    """Figures that no report gives, with the commands that do, if peers are installed."""
    given = {name for report in reports.values() for name in report["figures"]}
    missing = {
        kind: [f"`{name}`" for name in figures_of(kind) if name not in given] for kind in BENCHES
    }
    return [f"{', '.join(names)} ({_command(kind)})" for kind, names in missing.items() if names]


def _command(benchmark: str, quick: bool = False) -> str:
    return f"`edgecortex bench {benchmark}{' --quick' if quick else ''}`"


def _pictures(folder: Path, stem: str) -> list[str]:
    names = [f"{stem}{suffix}" for suffix in plot.SUFFIXES]
    return [name for name in names if (folder / name).is_file()]


def _remove_old_pictures(folder: Path, stem: str, report: Report) -> None:
    """Pictures of earlier results that cannot be drawn again."""
    if plot.available() and report["benchmark"] in plot.DRAWINGS:
        return
    written = (folder / f"{stem}.json").stat().st_mtime
    for name in _pictures(folder, stem):
        if (folder / name).stat().st_mtime < written:
            (folder / name).unlink()


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table. A `|` in a cell would end it."""
    rules = ["--:" if column in _RIGHT else "---" for column in columns]
    lines = [list(columns), rules, *([text.replace("|", "\\|") for text in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _text(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"
