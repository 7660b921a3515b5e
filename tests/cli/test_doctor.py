"""`edgecortex doctor`: findings, problems and their remedies."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgecortex import doctor
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
