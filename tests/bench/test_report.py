"""Records, tables and pages of benchmarks, from made-up reports."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import edgecortex
from edgecortex.bench import compare, decode, plot, render, ttft
from edgecortex.bench.benches import BENCHES
from edgecortex.bench.figures import FIGURES, LESS, MORE, figures_of
from edgecortex.bench.report import (
    KEYS,
    cell,
    make_report,
    read_report,
    read_reports,
    show,
    spread,
    tables,
    to_json,
)
from edgecortex.cli import bench as commands
from edgecortex.errors import ConfigError, EdgeCortexError
from tests.bench.reports import ROWS, made

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
# What the design asks for, by benchmark.
ASKED = {
    "ttft": "warm_over_limit cold_over_warm_8k cold_4k_over_mlx_lm cold_4k_over_llama_cpp "
    "hot_over_step",
    "quality": "kl ppl_pct bits_per_value",
    "decode": "alone_over_mlx_lm equal16_over_1 equal16_over_mlx_lm mixed16_over_equal16 "
    "mixed16_over_mlx_lm prefix64_memory prefix64_over_private gap_during_prefill overhead_pct",
    "memory": "disk_bits_per_value shared_prefix_disk_pct gemma3_12b_agents_8k",
    "council": "mb_per_stream_100 river_share_16",
    "synapse": "gap_closed",
    "gate": "auc",
    "injection": "effect_share unrelated_kl",
}


# Figures.


def emitted() -> set[str]:
    """Names of figures that the benchmarks' sources have, and those that are put together."""
    kinds = "|".join({name.partition(".")[0] for name in FIGURES} | set(BENCHES))
    modules = [p for p in (ROOT / "bench").glob("*.py") if p.name != "figures.py"]
    found = {
        name
        for path in modules
        for name in re.findall(rf'"((?:{kinds})\.\w+)"', path.read_text("utf-8"))
    }
    scenarios = {*compare.FULL.agents, *compare.QUICK.agents}
    found |= {
        f"compare.{name}_over_{compare._slug(peer)}"
        for metric, *_, peers in compare.METRICS
        for name in ([metric] if metric else scenarios)
        for peer in peers
        if peer not in (compare.OURS, compare.OURS_FP)
    }
    return found | {f"roofline.{name}_share" for name in ("decode1", "decode16", "prefill")}


def test_every_figure_is_explained_and_no_other_is() -> None:
    assert emitted() == set(FIGURES)


def test_every_figure_that_is_asked_for_has_a_target() -> None:
    for kind, names in ASKED.items():
        for name in names.split():
            figure = FIGURES[f"{kind}.{name}"]
            assert figure.target is not None
            assert figure.against


def test_every_figure_has_a_benchmark() -> None:
    assert sorted(name for bench in BENCHES for name in figures_of(bench)) == sorted(FIGURES)
    assert "gate.auc" in figures_of("injection")


def test_every_benchmark_has_a_command() -> None:
    names = {
        command.name or command.callback.__name__ for command in commands.app.registered_commands
    }
    assert names == {*BENCHES, "all", "report", "diff"}


@pytest.mark.parametrize(
    ("name", "value", "goal", "verdict"),
    [
        ("ttft.warm_over_limit", 1.25, "≤ 1.25", "reached"),
        ("ttft.warm_over_limit", 1.251, "≤ 1.25", "not reached"),
        ("ttft.cold_over_warm_8k", 136.0, "≥ 136", "reached"),
        ("ttft.cold_over_warm_8k", 135.9, "≥ 136", "not reached"),
        ("roofline.decode1_share", 0.5, "", ""),
    ],
)
def test_verdicts(name: str, value: float, goal: str, verdict: str) -> None:
    assert (FIGURES[name].goal, FIGURES[name].verdict(value)) == (goal, verdict)
    assert {figure.better for figure in FIGURES.values()} == {LESS, MORE}


# Records.


def test_a_record_says_when_where_and_with_what() -> None:
    report = make_report("blas", {"model": "m"}, {"blas.prefill512_speedup": 2.0}, [])
    assert set(KEYS) < set(report)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", report["date"])
    assert report["versions"]["edgecortex"] == edgecortex.__version__
    assert report["spread"] == {}


def test_spread_is_of_figures_that_several_rounds_have() -> None:
    rounds = [{"a": 1.0, "b": 5.0}, {"a": 3.0}]
    assert spread({"a": 2.0, "b": 5.0, "c": 1.0}, rounds) == {"a": [1.0, 3.0]}
    assert spread({"a": 0.5}, rounds) == {"a": [0.5, 3.0]}
    assert spread({"a": 1.0}, rounds[:1]) == {}


def test_decode_has_a_spread_over_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([20.0, 10.0, 40.0, 10.0, 30.0, 10.0])  # ours and mlx-lm's in turns

    def side(name: str, path: str, slow: bool) -> list[dict[str, Any]]:
        rate = next(rates)
        row = {"tokens_per_s": rate, "overhead_pct": 1.0, "memory_ratio": 1.0, "ratio": 2.0}
        names = [*decode.SCENARIOS, "prefix64", "private64", decode.GAP]
        names = [n for n in names if slow or n not in (decode.GAP, decode.MIXED)]
        return [{"scenario": scenario, **row} for scenario in names]

    monkeypatch.setattr(decode, "resolve", Path)
    monkeypatch.setattr(decode, "_run", side)
    report = decode.measure("m", 3, lambda line: None)
    assert report["figures"]["decode.alone_over_mlx_lm"] == 3.0
    assert report["spread"]["decode.alone_over_mlx_lm"] == [2.0, 4.0]
    assert set(report["spread"]) == set(report["figures"]) == set(figures_of("decode"))
    rates = iter([20.0, 10.0])
    figures = decode.measure("m", 1, lambda line: None, slow=False)["figures"]
    missing = set(figures_of("decode")) - set(figures)
    assert missing == {
        "decode.gap_during_prefill",
        "decode.mixed16_over_equal16",
        "decode.mixed16_over_mlx_lm",
    }


def test_ttft_has_a_spread_over_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scripted(ttft._Rounds):
        number = 0

        def save(self, contexts: object) -> None:
            pass

        def measure(self, tokens: int, more: object, where: str) -> None:
            Scripted.number += 1
            for state, seconds in (("cold", 8.0), ("mlx_lm", 8.0 * Scripted.number)):
                self._note(state, tokens, 1, {"ttft_s": seconds})

        def saving(self, tokens: int) -> dict[str, Any]:
            return {"slowdown_pct": 3.0 * Scripted.number}

    monkeypatch.setattr(ttft, "resolve", Path)
    monkeypatch.setattr(ttft, "_Rounds", Scripted)
    report = ttft.measure("m", [4096], 3, lambda line: None)
    assert report["figures"] == {
        "ttft.cold_4k_over_mlx_lm": 0.5,
        "ttft.saving_slowdown_pct": 6.0,
    }
    assert report["spread"] == {
        "ttft.cold_4k_over_mlx_lm": [pytest.approx(1 / 3), 1.0],
        "ttft.saving_slowdown_pct": [3.0, 9.0],
    }


def test_files_that_are_no_reports(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(EdgeCortexError, match=r"cannot read .*a\.json: No such file"):
        read_report(path)
    path.write_text("{")
    with pytest.raises(EdgeCortexError, match=r"a\.json is not JSON"):
        read_report(path)
    path.write_text('{"benchmark": "ttft"}')
    with pytest.raises(EdgeCortexError, match="no result of a benchmark: expected an object with"):
        read_report(path)
    with pytest.raises(EdgeCortexError, match="has no results: expected files that"):
        read_reports(tmp_path)
    with pytest.raises(EdgeCortexError, match="cannot read the folder"):
        read_reports(tmp_path / "none")
    (tmp_path / "b.json").write_text(json.dumps(made("ttft")))
    assert read_reports(tmp_path) == {"b": made("ttft")}


def test_json_has_numbers_only() -> None:
    report = made("ttft", figures={"a": float("nan")}, rows=[{"b": (1.5, float("inf"))}])
    found = json.loads(to_json(report), parse_constant=pytest.fail)
    assert (found["figures"], found["rows"]) == ({"a": None}, [{"b": [1.5, None]}])


# Tables.


def test_rounds_are_one_line() -> None:
    rows = [
        {"round": turn, "side": "ours", "scenario": "one", "tokens_per_s": rate, "bytes": 1000}
        for turn, rate in ((1, 10.0), (2, 30.0), (3, 20.0))
    ]
    other = {"side": "ours", "scenario": "one", "note": None}
    assert tables([*rows, other, other]) == [
        (
            ["side", "scenario", "tokens_per_s", "bytes"],
            [["ours", "one", "20 (10 to 30)", "1,000"]],
        ),
        (["side", "scenario", "note"], [["ours", "one", ""]] * 2),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "True"),
        (10_200_000_000, "10,200,000,000"),
        (0.00478677, "0.004787"),
        (1234.5, "1,234" if f"{1234.5:.4g}" == "1234" else "1,235"),
        ([512, 2048], "[512, 2048]"),
    ],
)
def test_cells(value: object, text: str) -> None:
    assert cell(value) == text


def test_what_words_mean_stands_below_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    show(made("ttft", spread={"ttft.warm_over_limit": [1.1, 1.3]}), as_json=False)
    out = capsys.readouterr().out
    table, meaning = out.index("new_tokens"), out.index("cold: all tokens are read")
    assert table < meaning < out.index("ttft.warm_over_limit  1.2 (1.1 to 1.3)  ≤ 1.25 reached")
    assert "ttft.hot_over_step  1.3  ≤ 1.2 not reached" in out
    assert "definitions" not in out
    assert out.startswith(
        "Linux x86_64, CPU (made up), 2 CPUs, 8.0 GB of memory, edgecortex 1.2.3, mlx 0.32.4; "
        "2026-01-02T03:04:05+00:00\n"
    )


# Pages.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Reports of every made-up kind, and a file that is none."""
    for name in ROWS:
        (tmp_path / f"{name}.json").write_text(json.dumps(made(name)))
    (tmp_path / "run.json").write_text('{"seconds": {}}')
    return tmp_path


def test_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    assert set(render.collect(folder)) == set(ROWS)
    page = (folder / "REPORT.md").read_text("utf-8")
    for name in ROWS:
        assert f"\n## {name}: {BENCHES[name].title} (some-model)\n" in page
        for figure in made(name)["figures"]:
            assert page.count(f"| `{figure}` | {FIGURES[figure].meaning} |") == 2
    assert "| 1.3 |  | ≤ 1.2 | not reached | the machine: 1 |" in page
    assert "| 37 agents |  | ≥ 34 | reached |" in page
    missing = page[page.index("Not measured here: ") :].splitlines()[0]
    assert "`ttft.cold_over_warm_8k`" in missing
    assert "`ttft.warm_over_limit`" not in missing
    assert "- cold: all tokens are read\n" in page
    assert 'There are no pictures: no pictures are drawn without matplotlib: pip install "' in page
    assert ".svg" not in page
    tables = [part for part in page.split("\n\n") if part.startswith("|")]
    assert len(tables) > len(ROWS)
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_pictures_of_all_kinds(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    render.collect(folder)
    page = (folder / "REPORT.md").read_text("utf-8")
    for name in ROWS:
        assert f"]({name}.svg)\n" in page
        assert (folder / f"{name}.svg").read_text("utf-8").lstrip().startswith("<?xml")
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    before = (folder / "ttft.svg").read_bytes()
    render.collect(folder)
    assert (folder / "ttft.svg").read_bytes() == before
    assert "no pictures" not in page


def test_every_benchmark_is_drawn() -> None:
    assert set(plot.DRAWINGS) == set(BENCHES)


def test_a_result_replaces_an_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    (tmp_path / "blas.svg").write_text("old")
    (tmp_path / "blas.json").write_text("old")
    render.save(made("blas"), tmp_path, "blas")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blas.json", "blas.md"]
    assert read_report(tmp_path / "blas.json") == made("blas")
    page = (tmp_path / "blas.md").read_text("utf-8")
    assert page.startswith("# blas: ")
    assert "| 37.5 |" in page.replace(" × ", " ")


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert render._table(["a"], [["x|y"]]) == ["| a |", "| --- |", "| x\\|y |"]


def test_figures_of_another_model_say_so() -> None:
    usual, other = made("ttft"), made("quality", settings={"model": "other"})
    lines = render.figure_table({"a": usual, "b": made("blas"), "c": other})
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "`ttft.warm_over_limit`",
        "`ttft.hot_over_step`",
        "`blas.prefill512_speedup`",
        "`quality.kl` (other)",
    ]


# The README.


def test_the_readme_says_what_the_results_say() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    before, after = render.around_block(text)
    block = text[len(before) + len(render.BEGIN) + 1 : len(text) - len(after) - len(render.END)]
    expected = render.readme_block(read_reports(RESULTS), RESULTS, ROOT)
    assert block == expected, (
        "the README is behind: edgecortex bench report bench/results --readme README.md"
    )


def test_the_page_of_the_results_is_theirs() -> None:
    page = (RESULTS / render.COLLECTED).read_text("utf-8")
    for report in read_reports(RESULTS).values():
        for line in render.figure_table({"": report})[2:]:
            assert line in page


def test_a_readme_is_changed_between_its_markers_only(folder: Path) -> None:
    readme = folder.parent / "README.md"
    readme.write_text(f"# Mine\n\n{render.BEGIN}\nold\n{render.END}\n\nrest\n")
    reports = read_reports(folder)
    render.replace_block(readme, reports, folder)
    once = readme.read_text("utf-8")
    assert once.startswith(f"# Mine\n\n{render.BEGIN}\n")
    assert once.endswith(f"{render.END}\n\nrest\n")
    assert "old" not in once.replace("threshold", "")
    assert "`ttft.warm_over_limit`" in once
    render.replace_block(readme, reports, folder)
    assert readme.read_text("utf-8") == once


@pytest.mark.parametrize("text", ["", f"{render.BEGIN}", f"{render.END} {render.BEGIN}"])
def test_a_readme_without_markers_is_left_alone(folder: Path, text: str) -> None:
    readme = folder / "README.md"
    readme.write_text(text)
    with pytest.raises(ConfigError, match="expected a line <!-- bench:begin -->"):
        render.replace_block(readme, read_reports(folder), folder)
    assert readme.read_text() == text
