"""Records and tables of benchmarks, from made-up reports."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import edgecortex
from edgecortex.bench import compare, decode, ttft
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
from edgecortex.errors import EdgeCortexError
from tests.bench.reports import made

ROOT = Path(__file__).parents[2]
# What the design asks for, by benchmark.
ASKED = {
    "ttft": "warm_over_limit cold_over_warm_8k cold_4k_over_mlx_lm cold_4k_over_llama_cpp "
    "hot_over_step",
    "quality": "kl ppl_pct bits_per_value",
    "decode": "alone_over_mlx_lm equal16_over_1 equal16_over_mlx_lm mixed16_over_equal16 "
    "mixed16_over_mlx_lm prefix64_memory prefix64_over_private gap_during_prefill overhead_pct",
    "memory": "disk_bits_per_value shared_prefix_disk_pct gemma3_12b_agents_8k",
    "council": "mb_per_stream_100 river_share_16 thought_gap",
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
    scenarios = compare.FULL.agents
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


def decoded(ours: float, theirs: float, slow: bool) -> list[dict[str, Any]]:
    """Rows of a process with two rounds; in the second mlx-lm is a tenth slower."""
    slow_ones = ["prefix64", "private64", decode.GAP]
    names = [*decode.SCENARIOS, *(slow_ones if slow else [])]
    row = {"overhead_pct": 1.0, "memory_ratio": 1.0, "ratio": 2.0}
    return [
        {"side": side, "scenario": name, "round": number, "tokens_per_s": rate * factor, **row}
        for number, factor in ((1, 1.0), (2, 0.9))
        for name in names
        for side, rate, factor in (("ours", ours, 1.0), ("mlx_lm", theirs, factor))
        if slow or (side, name) != ("mlx_lm", decode.MIXED)
    ]


def test_decode_has_a_spread_over_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([(20.0, 10.0), (40.0, 10.0), (30.0, 8.0), (20.0, 10.0)])
    checked = []

    def turns(path: str, num_steps: int, slow: bool) -> dict[str, Any]:
        return {"rows": decoded(*next(rates), slow), "said": {}}

    monkeypatch.setattr(decode, "resolve", Path)
    monkeypatch.setattr(decode, "_turns", turns)
    monkeypatch.setattr(decode, "check", lambda path, rows, said: checked.append(len(rows)))
    report = decode.measure("m", 3, lambda line: None)
    # Of ratios in the same round: 2, 2 / 0.9, 4, 4 / 0.9, 3.75 and 3.75 / 0.9.
    assert report["figures"]["decode.alone_over_mlx_lm"] == pytest.approx((3.75 + 4) / 2)
    ends = report["spread"]["decode.alone_over_mlx_lm"]
    assert ends == [pytest.approx(2), pytest.approx(4 / 0.9)]
    assert report["spread"]["decode.equal16_over_1"] == [1.0, 1.0]
    assert set(report["spread"]) == set(report["figures"]) == set(figures_of("decode"))
    assert len(checked) == 3
    assert sum(checked) == len(report["rows"])
    assert [row["round"] for row in report["rows"]] == sorted(r["round"] for r in report["rows"])
    figures = decode.measure("m", 1, lambda line: None, slow=False)["figures"]
    missing = set(figures_of("decode")) - set(figures)
    assert missing == {
        "decode.gap_during_prefill",
        "decode.mixed16_over_mlx_lm",
        "decode.prefix64_memory",
        "decode.prefix64_over_private",
    }


def test_ttft_has_a_spread_over_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scripted(ttft._Rounds):
        def save(self, contexts: object) -> None:
            pass

        def measure(self, tokens: int, number: int, where: str) -> None:
            for state, seconds in (("cold", 8.0), ("mlx_lm", 8.0 * number)):
                self._note(state, tokens, 1, {"ttft_s": seconds})

        def saving(self, tokens: int) -> list[dict[str, Any]]:
            return [{"what": "saving", "slowdown_pct": 3.0 * number} for number in (1, 3, 2)]

    monkeypatch.setattr(ttft, "resolve", Path)
    monkeypatch.setattr(ttft, "_Rounds", Scripted)
    report = ttft.measure("m", [4096], 3, lambda line: None)
    assert report["settings"]["llama.cpp"].startswith("not measured: ")
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


def test_whole_numbers_that_rounds_differ_in_are_measurements() -> None:
    rows = [
        {"round": turn, "side": side, "scenario": "equal16", "tokens_per_s": rate, "kv_bytes": size}
        for turn, side, rate, size in (
            (1, "ours", 138.5, 35_435_520),
            (1, "mlx_lm", 118.8, 188_743_680),
            (2, "ours", 98.1, 35_850_240),
            (2, "mlx_lm", 126.8, 188_743_680),
        )
    ]
    ((_, lines),) = tables(rows)
    assert lines == [
        ["ours", "equal16", "118.3 (98.1 to 138.5)", "35,642,880 (35,435,520 to 35,850,240)"],
        ["mlx_lm", "equal16", "122.8 (118.8 to 126.8)", "188,743,680"],
    ]


def test_whole_numbers_that_say_what_was_measured_are_lines_of_their_own() -> None:
    """Sizes of contexts; a side that was left out in the second round has fewer of them."""
    rows = [
        {"what": "cold", "side": "ours", "tokens": n, "round": turn, "ttft_s": n * turn / 8}
        for turn, sizes in ((1, (512, 2048)), (2, (512,)))
        for n in sizes
    ]
    ((_, lines),) = tables(rows)
    assert lines == [["cold", "ours", "512", "96 (64 to 128)"], ["cold", "ours", "2,048", "256"]]
    streams = [{"what": "memory", "streams": n, "said": 8, "mb": 1.5} for n in (10, 10, 100)]
    ((_, lines),) = tables(streams)
    assert [line[1] for line in lines] == ["10", "10", "100"]


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
