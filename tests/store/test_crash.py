"""Writers that are killed, and writers that share a store."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgecortex.store.cache import PersistentKVCache
from tests.store.blocks import check_agreement, check_reads, keys, opened, pins, stored
from tests.store.writer import MAX_BYTES, NUM_CHAINS, SCALE, chain_of, session_of

ROOT = Path(__file__).parents[2]
NUM_STORES, NUM_KILLS = 20, 11  # 220 in all


class Starter:
    """Starts writers one at a time, and tells what they said."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "tests.store.writer"]
        env = {**os.environ, "EDGECORTEX_BLAS": "off", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, cwd=ROOT, env=env, text=True
        )

    def start(self, *work: object) -> int:
        """Gives the writer's process id, as soon as there is one."""
        print(json.dumps(work), file=self.process.stdin, flush=True)
        return self._next()[1]

    def durable(self) -> int:
        """Waits until the writer says that something is durable."""
        word, number = self._next()
        assert word == "durable"
        return number

    def ended(self) -> tuple[list[int], int]:
        """Waits for its end: what it said to be durable, and its status."""
        durable: list[int] = []
        while True:
            word, number = self._next()
            if word == "ended":
                return durable, number
            durable.append(number)

    def _next(self) -> tuple[str, int]:
        assert self.process.stdout is not None
        word, number = self.process.stdout.readline().split()
        return word, int(number)

    def close(self) -> None:
        self.process.communicate()


@contextlib.contextmanager
def starter() -> Iterator[Starter]:
    found = Starter()
    try:
        yield found
    finally:
        found.close()


def kill_one(
    starter: Starter, folder: Path, seed: int, first: int, rng: random.Random
) -> list[int]:
    """Kills a writer early on, or some time after it has made something durable."""
    pid = starter.start(str(folder), "s", seed, first, 10_000)
    before = [starter.durable()] if rng.random() < 0.5 else []
    time.sleep(rng.random() * 0.06)
    os.kill(pid, signal.SIGKILL)
    after, status = starter.ended()
    assert status == -signal.SIGKILL  # it had not ended by itself, with an error
    return before + after


def check_session(store: PersistentKVCache, seed: int, number: int) -> int:
    """The session that was said to be durable last is there and complete, or the next one in its
    place; gives the number of the one that is."""
    found = store.sessions.load("s")
    last, following = (session_of(seed, n % NUM_CHAINS) for n in (number, number + 1))
    assert found in (last, following)
    assert pins(store, "s") >= set(keys(found.entries()))
    check_reads(store, found.entries(), SCALE)
    assert store.verify_session("s")["num_stored"] == len(found.token_ids)
    return number + (found != last)


def check_after_kill(folder: Path, seed: int, number: int | None) -> tuple[int | None, int]:
    """Checks all that must hold of the store; gives the number of the session that is there, and
    how many files were left half-written."""
    with opened(folder, MAX_BYTES) as store:
        num_left = len(os.listdir(store.temporary))
        assert store.verify().damaged == []
        assert os.listdir(store.temporary) == []
        assert os.listdir(store.quarantine) == []
        check_agreement(store)
        if number is not None:
            number = check_session(store, seed, number)
    return number, num_left


def test_a_killed_writer_leaves_a_clean_store_with_all_that_was_durable(tmp_path: Path) -> None:
    rng = random.Random(0)
    num_left = num_durable = 0
    with starter() as writers:
        for seed in range(NUM_STORES):
            folder, number = tmp_path / str(seed), None
            for _ in range(NUM_KILLS):
                durable = kill_one(writers, folder, seed, number or 0, rng)
                number = durable[-1] if durable else number
                number, left = check_after_kill(folder, seed, number)
                num_durable += len(durable)
                num_left += left
    assert num_left  # or no kill came while a file was being written
    assert num_durable


@pytest.mark.parametrize("round", range(3))
def test_two_writers_with_overlapping_chains_do_not_harm_each_other(
    tmp_path: Path, round: int
) -> None:
    with starter() as one, starter() as other:
        one.start(str(tmp_path), "one", round, 0, NUM_CHAINS)
        other.start(str(tmp_path), "other", round, NUM_CHAINS // 2, NUM_CHAINS)
        assert one.ended() == ([*range(NUM_CHAINS)], 0)
        assert other.ended() == ([*range(NUM_CHAINS // 2, NUM_CHAINS * 3 // 2)], 0)
    with opened(tmp_path) as store:
        check_agreement(store)
        assert store.verify().damaged == []
        assert os.listdir(store.quarantine) == os.listdir(store.temporary) == []
        check_reads(store, chain_of(round, NUM_CHAINS - 1), SCALE)
        check_reads(store, chain_of(round, NUM_CHAINS // 2 - 1), SCALE)


def test_threads_share_a_store(tmp_path: Path) -> None:
    def work(store: PersistentKVCache, thread: int) -> None:
        for number in range(thread, NUM_CHAINS, 2):
            entries = chain_of(7, number)
            store.index.pin(str(thread), keys(entries), only=True)
            store.put(stored(entries, SCALE))
            check_reads(store, entries, SCALE)

    with opened(tmp_path, MAX_BYTES) as store:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, [store] * 4, range(4)))
        check_agreement(store)
        assert store.verify().damaged == []
        assert os.listdir(store.quarantine) == os.listdir(store.temporary) == []


def test_a_new_store_can_be_opened_by_several_at_once(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(starter()) for _ in range(4)]
        for i in range(40):
            for writer in writers:
                writer.start(str(tmp_path / str(i)), "s", 1, 0, 0)
            assert [writer.ended() for writer in writers] == [([], 0)] * 4
