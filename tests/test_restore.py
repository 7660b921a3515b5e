"""A saved agent goes on in another process as if nothing had happened."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.continuing import MORE, THINKER

BLOCKS = [1, 3, 4, 5, 67, 68, 69, 131, 132, 133, 196, 580, 1095]  # 4 sinks, then blocks of 64
WINDOW = [5, 68, 131, 511, 512, 515, 516, 517, 580, 581, 1028, 1093]  # and 512 seen at most


def run(mode: str, model: Path, store: Path, lengths: list[int]) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.continuing", mode, str(model), str(store)]
    done = subprocess.run(
        [*command, *map(str, lengths)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize(("model", "lengths"), [("smollm2", BLOCKS), ("gemma3", WINDOW)])
def test_a_new_process_goes_on_as_the_old_one(
    model: str, lengths: list[int], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(model)
    saved = run("save", folder, tmp_path, lengths)
    restored = run("restore", folder, tmp_path, lengths)
    for length in lengths:
        was, now = saved[f"at-{length}"], restored[f"at-{length}"]
        assert was["agent"]["num_known"] == length < was["child"]["num_known"]
        for who in ("agent", "child"):
            same(was[who], now[who])
            assert now[who]["num_disk_tokens"] == now[who]["num_known"], (length, who)
            assert now[who]["num_read_tokens"] == MORE, (length, who)
    was, now = saved[THINKER], restored[THINKER]
    same(was, now)
    assert len(now["thoughts"]) == 1
    assert now["num_disk_tokens"] == now["num_known"] - 1 > 512  # the newest token is not fed yet


def same(was: dict[str, Any], now: dict[str, Any]) -> None:
    """What came from disk aside, the one went on as the other."""
    assert now | {"num_disk_tokens": 0} == was | {"num_disk_tokens": 0}
