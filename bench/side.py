"""Parts of a benchmark that run in processes of their own: a job as JSON in, its result out."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

from edgecortex.bench.journal import inherited, once
from edgecortex.errors import EdgeCortexError

Job = Callable[..., Any]
BLOCKS = 4  # of steps: a process's speed is measured in each, as that of a round


def run(module: str, job: str, makes: str = "", **arguments: Any) -> Any:
    """Does a job of `edgecortex.bench.<module>` in a new process.

    Args:
        makes: a folder that the job fills: it finds it empty, whatever one that was stopped has
            left there.

    Raises:
        EdgeCortexError: it failed.
    """

    def do() -> Any:
        if makes:
            shutil.rmtree(makes, ignore_errors=True)
            os.makedirs(makes)
        return _answer(f"the job {job!r} of {module}", f"bench.{module}", text=text)

    text = json.dumps([job, arguments])
    return once([module, job, arguments], do)


def answer(title: str, module: str, *arguments: str, **variables: str) -> Any:
    """What the module `edgecortex.<module>` prints as JSON, run in a new process with these
    environment variables.

    Raises:
        EdgeCortexError: it failed.
    """
    asked = [module, arguments, variables]
    return once(asked, lambda: _answer(title, module, *arguments, **variables))


def _answer(title: str, module: str, *arguments: str, text: str = "", **variables: str) -> Any:
    # Modules are looked for where this process has its own, not in the current folder.
    environment = os.environ | {"PYTHONSAFEPATH": "1"} | variables
    done = subprocess.run(
        [sys.executable, "-m", f"edgecortex.{module}", *arguments],
        env=environment, input=text, capture_output=True, text=True, pass_fds=inherited(),
    )  # fmt: skip
    if done.returncode:
        raise EdgeCortexError(f"{title} failed: {_reason(done.returncode, done.stderr.strip())}")
    return json.loads(done.stdout)


def _reason(status: int, said: str) -> str:
    """Why a process failed; of one that was ended by a signal its last words do not say it."""
    how, words = how_ended(status), said[-2000:]
    if status < 0:
        return f"{words}\n{how}".strip()
    return words or how


def how_ended(status: int) -> str:
    """What the exit status of a process that failed says."""
    return f"ended by signal {-status}" if status < 0 else f"exit status {status}"


def serve(jobs: Mapping[str, Job]) -> None:
    """The main function of such a process."""
    job, arguments = json.load(sys.stdin)
    try:
        print(json.dumps(jobs[job](**arguments)))
    except EdgeCortexError as error:
        sys.exit(str(error))


def size_of(folder: Path, pattern: str = "*") -> int:
    """Bytes of the files below a folder whose names match."""
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())


def rates(step: Callable[[], int], num_steps: int, max_s: float = inf) -> list[float]:
    """Tokens per second in each block of steps, `num_steps` in all, or fewer when their time is
    over. A `step` returns its number of tokens."""
    return [rate(step, max(1, num_steps // BLOCKS), max_s / BLOCKS) for _ in range(BLOCKS)]


def rate(step: Callable[[], int], num_steps: int, max_s: float = inf) -> float:
    """The same of one block."""
    num_tokens, start = 0, time.perf_counter()
    for _ in range(num_steps):
        num_tokens += step()
        if time.perf_counter() - start > max_s:
            break
    return num_tokens / (time.perf_counter() - start)


def seconds(function: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def rates_of(times: Sequence[float]) -> list[float]:
    """The same of one agent, from when each of its tokens came."""
    size = max(1, (len(times) - 1) // BLOCKS)
    return [size / (end - start) for start, end in pairwise(times[::size][: BLOCKS + 1])]
