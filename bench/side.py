"""Parts of a benchmark that run in processes of their own: a job as JSON in, its result out."""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgecortex.errors import EdgeCortexError
from edgecortex.paths import home

Job = Callable[..., Any]
PREFIX, LOCK = ".bench-work-", "lock"


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


@contextlib.contextmanager
def work_folder() -> Iterator[str]:
    """A folder for one run, on the disk that stores are usually on: elsewhere may be memory.
    Those that killed processes left behind are removed."""
    home().mkdir(parents=True, exist_ok=True)
    for path in home().glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(OSError), path.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=home()) as folder:
        begun = Path(folder) / f"{LOCK}.begun"
        with begun.open("w") as lock:  # nobody sees it before it is locked
            fcntl.flock(lock, fcntl.LOCK_EX)
            begun.rename(Path(folder) / LOCK)
            yield folder


def size_of(folder: Path, pattern: str = "*") -> int:
    """Bytes of the files below a folder whose names match."""
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())
