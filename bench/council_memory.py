"""The part of the council benchmark about memory: a process in which many Streams are resident."""

import gc
from dataclasses import dataclass
from functools import partial

import mlx.core as mx

from edgecortex.bench.council_river import (
    QUESTION,
    open_engine,
    restored,
    step_until_said,
    tasks,
    wait_until_begun,
)
from edgecortex.bench.memory_agents import resident_bytes
from edgecortex.bench.report import Row
from edgecortex.bench.side import serve
from edgecortex.config import SamplingParams
from edgecortex.core import EngineCore
from edgecortex.warp.cortex import Cortex, CortexConfig
from edgecortex.warp.stream import Thought

MOST = 256  # tokens that a Stream may say: it has room for them from the start
FIRST_ANSWER = 16  # tokens that the River says before Streams begin, so that it has worked
TOGETHER = 4  # steps of all Streams at once, the last ones, after which memory is measured
TASKS = "What else does it say?"
MB = 1e6


@dataclass(frozen=True)
class Usage:
    """Bytes: of the process, of MLX's arrays, and of the buffers that MLX keeps for later ones."""

    process: int
    arrays: int
    cached: int

    @classmethod
    def now(cls) -> "Usage":
        return cls(resident_bytes(), mx.get_active_memory(), mx.get_cache_memory())

    def since(self, old: "Usage") -> "Usage":
        return Usage(self.process - old.process, self.arrays - old.arrays, self.cached - old.cached)

    @property
    def growth(self) -> int:
        """Of the process; where a system does not count what a device holds, of MLX."""
        return max(self.process, self.arrays + self.cached)


def streams(path: str, store: str, kv_format: str, count: int, said: list[int]) -> list[Row]:
    """Has `count` Streams think about one question to the River, and notes by how much the process
    has grown when each of them has said so many tokens.

    Raises:
        EdgeCortexError: they are not in memory all at once.
    """
    with open_engine(path, store, count, kv_format) as engine:
        river = restored(engine)
        facts = {"what": "memory", "river_tokens": river.num_tokens}
        river.chat(QUESTION, SamplingParams(max_tokens=FIRST_ANSWER)).text()
        before = engine.call(_now)
        cortex = river.think_with(CortexConfig(sampling=SamplingParams(max_tokens=MOST)))
        cortex.ask(TASKS, [Thought(task) for task in tasks(count)])
        wait_until_begun(engine, cortex, count)
        rows: list[Row] = []
        for num_tokens in said:
            job = partial(_once_said, engine.core, cortex, count, num_tokens, before)
            rows += [facts | row for row in engine.call(job)]
        return rows


def _now() -> Usage:
    gc.collect()
    return Usage.now()


def _once_said(
    core: EngineCore, cortex: Cortex, count: int, num_tokens: int, before: Usage
) -> list[Row]:
    """Steps that far, the last ones with all Streams together: a row for each of these, as what
    the system gets back comes back now and then."""
    first = max(1, num_tokens - TOGETHER + 1)
    rows = []
    for number, so_many in enumerate(range(first, num_tokens + 1), 1):
        held = step_until_said(core, cortex, count, so_many)
        rows.append({"said": num_tokens, "round": number, **_grown(before, len(held))})
    core.pool.check()
    return rows


def _grown(before: Usage, num_streams: int) -> Row:
    grown = Usage.now().since(before)
    return {
        "streams": num_streams,
        "mb_per_stream": grown.growth / num_streams / MB,
        "process_mb": grown.process / MB,
        "mlx_arrays_mb": grown.arrays / MB,
        "mlx_cache_mb": grown.cached / MB,
    }


if __name__ == "__main__":
    serve({"streams": streams})
