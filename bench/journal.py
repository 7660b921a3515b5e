"""What a benchmark has measured so far: one that was stopped goes on from there."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgecortex.errors import EdgeCortexError
from edgecortex.paths import home

WORK, KEPT, LOCK, PARTS = ".bench-work-", ".bench-kept-", "lock", "parts.jsonl"
KEPT_S = 7 * 24 * 3600  # what was stopped longer ago is removed
PACKAGES = [f"edgecortex{part}" for part in ("", ".bench", ".cli", ".models")]
KINDS = (".py", ".toml", ".json")  # of their files
_current: "Journal | None" = None


class Journal:
    """Results of a benchmark's parts in `parts.jsonl`, a line for each, and a folder for their
    files. A part is known by what was asked, and by how many times that was asked before: every
    round asks the same again."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.files = folder / "files"
        self.files.mkdir(exist_ok=True)
        self.lock = lock  # the file; processes of parts have it too, and outlive this one at times
        self._path = folder / PARTS
        self._before = defaultdict[str, list[Any]](list)
        self.num_parts, self.spent_s, self.part_failed = 0, 0.0, False
        self._read()

    def _read(self) -> None:
        """What an earlier start has left, up to a line that is not whole; that one goes."""
        text = self._path.read_text("utf-8") if self._path.exists() else ""
        lines = text.splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        if len(whole) < len(lines):
            self._path.write_text("".join(whole), "utf-8")
        for part in map(json.loads, whole):
            self._before[part["asked"]].append(part["result"])
            self.spent_s += part["seconds"]
        self.num_parts = len(whole)

    def once(self, asked: Any, do: Callable[[], Any]) -> Any:
        """The result of a part: the earlier start's, or what it gives now. Either comes as JSON
        keeps it."""
        key = _digest(asked)
        if self._before[key]:
            return self._before[key].pop(0)
        begun, self.part_failed = time.monotonic(), True
        result = do()
        self.part_failed = False
        part = {"asked": key, "seconds": time.monotonic() - begun, "result": result}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(part) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return json.loads(json.dumps(result))


def once(asked: Any, do: Callable[[], Any]) -> Any:
    """Does a part of a benchmark, if no earlier start has done it; `asked` tells the parts from
    each other. What it gives has to be JSON."""
    return _current.once(asked, do) if _current else do()


def inherited() -> list[int]:
    """Files that the process of a part has to have open."""
    return [_current.lock] if _current else []


@contextlib.contextmanager
def resumable(name: str, settings: Any, again: bool = False) -> Iterator[Journal]:
    """Keeps what the parts of a benchmark give for a later start with the same settings and the
    same code, should this one be stopped, or a part fail.

    Args:
        again: forget what an earlier start has left.

    Raises:
        EdgeCortexError: it is running just now.
    """
    global _current
    home().mkdir(parents=True, exist_ok=True)
    _sweep()
    folder = home() / f"{KEPT}{name}-{_digest([settings, code()])}"
    with _locked(folder) as lock:
        if again:
            _empty(folder)
        _current = journal = Journal(folder, lock)
        try:
            yield journal
        except EdgeCortexError:
            if not journal.part_failed:  # what has failed a check would fail it again
                _remove(folder)
            raise
        else:
            _remove(folder)
        finally:
            _current = None


@contextlib.contextmanager
def work_folder() -> Iterator[str]:
    """A folder for the files of one run, on the disk that stores are usually on: elsewhere may be
    memory. Those that killed processes left behind are removed, or kept for a later start."""
    if _current:
        yield str(_current.files)
        return
    home().mkdir(parents=True, exist_ok=True)
    _sweep()
    with tempfile.TemporaryDirectory(prefix=WORK, dir=home()) as folder:
        begun = Path(folder) / f"{LOCK}.begun"
        with begun.open("w") as lock:  # nobody sees it before it is locked
            fcntl.flock(lock, fcntl.LOCK_EX)
            begun.rename(Path(folder) / LOCK)
            yield folder


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Holds a folder's lock, and yields the file."""
    folder.mkdir(exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise EdgeCortexError(
                "this benchmark is being run with these settings just now, by another process: "
                "wait until that has ended, for two at once would slow each other down"
            ) from error
        yield lock.fileno()


def _sweep() -> None:
    """Removes what killed processes left that nobody can use, and what was stopped long ago."""
    for path in home().glob(f"{WORK}*/{LOCK}"):
        _remove_free(path)
    for path in home().glob(f"{KEPT}*/{LOCK}"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > KEPT_S:
                _remove_free(path)


def _remove_free(path: Path) -> None:
    """Removes the folder of a lock that nobody holds."""
    with contextlib.suppress(OSError), path.open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path.parent)


def _remove(folder: Path) -> None:
    _empty(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _empty(folder: Path) -> None:
    """Parts first: without their files they would be wrong."""
    (folder / PARTS).unlink(missing_ok=True)
    shutil.rmtree(folder / "files", ignore_errors=True)


def code() -> str:
    """A hash of the program's own files: results of two programs are not put together."""
    specs = map(find_spec, PACKAGES)
    roots = [Path(root) for spec in specs if spec for root in spec.submodule_search_locations or ()]
    files = {path for root in roots for kind in KINDS for path in root.glob(f"**/*{kind}")}
    texts = [path.read_text("utf-8") for path in sorted(files) if "results" not in path.parts]
    return _digest(texts)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
