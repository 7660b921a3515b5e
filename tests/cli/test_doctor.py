"""`edgecortex doctor`: findings, problems and their remedies."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgecortex import doctor, selftest
from edgecortex.plain import Gap
from tests.cli.conftest import Cli

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="BLAS is chosen on Linux only")


def _doctor(**environment: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "edgecortex.cli.main", "doctor", "--json"]
    env = {k: v for k, v in os.environ.items() if k != "EDGECORTEX_BLAS"} | environment
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout)


@LINUX
def test_a_sound_machine(home: Path) -> None:
    code, found = _doctor()
    assert (code, found["problems"]) == (0, [])
    assert found["blas"]["gflops"] > 0
    assert os.path.samefile(found["blas"]["serving"], found["blas"]["opened"])
    assert found["folders"]["models"] == {"path": str(home / "models"), "num_bytes": None}
    assert not home.exists()


@LINUX
@pytest.mark.parametrize(
    ("choice", "what", "remedy"),
    [
        ("off", "MLX runs on its own slow BLAS", "unset it"),
        ("/nowhere/libopenblas.so", "cannot open /nowhere", "unset EDGECORTEX_BLAS"),
    ],
)
def test_a_slow_blas(choice: str, what: str, remedy: str) -> None:
    code, found = _doctor(EDGECORTEX_BLAS=choice)
    assert code == 1
    assert found["blas"]["opened"] is None
    assert "openblas" not in found["blas"]["serving"]
    (problem,) = found["problems"]
    assert what in problem["what"]
    assert problem["remedy"] == remedy


def test_folders_and_their_problems(cli: Cli, home: Path) -> None:
    (home / "store").mkdir(parents=True)
    (home / "store" / "block").write_bytes(bytes(2_000_000))
    (home / "store").chmod(0o755)
    result = cli("doctor")
    assert result.code == 1
    assert f"{'store':<16}{home / 'store'}, 2.0 MB" in result.out
    assert f"PROBLEM: others can read {home / 'store'}" in result.out
    assert f"remedy: chmod -R go-rwx {home / 'store'}" in result.out


def test_a_home_that_is_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("EDGECORTEX_HOME", str(file))
    assert [p.what for p in doctor.examine().problems] == [f"{file} cannot be written"]


def test_mlx_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    found = doctor.examine()
    assert (found.device, found.blas) == (None, None)
    assert found.problems[0].what.startswith("mlx cannot be imported")


# The self-test, its checks scripted: they have tests of their own.


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    made = {"one": lambda: Gap(2e-7, 1e-6), "two": lambda: Gap(0.0, 0.0)}
    monkeypatch.setattr(selftest, "GROUPS", {"group": lambda: made})
    return made


def test_a_device_that_computes_right(cli: Cli, checks: dict[str, Any]) -> None:
    result = cli("doctor", "--selftest", "--device", "cpu")
    assert (result.code, result.err) == (0, "")
    device, _, header, *lines, _, verdict = result.out.splitlines()
    assert device.startswith("CPU (")
    assert header.split() == ["group", "check", "error", "at", "most"]
    assert [line.split() for line in lines] == [
        ["group", "one", "2e-07", "1e-06", "ok"],
        ["group", "two", "0", "0", "ok"],
    ]
    assert verdict.startswith("all 2 checks passed, in ")


def test_a_device_that_does_not(cli: Cli, checks: dict[str, Any]) -> None:
    checks["three"] = lambda: Gap(0.5, 0.25, "decode")
    checks["four"] = lambda: 1 / 0
    result = cli("doctor", "--selftest")
    assert result.code == 1
    assert "0.5     0.25  FAILED\n  decode: expected an error up to 0.25, got 0.5\n" in result.out
    assert "-        -  FAILED\n  ZeroDivisionError: division by zero\n" in result.out
    assert "2 of 4 checks FAILED" in result.out


def test_the_selftest_as_json(cli: Cli, checks: dict[str, Any]) -> None:
    checks["three"] = lambda: Gap(float("inf"), 0.25, "decode")
    result = cli("doctor", "--selftest", "--json")
    found = json.loads(result.out, parse_constant=lambda name: pytest.fail(name))
    assert (result.code, found["num_failed"]) == (1, 1)
    assert list(found) == ["device", "versions", "num_failed", "seconds", "checks"]
    assert found["versions"] == doctor.versions()
    facts = ["group", "name", "passed", "error", "tolerance", "where", "message"]
    assert [[check[fact] for fact in facts] for check in found["checks"]] == [
        ["group", "one", True, 2e-7, 1e-6, "", ""],
        ["group", "two", True, 0.0, 0.0, "", ""],
        [
            *("group", "three", False, None, 0.25, "decode"),
            "decode: expected an error up to 0.25, got inf",
        ],
    ]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--device", "cpu"), "--device says where --selftest runs"),
        (("--selftest", "--device", "tpu"), "'tpu' is not one of"),
    ],
)
def test_a_device_that_cannot_be_meant(cli: Cli, args: tuple[str, ...], said: str) -> None:
    result = cli("doctor", *args)
    assert (result.code, result.out) == (2, "")
    assert said in result.err
