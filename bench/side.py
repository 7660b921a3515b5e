"""Parts of a benchmark that run in processes of their own: a job as JSON in, its result out."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgecortex.errors import EdgeCortexError
from edgecortex.paths import home

Job = Callable[..., Any]


def run(module: str, job: str, **arguments: Any) -> Any:
    """Does a job of `edgecortex.bench.<module>` in a new process.

    Raises:
        EdgeCortexError: it failed.
    """
    text = json.dumps([job, arguments])
    return answer(f"the job {job!r} of {module}", f"bench.{module}", text=text)


def answer(title: str, module: str, *arguments: str, text: str = "", **variables: str) -> Any:
    """What the module `edgecortex.<module>` prints as JSON, run in a new process on this input
    and with these environment variables.

    Raises:
        EdgeCortexError: it failed.
    """
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


def work_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder for one run, on the disk that stores are usually on: elsewhere may be memory.
    Those that killed processes left behind are removed."""
    home().mkdir(parents=True, exist_ok=True)
    for path in home().glob("bench-*-*"):
        owner = re.match(r"bench-([1-9][0-9]{0,8})-", path.name)
        if owner and not _is_alive(int(owner[1])):
            shutil.rmtree(path, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"bench-{os.getpid()}-", dir=home())


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True


def size_of(folder: Path, pattern: str = "*") -> int:
    """Bytes of the files below a folder whose names match."""
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())
