"""Two made-up results held against each other."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgecortex.bench.diff import compare, diff, show
from edgecortex.bench.figures import FIGURES
from edgecortex.errors import ConfigError
from tests.bench.reports import made

HOT = "ttft.hot_over_step"
WARM, SHARE = "ttft.warm_over_limit", "decode.alone_over_mlx_lm"


def verdict(
    name: str, a: float, b: float, spread_a: list[float] | None, spread_b: list[float] | None
) -> str:
    """Of one figure with these spreads."""
    kind = name.partition(".")[0]
    one, other = (
        made(kind, figures={name: value}, spread={name: ends} if ends else {})
        for value, ends in ((a, spread_a), (b, spread_b))
    )
    (row,) = compare(one, other)
    assert (row["a"], row["b"], row["ratio"]) == (a, b, pytest.approx(b / a))
    assert (row["spread_a"], row["spread_b"]) == (spread_a, spread_b)
    return str(row["verdict"])


def test_differences_within_spreads() -> None:
    assert verdict(WARM, 1.2, 1.3, [1.1, 1.25], [1.2, 1.4]) == "within the spreads"
    assert verdict(WARM, 1.2, 1.3, [1.1, 1.3], None) == "within the spreads"
    assert verdict(WARM, 1.2, 1.3, None, [1.2, 1.4]) == "within the spreads"


def test_differences_beyond_spreads_have_a_direction() -> None:
    assert verdict(WARM, 1.2, 1.3, [1.1, 1.25], [1.26, 1.4]) == "worse, beyond the spreads"
    assert verdict(WARM, 1.3, 1.2, [1.26, 1.4], [1.1, 1.25]) == "better, beyond the spreads"
    assert verdict(SHARE, 1.0, 2.0, [0.9, 1.1], [1.9, 2.1]) == "better, beyond the spreads"
    assert verdict(SHARE, 2.0, 1.0, [1.9, 2.1], None) == "worse, beyond the spreads"


def test_differences_without_spreads() -> None:
    assert verdict(WARM, 1.2, 1.3, None, None) == "worse, no spread is known"
    assert verdict(WARM, 1.2, 1.2, None, None) == "the same"
    assert verdict("ttft.of_the_future", 1.2, 1.3, None, None) == "more, no spread is known"


def test_a_figure_of_nought_has_no_ratio() -> None:
    (row,) = compare(*(made("blas", figures={"x": value}) for value in (0.0, 1.0)))
    assert row["ratio"] is None


def write(path: Path, report: dict[str, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report))
    return path


def test_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a.json", made("ttft"))
    settings = {"model": "other", "contexts": [512]}
    figures = {WARM: 1.0, "ttft.cold_4k_over_mlx_lm": 0.5}
    machine = made("ttft")["machine"] | {"num_cpus": 4}
    b = write(
        tmp_path / "b.json", made("ttft", settings=settings, figures=figures, machine=machine)
    )
    found = diff(a, b)
    assert [row["figure"] for row in found["figures"]] == [WARM]
    assert found["only"] == []
    show(found, as_json=True)
    assert json.loads(capsys.readouterr().out) == found
    show(found, as_json=False)
    out = capsys.readouterr().out
    assert f"A  {a}\nB  {b}\n" in out
    assert "better, no spread is known" in out
    assert "not the same, ttft: model is some-model; and other\n" in out
    assert "not the same, ttft: contexts is [512, 2048]; and [512]\n" in out
    assert "2 CPUs" in out
    assert "4 CPUs" in out


def test_two_folders(tmp_path: Path) -> None:
    for side, name in (("a", "ttft"), ("a", "decode"), ("b", "ttft"), ("b", "blas")):
        write(tmp_path / side / f"{name}.json", made(name))
    found = diff(tmp_path / "a", tmp_path / "b")
    assert {row["verdict"] for row in found["figures"]} == {"the same"}
    assert {row["figure"] for row in found["figures"]} == set(made("ttft")["figures"])
    a, b = tmp_path / "a", tmp_path / "b"
    assert found["only"] == [f"decode some-model in {a}", f"blas some-model in {b}"]
    assert found["differs"] == []


def test_a_folder_has_a_benchmark_of_two_models(tmp_path: Path) -> None:
    for model in ("one", "two"):
        write(tmp_path / "a" / f"{model}.json", made("quality", settings={"model": model}))
    two = write(tmp_path / "b.json", made("quality", settings={"model": "two"}))
    found = diff(tmp_path / "a", two)
    assert len(found["figures"]) == 1
    assert found["only"] == [f"quality one in {tmp_path / 'a'}"]


def test_a_folder_with_two_results_of_the_same_is_refused(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a" / f"{name}.json", made("ttft")) for name in ("full", "quick")]
    with pytest.raises(
        ConfigError, match=r"two results of ttft some-model, full\.json and quick\.json: name one"
    ):
        diff(tmp_path / "a", paths[0])
    assert diff(*paths)["only"] == []


def test_different_benchmarks_are_refused(tmp_path: Path) -> None:
    a, b = (write(tmp_path / f"{name}.json", made(name)) for name in ("ttft", "decode"))
    with pytest.raises(ConfigError, match=r"same benchmark, got ttft in .* and decode in .*"):
        diff(a, b)


def test_what_was_no_number_is_left_out() -> None:
    one, other = (made("ttft", figures={WARM: value, HOT: 1.0}) for value in (None, 1.2))
    assert [row["figure"] for row in compare(one, other)] == [HOT]
    assert FIGURES[WARM].verdict(None) == "not reached"
