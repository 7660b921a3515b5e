"""Our side of the benchmark of the time to the first token, a job in each process."""

import os
import shutil
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from edgecortex.archive import Archive
from edgecortex.bench.asking import (
    archive_in,
    ask,
    context_of,
    finish,
    open_core,
    passage,
    recalled,
)
from edgecortex.bench.phases import Phases
from edgecortex.bench.report import median
from edgecortex.bench.side import serve
from edgecortex.bench.text import prompts
from edgecortex.core import EngineCore
from edgecortex.errors import EdgeCortexError
from edgecortex.kv.context import Context
from edgecortex.scheduler import Request
from edgecortex.sessions import archive_of

NUM_GENERATED = 17  # tokens: the first one, and 16 decode steps whose median is the step
NUM_HOT = 5
NUM_AGENTS, AGENT_TOKENS = 4, 64  # that decode while a context is saved
# Steps of decoding with saves and without: as contexts grow, those with them are in between.
BLOCKS, BLOCK_STEPS = (False, True, True, False), 8


def save(path: str, store: str, contexts: list[int]) -> int:
    """Reads a context of each of these lengths anew, as `cold` does, and stores it with its tail
    in a store of that name: other shares of a prompt would round in other ways.

    Returns: the bytes written.
    """
    core, num_bytes = open_core(path, f"{store}/unused", max(contexts)), 0
    _keep_store(core)
    for length in sorted(contexts):
        request = ask(core, passage(core, length), 1)
        finish(core, request)
        _expect(request, memory=0, disk=0)
        archive = archive_in(core, Path(store) / str(length))
        num_bytes += archive.save(context_of(request, length), tail=True).result()
        archive.close()
        core.release(request.agent)
    core.close()
    return num_bytes


def _keep_store(core: EngineCore) -> None:
    """Leaves a store as it is when answers end."""
    core.contexts.save_blocks = lambda agent: None  # type: ignore[method-assign]


def cold(path: str, store: str, tokens: int, new_tokens: int, logits: str) -> dict[str, Any]:
    """The first token with nothing stored."""
    core = open_core(path, store, tokens)
    phases = Phases(core)
    request = ask(core, passage(core, tokens + new_tokens), NUM_GENERATED)
    finish(core, request)
    _expect(request, memory=0, disk=0)
    np.save(logits, phases.logits())
    core.close()
    return {"ttft_s": request.generation.stats.ttft_s}


def warm(
    path: str, store: str, tokens: int, new_tokens: int, logits: str, dropped: bool
) -> dict[str, Any]:
    """The first token with the context on disk; then the decode step, and the context hot."""
    core = open_core(path, store, tokens)
    _keep_store(core)
    ids, phases = passage(core, tokens + new_tokens), Phases(core)
    if dropped:
        drop(Path(store))
    request = ask(core, ids, NUM_GENERATED)
    while not request.generation.token_ids:
        core.step()
    taken, step = phases.take(), _step(core, request)
    _expect(request, memory=0, disk=tokens)
    np.save(logits, phases.logits())
    core.release(request.agent)
    result = {
        "ttft_s": request.generation.stats.ttft_s,
        "phases_s": taken,
        "step_s": step,
        "hot_s": _hot(core, ids, tokens),
        "files": _files(archive_of(core), ids[:tokens]),
    }
    core.close()
    return result


def _step(core: EngineCore, request: Request) -> float:
    """Seconds of a step at this length, from the rest of an answer."""
    seconds = []
    while request.generation.stats.finish_reason is None:
        start = time.perf_counter()
        core.step()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def _hot(core: EngineCore, ids: list[int], tokens: int) -> float:
    """Seconds to the first token of forks of a resident context of `tokens` tokens."""
    parent, seconds = object(), []
    core.pool.release(recalled(core, parent, ids[:tokens]))
    for _ in range(NUM_HOT):
        child = object()
        core.contexts.fork(parent, child)  # type: ignore[arg-type]
        mx.eval(core.pool.arrays())
        archive_of(core).wait()
        request = ask(core, ids, 1, child)
        finish(core, request)
        _expect(request, memory=tokens, disk=0)
        seconds.append(request.generation.stats.ttft_s)
        core.release(request.agent)
    return median(seconds)


def _files(archive: Archive, ids: list[int]) -> list[str]:
    """What the store has of these tokens."""
    return [str(archive.store.path_of(entry)) for entry in archive.match(ids).entries]


def _expect(request: Request, memory: int, disk: int) -> None:
    """
    Raises:
        EdgeCortexError: the prompt's tokens came from somewhere else.
    """
    stats = request.generation.stats
    if (stats.num_memory_tokens, stats.num_disk_tokens) != (memory, disk):
        raise EdgeCortexError(
            f"expected {memory:,} tokens from memory and {disk:,} from disk, "
            f"got {stats.num_memory_tokens:,} and {stats.num_disk_tokens:,}"
        )


def read(files: list[str], dropped: bool) -> float:
    """Seconds to read files of one folder plainly, one after the other."""
    if dropped:
        drop(Path(files[0]).parent)
    start = time.perf_counter()
    for name in files:
        with open(name, "rb") as file:
            file.read()
    return time.perf_counter() - start


def saving(
    path: str, source: str, store: str, tokens: int, num_rounds: int
) -> list[dict[str, Any]]:
    """Tokens per second of some agents, while a context of `tokens` is stored over and over, and
    while nothing is: rounds of both.

    Args:
        store: a new one, which gets what is in `source`; what is stored already would not be
            written again.
    """
    shutil.copytree(source, store, dirs_exist_ok=True)
    core = open_core(path, store, tokens)
    saver = _Saver(archive_of(core), recalled(core, object(), passage(core, tokens)))
    lengths = [tokens, *[AGENT_TOKENS] * NUM_AGENTS]
    agents = [ask(core, ids, 4096) for ids in prompts(core.model.tokenizer, lengths)[1:]]
    while not all(request.generation.token_ids for request in agents):
        core.step()
    os.sync()
    _decoding(core, None)  # to warm up
    rows = [{"round": number, **_saving(core, saver)} for number in range(1, num_rounds + 1)]
    for request in agents:
        core.release(request.agent)
    core.close()
    return rows


def _saving(core: EngineCore, saver: "_Saver") -> dict[str, Any]:
    """One round."""
    saver.reset()
    seconds = {False: 0.0, True: 0.0}
    for busy in BLOCKS:
        seconds[busy] += _decoding(core, saver if busy else None)
    num_tokens = NUM_AGENTS * BLOCK_STEPS * len(BLOCKS) // 2
    return {
        "agents": NUM_AGENTS,
        "slowdown_pct": 100 * (1 - seconds[False] / seconds[True]),
        "without_tokens_per_s": num_tokens / seconds[False],
        "beside_tokens_per_s": num_tokens / seconds[True],
        "saved_mb": saver.num_bytes / 1e6,
        "saved_mb_per_s": saver.num_bytes / saver.seconds / 1e6,
    }


def _decoding(core: EngineCore, saver: "_Saver | None") -> float:
    """Seconds of some steps of all agents."""
    start = time.perf_counter()
    for _ in range(BLOCK_STEPS):
        if saver:
            saver.go_on()
        core.step()
    seconds = time.perf_counter() - start
    if saver:
        saver.pause()
    return seconds


class _Saver:
    """Stores a context again as soon as it is stored, each time under other token ids, so that
    all of it is written. `seconds` and `num_bytes` are the writing's."""

    def __init__(self, archive: Archive, context: Context) -> None:
        self._archive, self._context = archive, context
        self._started = 0.0
        self._counted = Future[None]()
        self._counted.set_result(None)
        self.reset()

    def reset(self) -> None:
        """Counts anew."""
        self.num_bytes, self.seconds = 0, 0.0

    def go_on(self) -> None:
        """Begins another save, if the last one is complete."""
        if self._counted.done():
            self._context.token_ids[0] += 1
            self._started = time.perf_counter()
            self._counted = Future()
            self._archive.save(self._context, tail=True).add_done_callback(self._count)

    def _count(self, future: "Future[int]") -> None:
        self.seconds += time.perf_counter() - self._started
        if error := future.exception():
            self._counted.set_exception(error)
            return
        self.num_bytes += future.result()
        self._counted.set_result(None)

    def pause(self) -> None:
        """Waits for what was begun."""
        self._counted.result()


def drop(folder: Path) -> None:
    """Lets the system forget what it has in memory of the files below a folder."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


if __name__ == "__main__":
    serve({job.__name__: job for job in (save, cold, warm, read, saving)})
