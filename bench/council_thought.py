"""The part of the council benchmark about one thought: a River that is speaking, and a Stream that
is given a task meanwhile, from a look at the River's context to the thought's injection."""

import time
from collections.abc import Callable

from edgecortex.bench.council_river import QUESTION, open_engine, restored, tasks
from edgecortex.bench.council_speed import MOST, Council, hold
from edgecortex.bench.report import Row, median
from edgecortex.bench.side import serve
from edgecortex.config import SamplingParams
from edgecortex.warp.cortex import Cortex, CortexConfig
from edgecortex.warp.stream import Thought


def whole(path: str, store: str, rounds: int, tokens: int, said: int) -> list[Row]:
    """In every round the River says `tokens` alone, and goes on while a thought of `said` tokens
    is made, for which landmarks are collected anew. The gate lets every thought through.

    Raises:
        EdgeCortexError: the River's answer has come to its end.
    """
    with open_engine(path, store) as engine:
        river = restored(engine)
        config = CortexConfig(threshold=None, sampling=SamplingParams(max_tokens=said))
        cortex = river.think_with(config)
        river.chat(QUESTION, SamplingParams(max_tokens=MOST))
        speaking = Council(engine.core, engine.call(lambda: hold(engine.core, river)), [])
        return engine.call(
            lambda: [_round(speaking, cortex, task, tokens) for task in tasks(rounds)]
        )


def _round(speaking: Council, cortex: Cortex, task: str, tokens: int) -> Row:
    speaking.river.held = False
    alone: list[float] = []
    _listen(speaking, alone, lambda: len(alone) == tokens)
    cortex.synapse.forget()
    gaps: list[float] = []
    thought, start = Thought(task), time.perf_counter()
    cortex.start_planned([thought])
    _listen(speaking, gaps, lambda: thought.status != "waiting")
    begun = time.perf_counter() - start
    _listen(speaking, gaps, lambda: thought.ended)
    return {
        "what": "thought",
        "status": thought.status,
        "gap": max(gaps) / median(alone),
        "alone_gap_s": median(alone),
        "longest_gap_s": max(gaps),
        "river_share": (len(gaps) / sum(gaps)) / (len(alone) / sum(alone)),
        "begun_s": begun,
        "inject_s": thought.inject_s,
        "decided_s": time.perf_counter() - start,
    }


def _listen(speaking: Council, gaps: list[float], ended: Callable[[], bool]) -> None:
    """Lets the River speak until a token after which it has `ended`; adds the seconds that each
    took."""
    start = time.perf_counter()
    while not ended():
        speaking.step_until(speaking.river, 1)
        now = time.perf_counter()
        gaps.append(now - start)
        start = now


if __name__ == "__main__":
    serve({"whole": whole})
