"""Parts of a benchmark that run in processes of their own: a job as JSON in, its result out."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgecortex.bench.journal import once
from edgecortex.errors import EdgeCortexError

Job = Callable[..., Any]


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
        env=environment, input=text, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        reason = done.stderr.strip()[-2000:] or f"exit status {done.returncode}"
        raise EdgeCortexError(f"{title} failed: {reason}")
    return json.loads(done.stdout)


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
