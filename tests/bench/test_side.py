"""Folders of benchmarks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgecortex.bench import side

KILLED = """
import os
from edgecortex.bench import side
folder = side.work_folder()
open(f"{folder.name}/kv", "w").write("many bytes")
print(folder.name, flush=True)
os.kill(os.getpid(), 9)
"""


def test_what_a_killed_benchmark_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECORTEX_HOME", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True)
    left = Path(done.stdout.strip())
    assert (left / "kv").is_file()
    others = ["bench-abcdefgh", "bench-1-abcdefgh", f"bench-{os.getppid()}-x", "bench-x-1", "store"]
    for name in others:
        (tmp_path / name).mkdir()
    with side.work_folder() as one, side.work_folder() as two:
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {*others, Path(one).name, Path(two).name}
    assert {path.name for path in tmp_path.iterdir()} == set(others)
