"""`edgecortex batch`: a file of prompts, answered by concurrent agents."""

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edgecortex.batch import Answer, Prompt, answer_all, read_prompts
from edgecortex.cli import options
from edgecortex.errors import ConfigError, EdgeCortexError

STANDARD = Path("-")


def batch(
    file: Annotated[Path, typer.Argument(help="Prompts, one JSON object a line; - is stdin.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Results; - is stdout.")] = STANDARD,
    concurrency: Annotated[int, typer.Option(min=1, help="Most agents at work at once.")] = 16,
    model: options.Model = options.DEFAULT_MODEL,
    system: options.System = None,
    temp: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    max_tokens: options.MaxTokens = 512,
    seed: options.Seed = None,
    kv_format: options.KVFormatName = options.DEFAULT_FORMAT,
    kv_budget: options.KVBudget = None,
    no_cache: options.NoCache = False,
) -> None:
    """Answer many prompts as concurrent agents.

    A line is {"prompt": …} and, where it differs from the options, id,
    system, max_tokens, temperature, top_p, seed or stop. Results are JSON
    lines in the same order. A prompt that failed has an error there, and the
    exit status is 1. Ctrl-C stops; the same command with -o goes on from there.
    """
    config = options.engine_config(kv_format, kv_budget, no_cache)
    prompts = _read(file, options.sampling_of(temp, top_p, max_tokens, seed), system)
    with _Results(out, [_head(prompt, model, kv_format) for prompt in prompts]) as results:
        if results.num_done < len(prompts):
            with options.load_engine(model, config) as engine, _progress(results) as progress:
                todo = [
                    replace(prompt, system=options.system_prompt(engine, prompt.system))
                    for prompt in prompts[results.num_done :]
                ]
                for answer in answer_all(engine, todo, concurrency, progress):
                    results.write(answer)
    if results.num_failed:
        raise typer.Exit(1)


def _read(file: Path, defaults: options.SamplingParams, system: str | None) -> list[Prompt]:
    """
    Raises:
        ConfigError: a line is not a prompt.
        EdgeCortexError: the file cannot be read, or is not text.
    """
    try:
        data = sys.stdin.buffer.read() if file == STANDARD else file.read_bytes()
    except OSError as error:
        raise EdgeCortexError(f"cannot read {file}: {error.strerror}") from error
    name = "stdin" if file == STANDARD else str(file)
    lines = options.decoded(data, name).split("\n")
    try:
        prompts = read_prompts(lines, defaults)
    except ConfigError as error:
        raise ConfigError(f"{name} {error}") from error
    return [replace(p, system=system if p.system is None else p.system) for p in prompts]


def _head(prompt: Prompt, model: str, kv_format: str) -> dict[str, object]:
    """How a prompt's result begins: by it a run that goes on knows what has been answered."""
    settings = json.dumps([model, kv_format, asdict(prompt)], sort_keys=True)
    digest = hashlib.blake2b(settings.encode(), digest_size=8).hexdigest()
    return {"id": prompt.id, "digest": digest}


class _Results:
    """JSON lines, one for each head and in their order, each written whole and at once.

    A file that holds the first of them is continued; half a line at its end is cut off.

    Raises:
        EdgeCortexError: the file holds something else, or cannot be written.
    """

    def __init__(self, path: Path, heads: Sequence[dict[str, object]]) -> None:
        self.path, self.heads = path, heads
        self.num_done = self.num_failed = 0
        self._file: BinaryIO = sys.stdout.buffer

    def __enter__(self) -> "_Results":
        if self.path != STANDARD:
            try:
                self._file = self.path.open("a+b")
                self._resume()
            except OSError as error:
                raise EdgeCortexError(f"cannot write {self.path}: {error.strerror}") from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not sys.stdout.buffer:
            self._file.close()

    def write(self, answer: Answer) -> None:
        record: dict[str, Any] = {**self.heads[self.num_done]}
        if answer.stats is None:
            record["error"] = answer.error
        else:
            record |= {"text": answer.text, **asdict(answer.stats)}
        try:
            self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise EdgeCortexError(f"cannot write {self.path}: {error.strerror}") from error
        self._count(failed=answer.stats is None)

    def _resume(self) -> None:
        self._file.seek(0)
        *lines, rest = self._file.read().split(b"\n")
        starts = [json.dumps(h, ensure_ascii=False)[:-1].encode() + b", " for h in self.heads]
        if not _begins(lines, rest, starts):
            raise EdgeCortexError(
                f"{self.path} is left alone: expected results of these prompts, settings and "
                "model, got something else; choose another file or remove it"
            )
        for line, start in zip(lines, starts, strict=False):
            self._count(failed=line.startswith(start + b'"error": '))
        self._file.truncate(self._file.tell() - len(rest))

    def _count(self, failed: bool) -> None:
        self.num_done += 1
        self.num_failed += failed


def _begins(lines: list[bytes], rest: bytes, starts: list[bytes]) -> bool:
    """Whether the lines, and half a line after them, begin as they must."""
    if len(lines) + bool(rest) > len(starts):
        return False
    start = starts[len(lines)] if rest else b""
    whole = all(line.startswith(start) for line, start in zip(lines, starts, strict=False))
    return whole and rest[: len(start)] == start[: len(rest)]


@contextmanager
def _progress(results: _Results) -> Iterator[Any]:
    """Gives a `progress(num_answers, num_tokens)` that draws on stderr, and sums up at the end."""
    console = Console(stderr=True, highlight=False)
    columns = (
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[rate]:.0f} tok/s"),
        TimeRemainingColumn(),
    )
    hidden = not console.is_terminal or (results.path == STANDARD and sys.stdout.isatty())
    start, before, total = time.monotonic(), results.num_done, len(results.heads)
    rate = num_tokens = 0.0
    bars = Progress(
        *columns, console=console, transient=True, disable=hidden, redirect_stdout=False
    )
    task = bars.add_task("", total=total, completed=before, rate=0.0)

    def report(num_answers: int, tokens: int) -> None:
        nonlocal rate, num_tokens
        num_tokens, rate = tokens, tokens / (time.monotonic() - start)
        bars.update(task, completed=before + num_answers, rate=rate)

    try:
        with bars:
            yield report
    finally:
        stopped = "" if results.num_done == total else "; the same command goes on from there"
        console.print(
            f"{results.num_done} of {total} done, {results.num_failed} failed; "
            f"{num_tokens:,.0f} tokens, {rate:.0f} tok/s{stopped}",
            soft_wrap=True,
        )
