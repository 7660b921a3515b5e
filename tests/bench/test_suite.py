"""All benchmarks one after the other, with scripted ones in processes of their own."""

import json
import signal
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from edgecortex.bench import quality, suite
from edgecortex.bench.benches import BENCHES
from edgecortex.errors import ConfigError, EdgeCortexError, PromptError
from tests.bench.reports import made

NAMES = ["ttft", "decode", "blas"]
# Does what its first argument says, then writes the second, a report, into the third.
SCRIPT = textwrap.dedent("""
    import os, signal, sys, time
    what, report, path, trace = sys.argv[1:]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    open(trace, "a").write(os.path.basename(path) + " begins\\n")
    try:
        print("measuring, round 1", file=sys.stderr, flush=True)
        if what == "waits":
            time.sleep(60)
    except KeyboardInterrupt:
        open(trace, "a").write("interrupted\\n")
        raise
    if what == "fails":
        sys.exit("edgecortex: too little memory is free\\nfree some")
    if what == "crashes":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "raises":
        raise ValueError("a bug")
    if what != "forgets":
        open(path, "w").write(report)
""")


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """What each benchmark's process does; it is good unless said otherwise."""
    does: dict[str, str] = {}

    def command(record: suite.Record, name: str) -> list[str]:
        path, trace = record.folder / f"{name}.json", tmp_path / "trace"
        report = json.dumps(made(name))
        return [
            sys.executable, "-c", SCRIPT, does.get(name, "is good"), report, str(path), str(trace)
        ]  # fmt: skip

    monkeypatch.setattr(suite, "command", command)
    return does


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


def run(record: suite.Record) -> tuple[dict[str, str], list[str], list[str]]:
    """Returns: problems, and what was said and noted."""
    said: list[str] = []
    noted: list[str] = []
    pace = suite.Pace({n: record.expected_s(n) for n in NAMES if not record.complete(n)})
    return suite.run(record, NAMES, pace, said.append, noted.append), said, noted


def begun(folder: Path) -> list[str]:
    return (folder.parent / "trace").read_text().splitlines()


@pytest.mark.usefixtures("scripted")
def test_all_of_them(folder: Path) -> None:
    record = suite.Record(folder, "m", True, False)
    problems, said, noted = run(record)
    assert problems == {}
    assert said[:2] == ["1 of 3, ttft", "1 of 3, ttft: measuring, round 1"]
    assert [line.partition(" after")[0] for line in noted] == [f"{n}: complete" for n in NAMES]
    assert begun(folder) == [f"{name}.json begins" for name in NAMES]
    whole = suite.summary(record, NAMES, problems)
    assert whole["benchmark"] == "all"
    assert whole["figures"] == {k: v for n in NAMES for k, v in made(n)["figures"].items()}
    assert [row["problem"] for row in whole["rows"]] == [None] * 3
    assert all(row["seconds"] > 0 for row in whole["rows"])


@pytest.mark.parametrize(
    ("what", "problem"),
    [
        ("fails", "too little memory is free\nfree some"),
        ("crashes", "ended by signal 9: measuring, round 1"),
        ("raises", "exit status 1: ValueError: a bug"),
        ("forgets", "cannot read "),
    ],
)
def test_one_that_fails_is_told_and_the_others_go_on(
    folder: Path, scripted: dict[str, str], what: str, problem: str
) -> None:
    scripted["decode"] = what
    record = suite.Record(folder, "m", True, False)
    problems, _, noted = run(record)
    assert list(problems) == ["decode"]
    assert problems["decode"].startswith(problem)
    assert noted[1].startswith("decode: failed after 0:0")
    assert record.complete("ttft")
    assert not record.complete("decode")
    assert record.complete("blas")
    rows = suite.summary(record, NAMES, problems)["rows"]
    assert [row["problem"] for row in rows] == [None, problems["decode"], None]


def test_a_second_start_goes_on(folder: Path, scripted: dict[str, str]) -> None:
    scripted["decode"] = "fails"
    run(suite.Record(folder, "m", True, False))
    del scripted["decode"]
    problems, _, noted = run(suite.Record(folder, "m", True, False))
    assert problems == {}
    assert noted[0] == "ttft: complete since an earlier start"
    assert noted[2] == "blas: complete since an earlier start"
    assert begun(folder)[3:] == ["decode.json begins"]
    (folder / "blas.json").unlink()
    _, _, noted = run(suite.Record(folder, "m", True, False))
    assert begun(folder)[4:] == ["blas.json begins"]


@pytest.mark.usefixtures("scripted")
def test_other_settings_are_refused_or_begin_anew(folder: Path) -> None:
    record = suite.Record(folder, "m", True, False)
    run(record)
    (folder / "ttft.svg").write_text("old")
    with pytest.raises(ConfigError, match=r"has a run with model 'm', not 'other': name another"):
        suite.Record(folder, "other", True, False)
    with pytest.raises(ConfigError, match=r"has a run with quick True, not False"):
        suite.Record(folder, "m", False, False)
    assert (folder / "ttft.json").exists()
    again = suite.Record(folder, "other", True, True)
    assert [path.name for path in folder.iterdir()] == ["run.json"]
    assert again.expected_s("ttft") == record.seconds["ttft"]
    assert not again.complete("ttft")
    suite.Record(folder, "other", True, False)


def test_another_version_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.Record(folder, "m", True, False)
    monkeypatch.setattr(suite.doctor, "versions", lambda: {"edgecortex": "9.9"})
    with pytest.raises(ConfigError, match=r"has a run with versions .*not \{'edgecortex': '9.9'\}"):
        suite.Record(folder, "m", True, False)


def test_results_that_no_run_wrote_are_left_alone(folder: Path) -> None:
    (folder / "ttft.json").write_text("mine")
    with pytest.raises(ConfigError, match=r"results that no `bench all` wrote: ttft; name"):
        suite.Record(folder, "m", True, False)
    assert [path.name for path in folder.iterdir()] == ["ttft.json"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"settings": 1, "seconds": {}}'])
def test_a_damaged_record_is_an_error(folder: Path, text: str) -> None:
    (folder / suite.RECORD).write_text(text)
    with pytest.raises(EdgeCortexError, match=r"run\.json is not what `bench all` wrote"):
        suite.Record(folder, "m", True, False)


def test_ctrl_c_ends_the_process_and_leaves_what_is_complete(
    folder: Path, scripted: dict[str, str]
) -> None:
    scripted["decode"] = "waits"
    record = suite.Record(folder, "m", True, False)
    pace = suite.Pace({name: 1.0 for name in NAMES})

    def say(line: str) -> None:
        if line == "2 of 3, decode: measuring, round 1":
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        suite.run(record, NAMES, pace, say, lambda line: None)
    assert begun(folder) == ["ttft.json begins", "decode.json begins", "interrupted"]
    assert suite.Record(folder, "m", True, False).complete("ttft")
    assert not (folder / "decode.json").exists()
    del scripted["decode"]
    assert run(suite.Record(folder, "m", True, False))[0] == {}
    assert begun(folder)[3:] == ["decode.json begins", "blas.json begins"]


def test_a_real_process_that_fails(folder: Path) -> None:
    record = suite.Record(folder, "nope", True, False)
    problems = suite.run(record, ["quality"], suite.Pace({"quality": 1.0}), print, print)
    assert problems["quality"].startswith("unknown model 'nope'")


def test_the_command_says_all_settings(folder: Path) -> None:
    quick = suite.command(suite.Record(folder, "m", True, False), "ttft")
    assert quick[3:] == ["bench", "ttft", "--model", "m", "--out", str(folder), "--quick"]
    full = suite.command(suite.Record(folder, "m", False, True), "ttft")
    assert full == [*quick[:-1], "--again"]
    gguf = Path("a.gguf")
    record = suite.Record(folder, "m", False, True, gguf)
    for name in ("ttft", "compare"):
        assert suite.command(record, name)[-2:] == ["--gguf", str(gguf.absolute())]
    assert "--gguf" not in suite.command(record, "decode")
    with pytest.raises(ConfigError, match=r"has a run with gguf '.*a\.gguf', not None"):
        suite.Record(folder, "m", False, False)


# The time that is left.


def test_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(suite.time, "monotonic", lambda: now[0])
    pace = suite.Pace({"a": 10.0, "b": 20.0, "c": 30.0})
    assert pace.left_s() == 60
    pace.begin("a")
    now[0] = 4
    assert pace.left_s() == 56
    now[0] = 15
    assert pace.left_s() == 50  # it takes longer than was expected
    now[0] = 20
    assert pace.end() == 20
    assert pace.left_s() == 100  # twice as long as expected, so will the others
    pace.begin("b")
    now[0] = 30
    assert pace.left_s() == 30 + 60


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (125, "2:05"), (3600, "1:00:00")]
)
def test_durations(seconds: float, text: str) -> None:
    assert suite.duration(seconds) == text


def test_quick_is_meant_to_take_ten_minutes() -> None:
    assert sum(BENCHES[name].expected_s(quick=True) for name in suite.names(quick=True)) <= 600
    for bench in BENCHES.values():
        assert bench.expected_s(quick=True) <= bench.expected_s(quick=False)


# One benchmark.


def test_settings_that_are_given_go_before(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def measure(**settings: Any) -> dict[str, Any]:
        asked.append(settings)
        return made("ttft")

    monkeypatch.setattr("edgecortex.bench.ttft.measure", measure)
    given = {"contexts": [64], "repeat": None}
    report = suite.measure("ttft", "m", True, given, print)
    suite.measure("ttft", "m", False, {}, print)
    assert [a["contexts"] for a in asked] == [[64], [512, 1024, 2048, 4096, 8192]]
    assert [a.get("whole") for a in asked] == [False, None]
    assert {a["model"] for a in asked} == {"m"}
    assert report["settings"]["quick"] is True
    assert BENCHES["ttft"].settings["repeat"] == 3


def test_own_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    texts: list[str] = []

    def measure(text: str, **_: Any) -> dict[str, Any]:
        texts.append(text)
        return made("synapse")

    monkeypatch.setattr("edgecortex.bench.synapse.measure", measure)
    mine = tmp_path / "mine.txt"
    mine.write_text("some text")
    assert suite.measure("synapse", "m", True, {"text": mine}, print)["settings"]["text"] == str(
        mine
    )
    report = suite.measure("synapse", "m", True, {"text": None}, print)
    assert report["settings"]["text"] == "Python's language reference"
    assert texts[0] == "some text"
    assert len(texts[1]) > 100_000
    with pytest.raises(EdgeCortexError, match=r"cannot read .*none"):
        suite.measure("synapse", "m", True, {"text": tmp_path / "none"}, print)
    mine.write_bytes(b"\xff")
    with pytest.raises(PromptError, match=r"mine\.txt is not text: expected UTF-8"):
        suite.measure("synapse", "m", True, {"text": mine}, print)


def test_a_real_one(smollm2: Path) -> None:
    """On two short windows."""
    report = suite.measure("quality", str(smollm2), True, {"windows": {128: 2}}, print)
    assert set(report["figures"]) == {"quality.kl", "quality.ppl_pct", "quality.bits_per_value"}
    assert report["settings"]["quick"] is True
    assert {row["tokens"] for row in report["rows"]} == {128}
    assert "kv4" in {row["format"] for row in report["rows"]} <= {*quality.FORMATS, *quality.RIVALS}
