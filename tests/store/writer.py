"""A process that writes to a store until it is killed, and one that starts such processes.

`python -m tests.store.writer` forks a writer for each line of stdin (a JSON array of `work`'s
arguments): so one costs no imports, and can be killed from its first step on. Lines of stdout:
`started PID`, `durable N` of the writer, `ended STATUS`.
"""

import json
import os
import random
import sys
from pathlib import Path

from edgecortex.store.entry import Entry
from tests.store.blocks import check_reads, entries_of, keys, opened, stored, tokens

NUM_CHAINS = 40
SCALE = 40
MAX_BYTES = 120_000  # some sixteen entries of this scale


def chain_of(seed: int, number: int) -> list[Entry]:
    """A context that shares its beginning with some others of this seed."""
    rng = random.Random(seed * 1000 + number)
    ids = tokens(seed, rng.randint(0, 40)) + tokens(number, rng.randint(1, 40))
    return entries_of(ids, num_windows=rng.randint(0, 2))


def work(folder: str, session: str, seed: int, first: int, rounds: int) -> None:
    """Stores chains and pins the newest, which is then there whatever others do."""
    with opened(Path(folder), MAX_BYTES) as store:
        store.tidy()
        for number in range(first, first + rounds):
            entries = chain_of(seed, number % NUM_CHAINS)
            store.index.pin(session, keys(entries))
            store.put(stored(entries, SCALE))
            store.index.pin(session, keys(entries), only=True)
            say("durable", number)
            if number % 3 == 0:
                store.shrink(0)
            check_reads(store, entries, SCALE)


def say(word: str, number: int) -> None:
    os.write(1, f"{word} {number}\n".encode())


def run(line: str) -> int:
    """Does one line's work in a process of its own; gives its status."""
    if pid := os.fork():
        say("started", pid)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        work(*json.loads(line))
        status = 0
    finally:
        if status:
            sys.excepthook(*sys.exc_info())
        os._exit(status)


if __name__ == "__main__":
    for line in sys.stdin:
        say("ended", run(line))
