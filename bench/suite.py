"""All benchmarks: one by name, or one after the other, each in a process of its own."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgecortex import doctor, models
from edgecortex.bench import journal, render
from edgecortex.bench.benches import BENCHES
from edgecortex.bench.journal import Journal
from edgecortex.bench.report import Report, machine, make_report, read_report
from edgecortex.bench.side import how_ended
from edgecortex.errors import ConfigError, EdgeCortexError, PromptError

RECORD = "run.json"
VARIABLES = ("EDGECORTEX_", "OPENBLAS_", "OMP_", "MLX_")  # what they say may change results
OWN_TEXT = "Python's language reference"
WITH_LLAMA_CPP = ("ttft", "compare")
TAIL = 30  # lines of a failed process that are looked at
Say = Callable[[str], None]


def measure(name: str, model: str, quick: bool, given: dict[str, Any], progress: Say) -> Report:
    """Runs one benchmark here.

    Args:
        given: settings that go before its own; None is not given.

    Raises:
        EdgeCortexError: it failed.
    """
    settings = BENCHES[name].chosen(quick)
    settings |= {key: value for key, value in given.items() if value is not None}
    source = settings.get("text")
    if "text" in settings:
        settings["text"] = _text(source)
    function = _SIZED.get(name) or importlib.import_module(f"edgecortex.bench.{name}").measure
    found: Report = function(model=model, progress=progress, **settings)
    found["settings"] |= {"quick": quick}
    if "text" in settings:
        found["settings"]["text"] = str(source or OWN_TEXT)
    return found


def resumable(
    name: str, model: str, quick: bool, given: dict[str, Any], again: bool
) -> AbstractContextManager[Journal]:
    """What keeps the parts of such a run, for one with the same settings here.

    Raises:
        EdgeCortexError: it is running just now.
    """
    settings = {key: _told(value) for key, value in given.items()}
    variables = {key: value for key, value in os.environ.items() if key.startswith(VARIABLES)}
    weights = [_told(path) for path in sorted((models.find(model) or Path()).glob("*.safetensors"))]
    here = [doctor.versions(), machine(), variables, weights]
    return journal.resumable(name, [model, quick, settings, here], again)


def _told(value: Any) -> Any:
    """A setting as JSON; a file is another one when it has changed."""
    if not isinstance(value, Path):
        return value
    if not value.exists():
        return str(value)
    return [str(value.absolute()), value.stat().st_size, value.stat().st_mtime_ns]


# Benchmarks whose sizes are in an object of their own.


def _council(model: str, progress: Say, quick: bool, agents: list[int] | None = None) -> Report:
    from edgecortex.bench import council

    plan = council.QUICK if quick else council.Plan()
    if agents:
        plan = replace(plan, resident=tuple(agents), busy=tuple(agents))
    return council.measure(model, progress, plan=plan)


def _compare(
    model: str, progress: Say, quick: bool, gguf: Path | None = None, **sizes: Any
) -> Report:
    from edgecortex.bench import compare

    work = replace(compare.QUICK if quick else compare.FULL, **sizes)
    return compare.compare(model, work, progress, gguf)


def _roofline(model: str, progress: Say, quick: bool, contexts: list[int] | None = None) -> Report:
    from edgecortex.bench import roofline

    if contexts:
        return roofline.roofline(model, contexts, progress, restores=not quick)
    return roofline.measure(model, progress, quick=quick)


_SIZED: dict[str, Callable[..., Report]] = {
    "council": _council,
    "compare": _compare,
    "roofline": _roofline,
}


def _text(source: Path | None) -> str:
    if not source:
        from edgecortex.bench.text import english_once

        return english_once()
    try:
        return Path(source).read_text("utf-8")
    except OSError as error:
        raise EdgeCortexError(f"cannot read {source}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{source} is not text: expected UTF-8, got {error.reason}") from error


# All of them.


def names(quick: bool) -> list[str]:
    """What `all` runs here: the one of the BLAS makes sense on a CPU that needs one from us. Two
    are left out where it is to be quick."""
    on_cpu = sys.platform == "linux" and doctor.device_name().startswith("CPU")
    left_out = {"blas", "workflow"} if quick else set() if on_cpu else {"blas"}
    return [name for name in BENCHES if name not in left_out]


class Record:
    """A folder's `run.json`: the settings of its run, and the seconds of what is complete.

    Raises:
        ConfigError: the folder has results of other settings, or that no run wrote.
        EdgeCortexError: it cannot be read or written.
    """

    def __init__(
        self, folder: Path, model: str, quick: bool, again: bool, gguf: Path | None = None
    ) -> None:
        self.folder, self.quick, self.again = folder, quick, again
        self.settings = {
            "model": model,
            "quick": quick,
            "gguf": str(gguf.absolute()) if gguf else None,
            "machine": machine(),
            "versions": doctor.versions(),
            "code": journal.code(),
        }
        old = self._read()
        self.seconds: dict[str, float] = {}
        self._before: dict[str, float] = {}
        if old and old["settings"].get("quick") == quick:
            self._before = old["seconds"]
        if again:
            self._remove_results()
        elif old:
            self._check(old["settings"])
            self.seconds = dict(self._before)
        elif there := [name for name in BENCHES if (folder / f"{name}.json").exists()]:
            raise ConfigError(
                f"{folder} has results that no `bench all` wrote: {', '.join(there)}; name "
                "another folder with --out, or replace them with --again"
            )
        self._write()

    def complete(self, name: str) -> bool:
        return name in self.seconds and (self.folder / f"{name}.json").is_file()

    def note(self, name: str, seconds: float) -> None:
        """A benchmark is complete."""
        self.seconds[name] = seconds
        self._write()

    def expected_s(self, name: str) -> float:
        """How long it took last, or takes by experience."""
        return self._before.get(name) or BENCHES[name].expected_s(self.quick)

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads((self.folder / RECORD).read_text("utf-8"))
            return {"settings": dict(content["settings"]), "seconds": dict(content["seconds"])}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EdgeCortexError(
                f"{self.folder / RECORD} is not what `bench all` wrote ({error!r}): name another "
                "folder with --out"
            ) from error

    def _write(self) -> None:
        content = {"settings": self.settings, "seconds": self.seconds}
        render.write(self.folder / RECORD, json.dumps(content, indent=2) + "\n")

    def _check(self, old: dict[str, Any]) -> None:
        now = json.loads(json.dumps(self.settings))
        differ = [
            f"{key} {old.get(key)!r}, not {now[key]!r}" for key in now if old.get(key) != now[key]
        ]
        if differ:
            raise ConfigError(
                f"{self.folder} has a run with {'; '.join(differ)}: name another folder with "
                "--out, or begin anew with --again"
            )

    def _remove_results(self) -> None:
        for name in BENCHES:
            for suffix in (".json", ".md", ".svg", ".png"):
                (self.folder / f"{name}{suffix}").unlink(missing_ok=True)


class Pace:
    """How long some benchmarks that run one after the other will still take. Where the first are
    slower than was expected, so will the others be."""

    def __init__(self, expected: dict[str, float]) -> None:
        self._expected = dict(expected)
        self._foreseen = self._taken = self._now = self._start = 0.0

    def begin(self, name: str) -> None:
        self._now, self._start = self._expected.pop(name), time.monotonic()

    def end(self) -> float:
        """Returns: the seconds since it began."""
        seconds = time.monotonic() - self._start
        self._foreseen += self._now
        self._taken += seconds
        self._now = 0.0
        return seconds

    def left_s(self) -> float:
        factor = self._taken / self._foreseen if self._foreseen else 1.0
        running = factor * self._now - (time.monotonic() - self._start) if self._now else 0.0
        return factor * sum(self._expected.values()) + max(0.0, running)


def run(record: Record, wanted: Sequence[str], pace: Pace, say: Say, note: Say) -> dict[str, str]:
    """Runs what is not complete, each in a process of its own; what it writes goes into the
    record's folder.

    Args:
        say: shows what is being done just now.
        note: shows what has been done.

    Returns: what went wrong, by name.

    Raises:
        KeyboardInterrupt: what was running is ended; what is complete stays.
    """
    problems = {}
    for number, name in enumerate(wanted, 1):
        if record.complete(name):
            note(f"{name}: complete since an earlier start")
            continue
        head = f"{number} of {len(wanted)}, {name}"
        say(head)
        pace.begin(name)
        problem = _run_one(record, name, head, say)
        seconds = pace.end()
        if problem:
            problems[name] = problem
            note(f"{name}: failed after {duration(seconds)}: {problem}")
        else:
            record.note(name, seconds)
            note(f"{name}: complete after {duration(seconds)}")
    return problems


def duration(seconds: float) -> str:
    """Such as 2:05 or 1:00:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def command(record: Record, name: str) -> list[str]:
    """What runs a benchmark and writes its results into the record's folder."""
    options = ["--model", str(record.settings["model"]), "--out", str(record.folder.absolute())]
    options += ["--quick"] * record.quick + ["--again"] * record.again
    if name in WITH_LLAMA_CPP and (gguf := record.settings["gguf"]):
        options += ["--gguf", str(gguf)]
    return [sys.executable, "-m", "edgecortex.cli.main", "bench", name, *options]


def _run_one(record: Record, name: str, head: str, say: Say) -> str | None:
    """Returns: what went wrong."""
    lines = deque[str](maxlen=TAIL)
    # Modules are looked for where this process has its own, not in the current folder. In a
    # session of its own it gets one Ctrl-C, ours, and not the terminal's as well.
    with subprocess.Popen(
        command(record, name), env=os.environ | {"PYTHONSAFEPATH": "1"}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stderr
        try:
            for line in process.stderr:
                lines.append(line.rstrip())
                say(f"{head}: {lines[-1]}")
            process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)  # for it the same, and never ignored
            process.wait()
            raise
    return _problem(process.returncode, lines) or _unreadable(record.folder / f"{name}.json")


def _problem(status: int, lines: Sequence[str]) -> str | None:
    if status == 0:
        return None
    how = how_ended(status)
    _, told, said = "\n".join(lines).rpartition("edgecortex: ")
    return said if told and status > 0 else f"{how}: {lines[-1]}" if lines else how


def _unreadable(path: Path) -> str | None:
    try:
        read_report(path)
    except EdgeCortexError as error:
        return str(error)
    return None


def summary(record: Record, wanted: Sequence[str], problems: dict[str, str]) -> Report:
    """The figures of all that is complete, as one report; its rows say how each went."""
    reports = [read_report(record.folder / f"{n}.json") for n in wanted if record.complete(n)]
    figures = {name: value for r in reports for name, value in r["figures"].items()}
    spreads = {name: ends for r in reports for name, ends in r["spread"].items()}
    rows = [
        {"benchmark": name, "seconds": record.seconds.get(name), "problem": problems.get(name)}
        for name in wanted
    ]
    settings = {key: record.settings[key] for key in ("model", "quick")}
    return make_report("all", settings, figures, rows, spreads)
