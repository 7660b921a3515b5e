"""Pages about results and a README's part of them, from made-up reports."""

import json
import os
from pathlib import Path

import pytest

from edgecortex.bench import plot, render
from edgecortex.bench.benches import BENCHES
from edgecortex.bench.figures import FIGURES
from edgecortex.bench.report import read_report, read_reports
from edgecortex.errors import ConfigError
from tests.bench.reports import MACHINE, ROWS, made

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"


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
    assert "(`edgecortex bench ttft`)" in missing
    assert "Measured by `edgecortex bench ttft`, with the settings below, on Linux x86_64" in page
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


def test_no_picture_is_made_of_nothing(tmp_path: Path) -> None:
    """A quick run has no agents in memory."""
    pytest.importorskip("matplotlib")
    plot.draw_all(made("memory", rows=ROWS["memory"][:1]), tmp_path, "quick")
    plot.draw_all(made("memory"), tmp_path, "full")
    assert {path.name for path in tmp_path.iterdir()} == {"full.svg", "full.png"}


def test_times_of_llama_cpp_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    llama = {"what": "ttft", "state": "llama_cpp", "tokens": 512, "new_tokens": 1, "ttft_s": 0.5}
    sizes = []
    for rows in (ROWS["ttft"], [*ROWS["ttft"], llama]):
        plot.draw(made("ttft", rows=rows), tmp_path / "a.svg")
        sizes.append((tmp_path / "a.svg").read_text("utf-8").count(f"stroke: {plot.FAINT}"))
    assert sizes[0] == 0 < sizes[1]


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


def test_pictures_of_earlier_results_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    written = (folder / "blas.json").stat().st_mtime
    for name, age in (("blas.svg", 1), ("ttft.svg", -1), ("mine.svg", 1)):
        (folder / name).write_text("a picture")
        os.utime(folder / name, (written - age, written - age))
    render.collect(folder)
    assert sorted(path.name for path in folder.glob("*.svg")) == ["mine.svg", "ttft.svg"]
    page = (folder / "REPORT.md").read_text("utf-8")
    assert "(ttft.svg)" in page
    assert "blas.svg" not in page


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


def test_figures_of_another_device_say_so(folder: Path) -> None:
    device = MACHINE | {"device": "GPU (made up too)"}
    both = {"here": made("ttft"), "there": made("ttft", machine=device)}
    both |= {"decode": made("decode")}
    names = [line.split(" | ")[0] for line in render.figure_table(both)]
    name = next(iter(made("ttft")["figures"]))
    assert f"| `{name}`" in names
    assert f"| `{name}` (GPU (made up too))" in names
    (folder / "there.svg").write_text("<svg/>", "utf-8")
    block = render.readme_block(both, folder, folder)
    assert "Seconds to the first token (some-model) —" in block
    assert "Seconds to the first token (some-model, GPU (made up too)) —" in block
    assert "[there](./there.svg)" in block
    assert "](./there.svg)" not in block.replace("[there](./there.svg)", "")


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
    assert "\nold\n" not in once
    assert "`ttft.warm_over_limit`" in once
    render.replace_block(readme, reports, folder)
    assert readme.read_text("utf-8") == once


def test_a_readme_shows_some_pictures_and_links_the_others(folder: Path) -> None:
    for name in ("ttft", "decode", "blas"):
        (folder / f"{name}.svg").write_text("a picture")
    block = render.readme_block(read_reports(folder), folder, folder.parent)
    to = folder.name
    for name in render.SHOWN:
        assert f"\n![{name}: {BENCHES[name].title} (some-model)]({to}/{name}.svg)\n" in block
    assert block.endswith(f"\nMore pictures: [blas]({to}/blas.svg).\n")


def test_a_readme_has_seconds_to_the_first_token(folder: Path) -> None:
    report = made("ttft", rows=[*made("ttft")["rows"], ROWS["ttft"][0] | {"new_tokens": 16}])
    block = render.readme_block({"a": report, "b": made("blas")}, folder, folder)
    assert block.count("Seconds to the first token") == 1
    assert block.partition("Seconds to the first token ")[2].partition("\n**blas: ")[0] == (
        "(some-model) — cold: all tokens are read.\n\n"
        "| tokens of context | cold | warm | hot | mlx-lm, cold |\n"
        "| --: | --: | --: | --: | --: |\n"
        "| 512 | 1.02 | 0.0512 | 0.0256 | 2.05 |\n"
        "| 2,048 | 4.1 | 0.205 | 0.102 | 8.19 |\n"
    )
    llama = {"what": "ttft", "state": "llama_cpp", "tokens": 512, "new_tokens": 1, "ttft_s": 1234.5}
    block = render.readme_block({"a": report | {"rows": [llama]}}, folder, folder)
    assert block.endswith(
        "| tokens of context | llama.cpp, cold |\n| --: | --: |\n| 512 | 1,230 |\n"
    )
    assert "Seconds" not in render.readme_block({"b": made("blas")}, folder, folder)


@pytest.mark.parametrize("text", ["", f"{render.BEGIN}", f"{render.END} {render.BEGIN}"])
def test_a_readme_without_markers_is_left_alone(folder: Path, text: str) -> None:
    readme = folder / "README.md"
    readme.write_text(text)
    with pytest.raises(ConfigError, match="expected a line <!-- bench:begin -->"):
        render.replace_block(readme, read_reports(folder), folder)
    assert readme.read_text() == text
