"""Many prompts, answered by concurrent agents."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgecortex.config import SamplingParams
from edgecortex.errors import ClosedError, ConfigError
from edgecortex.generation import GenerationStats

if TYPE_CHECKING:
    from edgecortex.engine import Engine

KEYS: dict[str, tuple[tuple[type, ...], str]] = {
    "prompt": ((str,), "text"),
    "id": ((str, int), "text or a whole number"),
    "system": ((str,), "text"),
    "max_tokens": ((int,), "a whole number"),
    "temperature": ((int, float), "a number"),
    "top_p": ((int, float), "a number"),
    "seed": ((int,), "a whole number"),
    "stop": ((str, list), "text or a list of texts"),
}
"""What a line may hold: the types of each value, and their name."""


@dataclass(frozen=True)
class Prompt:
    """A question for an agent of its own."""

    text: str
    id: str | int
    sampling: SamplingParams
    system: str | None = None


@dataclass(frozen=True)
class Answer:
    """What came of a prompt; `error` says what went wrong, if something did."""

    prompt: Prompt
    text: str = ""
    stats: GenerationStats | None = None
    error: str | None = None


def read_prompts(lines: Iterable[str], defaults: SamplingParams) -> list[Prompt]:
    """Prompts from JSON lines `{"prompt": str, …}` with the further keys of `KEYS`, all optional.

    What a line leaves out or sets to null comes from `defaults`; its id then is its number,
    counted from 1. Blank lines are skipped.

    Raises:
        ConfigError: a line is no such object; the message has its number.
    """
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                prompts.append(_prompt(_values(line), number, defaults))
            except ConfigError as error:
                raise ConfigError(f"line {number}: {error}") from error
    return prompts


def _values(line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
        json.dumps(values, ensure_ascii=False).encode("utf-8")  # fails on half a character
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"expected a JSON object, got {line[:60]!r} ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"expected a JSON object, got {line[:60]!r}")
    values = {key: value for key, value in values.items() if value is not None}
    for key, value in values.items():
        if key not in KEYS:
            raise ConfigError(f"unknown key {key!r}: expected some of {', '.join(KEYS)}")
        types, expected = KEYS[key]
        if not isinstance(value, types) or isinstance(value, bool):
            raise ConfigError(f"{key} must be {expected}, got {value!r}")
    return values


def _prompt(values: dict[str, Any], number: int, defaults: SamplingParams) -> Prompt:
    text = values.pop("prompt", "")
    if not text.strip():
        raise ConfigError("prompt must be text that is not blank, got none")
    stop = values.get("stop", [])
    if not all(isinstance(item, str) for item in stop):
        raise ConfigError(f"stop must be text or a list of texts, got {stop!r}")
    if stop:
        values["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    name, system = values.pop("id", number), values.pop("system", None)
    return Prompt(text, name, replace(defaults, **values), system)


Progress = Callable[[int, int], None]


def answer_all(
    engine: "Engine",
    prompts: Iterable[Prompt],
    concurrency: int = 16,
    progress: Progress = lambda num_answers, num_tokens: None,
) -> Iterator[Answer]:
    """Yields an answer for each prompt, in their order, while others are still being made.

    A prompt that fails yields an answer that says why, and the others go on. Leaving the
    iterator early cancels what is in progress.

    Args:
        concurrency: how many agents are in flight at most; each is closed with its answer.
        progress: called as `progress(num_answers, num_tokens)` with the totals so far, from
            threads of its own but never from two at once.

    Raises:
        ClosedError: the engine was closed meanwhile.
    """
    run = _Run(engine, progress)
    workers = ThreadPoolExecutor(concurrency)
    try:
        yield from workers.map(run.answer, prompts)
    finally:
        run.stopped = True
        workers.shutdown(wait=False, cancel_futures=True)


class _Run:
    """What the workers of one run share."""

    def __init__(self, engine: "Engine", progress: Progress) -> None:
        self.engine, self.progress = engine, progress
        self.stopped = False
        self._counting = threading.Lock()
        self._num_answers = self._num_tokens = 0

    def answer(self, prompt: Prompt) -> Answer:
        try:
            answer = self._answer(prompt)
        except ClosedError:
            raise
        except Exception as error:  # whatever it was, it is this prompt's alone
            answer = Answer(prompt, error=str(error) or type(error).__name__)
        self._count(1, 0)
        return answer

    def _answer(self, prompt: Prompt) -> Answer:
        with closing(self.engine.agent(system=prompt.system, sampling=prompt.sampling)) as agent:
            generation, counted = agent.chat(prompt.text), 0
            pieces = []
            for piece in generation:
                if self.stopped:
                    break
                pieces.append(piece)
                now = generation.stats.num_generated_tokens
                self._count(0, now - counted)
                counted = now
            self._count(0, generation.stats.num_generated_tokens - counted)
        return Answer(prompt, "".join(pieces), generation.stats)

    def _count(self, num_answers: int, num_tokens: int) -> None:
        with self._counting:
            self._num_answers += num_answers
            self._num_tokens += num_tokens
            self.progress(self._num_answers, self._num_tokens)
