"""An engine that is killed while it saves agents and lets go of others."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from edgecortex import Engine
from tests import scripted
from tests.keeping import NAMES, asked, newest, notes, opened, question
from tests.scripted import logits_after

ROOT = Path(__file__).parents[1]
NUM_KILLS = 12


def killed(folder: Path, seed: int, rng: random.Random) -> list[list[str]]:
    """What an engine said until it was killed, some time after it said something."""
    env = {**os.environ, "EDGECORTEX_BLAS": "off", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.keeping", str(folder), str(seed)],
        stdout=subprocess.PIPE, cwd=ROOT, env=env, text=True,
    )  # fmt: skip
    assert process.stdout
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    try:
        said = [process.stdout.readline()]
        time.sleep(rng.random())
    finally:
        watchdog.cancel()
        process.kill()
    said += process.communicate()[0].splitlines()
    assert process.returncode == -signal.SIGKILL  # it had not ended by itself, with an error
    return [line.split() for line in said]


def check(engine: Engine, other: Engine, name: str, least: int) -> int:
    """An agent is there whole, as it was kept at that question or later on, and its KV is what
    another engine reads. The number of its newest question."""
    agent, came = engine.restore(name)
    assert (came.notice, came.num_disk_tokens) == ("", came.num_tokens - 1)
    assert engine.store.verify_session(name)["num_stored"] == agent.num_tokens - 1
    number, questions = newest(agent), asked(agent)
    assert number >= least
    first = number - len(questions) + 1
    assert questions == [question(name, n) for n in range(first, number + 1)]
    twin = other.agent(system=notes(name))
    twin.conversation = agent.conversation.copy()
    logits = []
    for each in (agent, twin):
        each.read()
        logits.append(logits_after(each, "?"))
        each.close()
    np.testing.assert_allclose(*logits, atol=1e-3)
    return number


def test_what_was_durable_is_there_whole_after_a_kill(tmp_path: Path) -> None:
    rng, kept = random.Random(0), dict[str, int]()
    num_spilled = num_left = 0
    with scripted.engine() as other:
        for seed in range(NUM_KILLS):
            for what, *more in killed(tmp_path, seed, rng):
                assert what in ("kept", "spilled"), more
                num_spilled += what == "spilled"
                if what == "kept":
                    kept[more[0]] = int(more[1])
            num_left += len(list((tmp_path / "store" / "temporary").iterdir()))
            with opened(tmp_path) as engine:
                assert engine.store.verify().damaged == []
                assert os.listdir(engine.store.quarantine) == []
                kept = {name: check(engine, other, name, n) for name, n in kept.items()}
    assert set(kept) == set(NAMES)
    assert num_spilled
    assert num_left  # or no kill came while a file was being written
