"""Keeps sessions of more agents than fit in memory until it is killed.

`python -m tests.keeping FOLDER SEED` goes on with what a killed one has left there. Lines of
stdout: `kept NAME NUMBER` once a session up to that question is durable, `lost NAME` if one is
not, and `spilled` when an agent has to leave memory.
"""

import itertools
import os
import random
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from edgecortex import Agent, Engine
from edgecortex.errors import StoreError
from edgecortex.kv.context import Context
from tests import scripted
from tests.scripted import limit

NAMES = [f"agent-{i}" for i in range(6)]
MOST = 6  # questions in a conversation
BUDGET = 2_500_000  # bytes: of six agents about three fit


@contextmanager
def opened(folder: Path, **config: Any) -> Iterator[Engine]:
    """An engine on the store in a folder, which lets go of whatever no session holds."""
    with scripted.engine(folder=folder, store_max_bytes=0, **config) as engine:
        yield engine


def notes(name: str) -> str:
    """What an agent is told first: some blocks, the first ones of all agents alike."""
    return "The river is wide and slow, and the boats are late again. " * 4 + f"I am {name}. " * 9


def question(name: str, number: int) -> str:
    more = random.Random(number).randint(1, 9)
    return f"Question {number} to {name}: " + "and what then? " * more


def asked(agent: Agent) -> list[str]:
    return [message["content"] for message in agent.messages if message["role"] == "user"]


def newest(agent: Agent) -> int:
    """The number of the newest question; 0 before the first."""
    questions = asked(agent)
    return int(questions[-1].split()[1]) if questions else 0


def agents(engine: Engine) -> dict[str, Agent]:
    """Each as it was kept, or a new one."""
    found = {}
    for name in NAMES:
        try:
            found[name], _ = engine.restore(name)
        except StoreError:
            found[name] = engine.agent(name, system=notes(name))
    return found


def main(folder: str, seed: str) -> None:
    with opened(Path(folder), kv_budget_bytes=BUDGET) as engine:
        at, rng = agents(engine), random.Random(int(seed))
        spill = engine.core.pool.on_evict

        def on_evict(context: Context) -> None:
            spill(context)
            say("spilled")

        engine.core.pool.on_evict = on_evict
        for _ in itertools.count():
            name = rng.choice(NAMES)
            agent = at[name]
            number = 1 + newest(agent)
            if len(asked(agent)) >= MOST:
                agent.reset()
            agent.chat(question(name, number), limit(3)).text()
            agent.save(name).add_done_callback(partial(tell, name, number))


def tell(name: str, number: int, saved: "Future[int]") -> None:
    failed = saved.exception()
    say(f"lost {name}: {failed!r}" if failed else f"kept {name} {number}")


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
