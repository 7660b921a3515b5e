"""Folders of benchmarks."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgecortex.bench import side

RUNNING = """
import sys
from edgecortex.bench import side
with side.work_folder() as folder:
    open(f"{folder}/kv", "w").write("many bytes")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_benchmark_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else: not what one that still runs has, nor what has such a name only."""
    monkeypatch.setenv("EDGECORTEX_HOME", str(tmp_path))
    command = [sys.executable, "-c", RUNNING]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        left = Path(process.stdout.readline().strip())
        others = [".bench-work-abcdefgh", "bench-2026-baseline", "store"]
        for name in others:
            (tmp_path / name).mkdir()
        with side.work_folder() as one, side.work_folder() as two:
            names = {path.name for path in tmp_path.iterdir()}
            assert names == {*others, left.name, Path(one).name, Path(two).name}
        os.kill(process.pid, signal.SIGKILL)
    assert (left / "kv").is_file()
    with side.work_folder() as one:
        assert {path.name for path in tmp_path.iterdir()} == {*others, Path(one).name}
    assert {path.name for path in tmp_path.iterdir()} == set(others)
