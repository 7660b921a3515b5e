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
from edgecortex.store.sessions import Session
from tests.store.blocks import CHAIN, check_reads, keys, opened, stored, tokens

NUM_CHAINS = 40
SCALE = 40
MAX_BYTES = 120_000  # some sixteen entries of this scale


def session_of(seed: int, number: int, name: str = "s") -> Session:
    """A session whose context shares its beginning with some others of this seed."""
    rng = random.Random(seed * 1000 + number)
    ids = tokens(seed, rng.randint(0, 40)) + tokens(number, rng.randint(1, 40))
    return Session(
        name=name,
        model="m",
        fingerprint="f",
        kv_format="kv4",
        root=CHAIN.root,
        num_sinks=CHAIN.num_sinks,
        block=CHAIN.block,
        num_windows=rng.randint(0, 2),
        num_kv_tokens=len(ids),
        system=None,
        messages=[{"role": "user", "content": str(number)}],
        token_ids=ids,
        rendered=str(number),
        created=0.0,
        updated=0.0,
    )


def chain_of(seed: int, number: int) -> list[Entry]:
    """What such a session is stored in."""
    return session_of(seed, number).entries()


def work(folder: str, session: str, seed: int, first: int, rounds: int) -> None:
    """Keeps one session after the other under one name; the newest is then there whatever
    others do."""
    with opened(Path(folder), MAX_BYTES) as store:
        store.tidy()
        for number in range(first, first + rounds):
            kept = session_of(seed, number % NUM_CHAINS, session)
            entries = kept.entries()
            store.index.pin(session, keys(entries))
            store.put(stored(entries, SCALE))
            store.sessions.write(kept)
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
