"""What a benchmark that is stopped leaves to a later start, with processes killed for real."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from edgecortex.bench import journal, side
from edgecortex.errors import EdgeCortexError

RUNNING = """
import sys
from edgecortex.bench import journal
with journal.work_folder() as folder:
    open(f"{folder}/kv", "w").write("many bytes")
    print(folder, flush=True)
    sys.stdin.read()
"""
# Two rounds of two parts; the number of those that are done is said after each.
ROUNDS = """
import sys
from edgecortex.bench import journal
done = 0
def part(name):
    global done
    done += 1
    return {"name": name, "number": done, "none": float("nan")}
with journal.resumable("b", {"size": int(sys.argv[1])}) as parts:
    with journal.work_folder() as folder:
        open(f"{folder}/made", "a").write("x")
        found = []
        for turn in (1, 2):
            for name in ("one", "two"):
                found.append(journal.once(["part", name], lambda: part(name))["number"])
                print(len(open(f"{folder}/made").read()), found, flush=True)
                if len(found) == int(sys.argv[2]):
                    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGECORTEX_HOME", str(tmp_path))
    return tmp_path


@contextmanager
def started(script: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        yield process


def test_what_a_killed_benchmark_left_is_removed(home: Path) -> None:
    """And nothing else: not what one that still runs has, nor what has such a name only."""
    with started(RUNNING) as process:
        assert process.stdout
        left = Path(process.stdout.readline().strip())
        others = [".bench-work-abcdefgh", "bench-2026-baseline", "store"]
        for name in others:
            (home / name).mkdir()
        with journal.work_folder() as one, journal.work_folder() as two:
            names = {path.name for path in home.iterdir()}
            assert names == {*others, left.name, Path(one).name, Path(two).name}
        os.kill(process.pid, signal.SIGKILL)
    assert (left / "kv").is_file()
    with journal.work_folder() as one:
        assert {path.name for path in home.iterdir()} == {*others, Path(one).name}
    assert {path.name for path in home.iterdir()} == set(others)


def lines(size: int, stop_after: int) -> list[str]:
    """What one says that is killed after so many parts, or that comes to its end."""
    with started(ROUNDS, str(size), str(stop_after)) as process:
        assert process.stdout
        said = [process.stdout.readline().strip() for _ in range(stop_after or 4)]
        if stop_after:
            os.kill(process.pid, signal.SIGKILL)
    return said


def test_a_killed_benchmark_goes_on(home: Path) -> None:
    """With what was done in its rounds, one by one, and with its files; then nothing is left."""
    assert lines(1, 3)[-1] == "1 [1, 2, 3]"
    assert lines(2, 1) == ["1 [1]"]  # other settings begin anew
    assert lines(1, 0) == ["2 [1]", "2 [1, 2]", "2 [1, 2, 3]", "2 [1, 2, 3, 1]"]
    assert lines(1, 0)[0] == "1 [1]"
    (left,) = home.glob(f"{journal.KEPT}*")
    with (left / journal.PARTS).open("a") as file:
        file.write('{"asked": "cut sho')
    assert lines(2, 0)[-1] == "2 [1, 1, 2, 3]"
    assert not [*home.glob(f"{journal.KEPT}*")]


def test_only_what_is_stopped_is_kept(home: Path) -> None:
    def run(error: type[BaseException], again: bool = False) -> int:
        with suppress(error), journal.resumable("b", {}, again) as parts:
            had.append(parts.num_parts)
            journal.once(["part", had[-1]], lambda: 1)
            raise error
        return had[-1]

    had: list[int] = []

    assert [run(KeyboardInterrupt), run(KeyboardInterrupt)] == [0, 1]
    assert run(KeyboardInterrupt, again=True) == 0
    assert [run(EdgeCortexError), run(KeyboardInterrupt)] == [1, 0]
    (left,) = home.glob(f"{journal.KEPT}*")
    long_ago = time.time() - journal.KEPT_S - 1
    os.utime(left / journal.LOCK, (long_ago, long_ago))
    with journal.resumable("another", {}):
        assert not left.exists()
    assert journal.once("outside", lambda: 2) == 2


def test_a_part_that_fails_is_done_again() -> None:
    """What was complete before is kept, unlike where a check of all of it fails."""

    def failing() -> None:
        raise EdgeCortexError("no memory is free")

    with suppress(EdgeCortexError), journal.resumable("b", {}):
        journal.once("first", lambda: 1)
        journal.once("second", failing)
    with journal.resumable("b", {}) as parts:
        assert parts.num_parts == 1
        assert journal.once("first", failing) == 1
        assert journal.once("second", lambda: 2) == 2


# Is killed while a real job of it, which waits for a file that is a pipe, goes on.
WITH_JOB = """
import sys
from edgecortex.bench import journal, side
with journal.resumable("b", {}):
    side.run("ttft_ours", "read", files=[sys.argv[1]], dropped=False)
"""


def test_a_job_that_outlives_its_benchmark_holds_the_lock(home: Path) -> None:
    pipe = home / "pipe"
    os.mkfifo(pipe)
    with started(WITH_JOB, str(pipe)) as process:
        end = os.open(pipe, os.O_WRONLY)  # once the job has opened it
        os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(EdgeCortexError, match="by another process"), journal.resumable("b", {}):
        pass
    os.close(end)
    for _ in range(100):
        with suppress(EdgeCortexError), journal.resumable("b", {}):
            return
        time.sleep(0.1)
    pytest.fail("the lock is held for ever")


def test_two_at_once_are_refused() -> None:
    with (
        journal.resumable("b", {}),
        pytest.raises(EdgeCortexError, match="by another process"),
        journal.resumable("b", {}),
    ):
        pass


def test_a_result_is_the_same_from_a_file() -> None:
    """Also where JSON turns it into something else."""

    def results() -> list[Any]:
        return [journal.once(n, lambda: {1: (2.5, float("inf"))}) for n in "ab"]

    with suppress(KeyboardInterrupt), journal.resumable("b", {}):
        now = results()
        raise KeyboardInterrupt
    with journal.resumable("b", {}) as parts:
        assert parts.num_parts == 2
        assert results() == now == [{"1": [2.5, float("inf")]}] * 2


def test_a_job_finds_its_folder_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side, "_answer", lambda *_, **__: len([*made.iterdir()]))
    made = tmp_path / "made"
    made.mkdir()
    (made / "half").write_text("")
    assert side.run("m", "job", makes=str(made)) == 0


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("sys.exit('no such file')", "no such file"),
        ("sys.exit(3)", "exit status 3"),
        ("print('x', file=sys.stderr, flush=True); os.kill(os.getpid(), 4)", "ended by signal 4"),
    ],
)
def test_why_a_job_failed_is_in_the_last_line(
    end: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = subprocess.run
    script = [sys.executable, "-c", f"import os, sys; {end}"]
    monkeypatch.setattr(side.subprocess, "run", lambda _, **how: run(script, **how))
    with pytest.raises(EdgeCortexError, match="the job 'read' of ttft_ours failed: ") as error:
        side.run("ttft_ours", "read", files=[], dropped=False)
    assert str(error.value).splitlines()[-1].endswith(reason)
