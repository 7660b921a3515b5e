"""The part of the council benchmark about one thought: a River that is speaking, and a Stream that
is given a task meanwhile, from a look at the River's context to the thought's injection."""

import itertools
import time
from dataclasses import dataclass, field
from typing import Any

from edgecortex.agent import Agent
from edgecortex.bench.council_river import POLL_S, QUESTION, open_engine, restored, tasks
from edgecortex.bench.council_speed import MOST, hold
from edgecortex.bench.report import Row, median
from edgecortex.bench.side import serve
from edgecortex.config import SamplingParams
from edgecortex.errors import EdgeCortexError
from edgecortex.warp.cortex import CortexConfig


@dataclass
class Clock:
    """Stands before an answer's detokenizer, and takes down when each token came."""

    inner: Any
    stamps: list[float] = field(default_factory=list)
    over: bool = False

    def wait(self, num_tokens: int) -> None:
        """Until there are more tokens than that.

        Raises:
            EdgeCortexError: the answer has come to its end.
        """
        while len(self.stamps) <= num_tokens:
            if self.over:
                raise EdgeCortexError(
                    "expected the River to go on speaking, got an answer that has ended; "
                    "measure fewer rounds"
                )
            time.sleep(POLL_S)

    def add_token(self, token: int) -> None:
        self.stamps.append(time.perf_counter())
        self.inner.add_token(token)

    def finalize(self) -> None:
        self.over = True
        self.inner.finalize()

    @property
    def last_segment(self) -> str:
        return str(self.inner.last_segment)

    def gaps(self, start: int, stop: int) -> list[float]:
        """Seconds between the tokens from number `start` to `stop`."""
        return [b - a for a, b in itertools.pairwise(self.stamps[start : stop + 1])]


def whole(path: str, store: str, rounds: int, tokens: int, said: int) -> list[Row]:
    """In every round the River says `tokens` alone, and goes on while a thought of `said` tokens
    is made, for which landmarks are collected anew. The gate lets every thought through.

    Raises:
        EdgeCortexError: the River's answer has come to its end.
    """
    with open_engine(path, store) as engine:
        river = restored(engine)
        river.think_with(CortexConfig(threshold=None, sampling=SamplingParams(max_tokens=said)))
        river.chat(QUESTION, SamplingParams(max_tokens=MOST))
        main = engine.call(lambda: hold(engine.core, river))
        clock = main.detokenizer = Clock(main.detokenizer)
        engine.call(lambda: engine.core.scheduler.let_go(river))
        return [_round(river, clock, *each, tokens) for each in enumerate(tasks(rounds), 1)]


def _round(river: Agent, clock: Clock, number: int, task: str, tokens: int) -> Row:
    cortex = river.think_with()
    river.engine.call(cortex.synapse.forget)
    first = len(clock.stamps)
    clock.wait(first + tokens)
    spoken, start = len(clock.stamps), time.perf_counter()
    stream = river.spawn(task)
    thought = stream.result()
    decided = time.perf_counter() - start
    clock.wait(len(clock.stamps))
    alone = clock.gaps(first, spoken - 1)
    beside = clock.gaps(spoken - 1, len(clock.stamps))
    assert stream.generation
    return {
        "what": "thought",
        "round": number,
        "status": thought.status,
        "reason": thought.reason,
        "gap": max(beside) / median(alone),
        "alone_gap_s": median(alone),
        "longest_gap_s": max(beside),
        "river_share": (len(beside) / sum(beside)) / (len(alone) / sum(alone)),
        "begun_s": stream.generation.started - start,
        "inject_s": thought.inject_s,
        "decided_s": decided,
    }


if __name__ == "__main__":
    serve({"whole": whole})
