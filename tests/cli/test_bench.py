"""The bench group, with the runs themselves scripted: they take minutes."""

import json
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edgecortex.bench import (
    blas,
    compare,
    council,
    decode,
    memory,
    plot,
    quality,
    roofline,
    side,
    suite,
    ttft,
)
from edgecortex.errors import EdgeCortexError
from tests.bench.reports import made
from tests.cli.conftest import Cli


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template of 21 tokens; 2 s with our BLAS, 60 s with the wheel's."""

    def run(library: str, model: str, prompt: str) -> dict[str, Any]:
        seconds = {"ours": 2.0, "wheel": 60.0}[library]
        tokens = 21 + len(prompt.split())
        rate = tokens / seconds
        return {
            "num_prompt_tokens": tokens,
            "ttft_s": seconds,
            "prefill_tokens_per_s": rate,
            "text": "",
        }

    monkeypatch.setattr(blas, "_run", run)


@pytest.mark.usefixtures("scripted")
def test_json_report(cli: Cli) -> None:
    result = cli("bench", "blas", "--json")
    report = json.loads(result.out)
    keys = ["benchmark", "date", "machine", "versions", "settings", "figures", "spread", "rows"]
    assert list(report) == keys
    assert report["figures"] == {"blas.prefill512_speedup": 30.0}
    assert report["spread"] == {"blas.prefill512_speedup": [30.0, 30.0]}
    assert [row["blas"] for row in report["rows"]] == ["ours", "ours", "ours", "wheel"]
    assert "BLAS 'wheel', round 1 of 1" in result.err


@pytest.mark.usefixtures("scripted")
def test_table(cli: Cli) -> None:
    result = cli("bench", "blas")
    assert result.code == 0
    assert "blas.prefill512_speedup  30" in result.out


def test_a_run_that_fails_is_an_error() -> None:
    with pytest.raises(EdgeCortexError, match="unknown model 'nope'"):
        blas.measure("nope", print)


def test_no_round_finds_what_an_earlier_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    answer = {"num_prompt_tokens": 512, "ttft_s": 1.0, "prefill_tokens_per_s": 512.0}
    monkeypatch.setattr(blas, "answer", lambda *args, **_: asked.append(args) or answer)
    blas.measure("m", print)
    assert len(asked) == 5
    assert all("--no-cache" in args for args in asked)


def test_a_prompt_of_another_length_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_run", lambda *_: {"num_prompt_tokens": 30})
    with pytest.raises(EdgeCortexError, match="512 tokens, got 30"):
        blas.measure("some", print)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the ttft, decode and quality benchmarks were asked to measure; none of them runs."""
    found: list[dict[str, Any]] = []

    def scripted(name: str, **settings: Any) -> dict[str, Any]:
        settings.pop("progress")("measuring")
        found.append(settings)
        return made(name)

    for module in (ttft, decode, quality):
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(module, "measure", partial(scripted, name))
    return found


def test_ttft(cli: Cli, asked: list[dict[str, Any]]) -> None:
    result = cli("bench", "ttft", "--contexts", "2048,512", "--repeat", "2", "--json")
    assert (result.code, json.loads(result.out)["benchmark"]) == (0, "ttft")
    assert result.err == "measuring\n"
    assert asked == [{"model": "smollm2-135m", "contexts": [512, 2048], "repeat": 2}]


def test_ttft_with_a_gguf_file(cli: Cli, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    refused = cli("bench", "ttft", "--gguf", str(path))
    assert (refused.code, "expected the model's GGUF file" in refused.err) == (1, True)
    path.write_text("")
    assert cli("bench", "ttft", "--gguf", str(path)).code == 0
    assert [settings["gguf"] for settings in asked] == [path]


def test_the_time_that_is_left_is_told_on_a_terminal(
    cli: Cli, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert "about 20 min left" in cli("bench", "ttft").err
    assert "about 2 min left" in cli("bench", "ttft", "--quick").err
    other = cli("bench", "ttft", "--contexts", "64").err
    assert "measuring" in other
    assert "min left" not in other
    assert len(asked) == 3


def test_quick_and_what_goes_before_it(cli: Cli, asked: list[dict[str, Any]]) -> None:
    cli("bench", "decode", "--quick")
    cli("bench", "decode", "--quick", "--repeat", "5")
    cli("bench", "quality")
    cli("bench", "quality", "--quick")
    cli("bench", "quality", "--quick", "--windows", "3", "--long-windows", "1")
    cli("bench", "quality", "--long-windows", "0")
    assert [settings.get("repeat") for settings in asked[:2]] == [1, 5]
    assert [settings["windows"] for settings in asked[2:]] == [
        {1024: 16, 4096: 4},
        {512: 1},
        {1024: 3, 4096: 1},
        {1024: 16},
    ]


@pytest.mark.parametrize("contexts", ["", "0", "512,", "many", "512;1024"])
def test_sizes_that_are_none(cli: Cli, contexts: str) -> None:
    result = cli("bench", "ttft", "--contexts", contexts)
    assert (result.code, "--contexts must be numbers" in result.err) == (2, True)


def test_what_cannot_be_drawn_is_refused_before_measuring(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "must end in .svg or .png" in cli("bench", "ttft", "--plot", "times.pdf").err
    assert "no folder" in cli("bench", "ttft", "--plot", str(tmp_path / "no" / "a.png")).err
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    missing = cli("bench", "ttft", "--plot", str(tmp_path / "a.svg"))
    assert (missing.code, 'pip install "edgecortex[bench]"' in missing.err) == (1, True)


def test_sizes_of_benchmarks_that_have_a_plan(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []
    gguf = tmp_path / "a.gguf"
    gguf.write_text("")

    def scripted(name: str, *args: Any, **more: Any) -> dict[str, Any]:
        asked.append((*args, more) if more else args)
        return made(name)

    def council_measure(model: str, progress: Any, *, plan: council.Plan) -> dict[str, Any]:
        return scripted("council", plan)

    monkeypatch.setattr(council, "measure", council_measure)
    monkeypatch.setattr(compare, "compare", partial(scripted, "compare"))
    monkeypatch.setattr(roofline, "roofline", partial(scripted, "roofline"))
    for line in (
        "council --agents 100,4",
        "council --quick",
        f"compare --quick --contexts 64 --repeat 2 --gguf {gguf}",
        "compare",
        "roofline --contexts 64,128",
        "roofline --contexts 64 --quick",
    ):
        assert cli("bench", *line.split()).code == 0
    (plan,), (quick,), mine, full, sizes, few = asked
    assert (plan.resident, plan.busy, plan.rounds) == ((4, 100), (4, 100), council.Plan().rounds)
    assert quick == council.QUICK
    assert (mine[1].contexts, mine[1].rounds, mine[3]) == ([64], 2, gguf)
    assert mine[1].agents == compare.QUICK.agents
    assert (full[1], full[3]) == (compare.FULL, None)
    assert (sizes[1], sizes[-1]) == ([64, 128], {"restores": True})
    assert (few[1], few[-1]) == ([64], {"restores": False})
    refused = cli("bench", "council", "--agents", "some")
    assert (refused.code, "--agents must be numbers" in refused.err) == (2, True)
    refused = cli("bench", "compare", "--gguf", str(tmp_path / "no.gguf"))
    assert (refused.code, "expected the model's GGUF file" in refused.err) == (1, True)


@pytest.mark.parametrize(
    ("options", "num_lengths", "stored"), [((), 4, "4,096"), (("--quick",), 0, "2,048")]
)
def test_memory(
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    num_lengths: int,
    stored: str,
) -> None:
    """With the processes that measure scripted."""
    monkeypatch.setattr(memory.side, "run", _memory_job)
    result = cli("bench", "memory", *options)
    assert ("memory.gemma3_12b_agents_8k  30" in result.out) == (num_lengths > 0)
    assert "memory.shared_prefix_disk_pct  51" in result.out
    assert "memory.disk_bits_per_value  4.6" in result.out
    assert result.out.count("mlx-lm fp16") == num_lengths
    assert f"storing 50 agents of {stored} tokens" in result.err


def _memory_job(module: str, job: str, **arguments: Any) -> Any:
    if job == "fill":
        return {"agents": 30, "agent_bytes": 1, "used_bytes": 30}
    return [
        {"what": "blocks on disk", "bits_per_value": 4.6},
        {"what": "one prefix on disk", "pct_of_separate": 51},
    ]


# Devices and folders.


def test_a_device_that_is_not_there(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    result = cli("bench", "decode", "--device", "tpu")
    assert (result.code, "no device 'tpu', expected cpu or gpu" in result.err) == (2, True)
    monkeypatch.setattr("mlx.core.is_available", lambda device: False)
    result = cli("bench", "decode", "--device", "gpu")
    assert (result.code, "MLX has no gpu on this machine" in result.err) == (2, True)


def test_a_device_is_that_of_processes_too(
    cli: Cli, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECORTEX_BENCH_DEVICE", "")
    assert cli("bench", "decode", "--device", "cpu").code == 0
    assert os.environ["EDGECORTEX_BENCH_DEVICE"] == "cpu"
    assert len(asked) == 1
    monkeypatch.setenv("EDGECORTEX_BENCH_DEVICE", "tpu")
    with pytest.raises(EdgeCortexError, match="no device 'tpu', expected cpu or gpu"):
        side.run("ttft_ours", "read", files=[], dropped=False)


@pytest.mark.usefixtures("asked")
def test_out(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    result = cli("bench", "ttft", "--out", str(out))
    assert result.code == 0
    assert "ttft.hot_over_step  1.3" in result.out
    names = {path.name for path in out.iterdir()}
    assert names - {"ttft.svg", "ttft.png"} == {"ttft.json", "ttft.md"}
    assert ("ttft.svg" in names) == plot.available()
    assert ("edgecortex[bench]" in result.err) == (not plot.available())


def test_out_that_cannot_be_written_is_told_before_measuring(
    cli: Cli, asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for command in ("ttft", "all"):
        result = cli("bench", command, "--out", str(tmp_path / "file" / "folder"))
        assert (result.code, result.out) == (1, "")
        assert "cannot write in" in result.err
        assert "name another folder with --out" in result.err
    assert asked == []


def test_a_model_that_is_none_is_told_before_measuring(
    cli: Cli, asked: list[dict[str, Any]]
) -> None:
    for command in ("ttft", "all"):
        result = cli("bench", command, "--model", "nope")
        assert (result.code, "unknown model 'nope'" in result.err) == (1, True)
    assert asked == []


# All, report and diff.


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Only ttft and blas are measured, by processes that write what is made up; those that are
    named here fail."""
    failing: list[str] = []

    def command(record: suite.Record, name: str) -> list[str]:
        path = record.folder / f"{name}.json"
        script = f"open({str(path)!r}, 'w').write({json.dumps(made(name))!r})"
        return [sys.executable, "-c", "raise SystemExit('no')" if name in failing else script]

    monkeypatch.setattr(suite, "names", lambda quick: ["ttft", "blas"])
    monkeypatch.setattr(suite, "command", command)
    return failing


def test_all(cli: Cli, two: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    two.append("blas")
    result = cli("bench", "all", "--quick", "--out", str(out))
    assert result.code == 1
    assert "ttft.hot_over_step  1.3  ≤ 1.2 not reached" in result.out
    assert "blas.prefill512_speedup" not in result.out
    assert re.search(r"^[0-9]+:[0-9]{2} left, 1 of 2, ttft$", result.err, re.M)
    assert "blas: failed after 0:0" in result.err
    assert "## ttft: " in (out / "REPORT.md").read_text("utf-8")
    two.clear()
    result = cli("bench", "all", "--quick", "--out", str(out), "--json")
    assert result.code == 0
    assert "ttft: complete since an earlier start" in result.err
    report = json.loads(result.out)
    assert set(report["figures"]) == {*made("ttft")["figures"], *made("blas")["figures"]}
    assert "## blas: " in (out / "REPORT.md").read_text("utf-8")
    refused = cli("bench", "all", "--out", str(out))
    assert (refused.code, "has a run with quick True, not False" in refused.err) == (2, True)
    assert cli("bench", "all", "--out", str(out), "--again").code == 0


@pytest.mark.usefixtures("two")
def test_all_with_a_gguf_file(cli: Cli, tmp_path: Path) -> None:
    path, out = tmp_path / "a.gguf", tmp_path / "out"
    refused = cli("bench", "all", "--gguf", str(path), "--out", str(out))
    assert (refused.code, "expected the model's GGUF file" in refused.err) == (1, True)
    path.write_text("")
    assert cli("bench", "all", "--gguf", str(path), "--out", str(out)).code == 0
    assert json.loads((out / suite.RECORD).read_text())["settings"]["gguf"] == str(path)


def test_all_without_a_folder(cli: Cli, two: list[str]) -> None:
    result = cli("bench", "all")
    assert (result.code, "ttft.hot_over_step  1.3" in result.out) == (0, True)
    assert "REPORT.md" not in result.err
    refused = cli("bench", "all", "--again")
    assert (refused.code, "name it with --out" in refused.err) == (2, True)
    two += ["ttft", "blas"]
    assert cli("bench", "all").code == 1


def test_all_that_is_stopped(
    cli: Cli, two: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    cli("bench", "all", "--out", str(tmp_path))
    (tmp_path / "blas.json").unlink()
    monkeypatch.setattr(suite, "run", stopped)
    monkeypatch.setattr("edgecortex.cli.main.os._exit", sys.exit)
    result = cli("bench", "all", "--out", str(tmp_path))
    assert result.code == 130
    assert "stopped; 1 of 2 are complete" in result.err


def test_report(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    (tmp_path / "a.json").write_text(json.dumps(made("ttft")))
    readme = tmp_path / "README.md"
    readme.write_text("<!-- bench:begin -->\n<!-- bench:end -->\n")
    result = cli("bench", "report", str(tmp_path), "--readme", str(readme))
    assert result.code == 0
    assert result.out == f"{tmp_path / 'REPORT.md'}\n{readme}\n"
    assert 'without matplotlib: pip install "edgecortex[bench]"' in result.err
    assert "`ttft.hot_over_step`" in readme.read_text("utf-8")
    readme.write_text("")
    result = cli("bench", "report", str(tmp_path), "--readme", str(readme))
    assert (result.code, "expected a line <!-- bench:begin -->" in result.err) == (2, True)
    result = cli("bench", "report", str(tmp_path / "none"))
    assert (result.code, "cannot read the folder" in result.err) == (1, True)


def test_diff(cli: Cli, tmp_path: Path) -> None:
    for name in ("ttft", "decode"):
        (tmp_path / f"{name}.json").write_text(json.dumps(made(name)))
    same = cli("bench", "diff", str(tmp_path / "ttft.json"), str(tmp_path))
    assert same.code == 0
    assert same.out.count("the same") == 2
    assert f"only decode some-model in {tmp_path}" in same.out
    other = cli("bench", "diff", *(str(tmp_path / f"{n}.json") for n in ("ttft", "decode")))
    assert other.code == 2
    assert "expected two results of the same benchmark, got ttft in" in other.err
    as_json = cli("bench", "diff", str(tmp_path), str(tmp_path), "--json")
    assert len(json.loads(as_json.out)["figures"]) == 3
