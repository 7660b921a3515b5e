"""`edgecortex council`: an answer to one question, after Streams have thought about it."""

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgecortex.cli import options
from edgecortex.cli.thoughts import MAX_TOKENS, Watch
from edgecortex.council import Council, Seat, load
from edgecortex.errors import ConfigError, EdgeCortexError, PromptError, StateError

if TYPE_CHECKING:
    from edgecortex import Agent, Generation, SamplingParams
    from edgecortex.warp.cortex import CortexConfig
    from edgecortex.warp.stream import Thought

STANDARD = Path("-")
DEFAULT_ROLES = (
    "You check facts. In one or two sentences, name the facts that a right answer rests on.",
    "You are a sceptic. In one or two sentences, say where a quick answer would go wrong.",
    "You look for gaps. In one or two sentences, say what a quick answer would leave out.",
)

Context = Annotated[Path | None, typer.Option(help="Text to put before the question; - is stdin.")]
Mode = Annotated[str | None, typer.Option(help="How thoughts are injected, forward or graft.")]

NumLandmarks = Annotated[
    int | None,
    typer.Option(
        help="How many tokens of the question Streams see at most, 16 or more. Default: one "
        "in 32, 64 at least.",
        show_default=False,
    ),
]


def council(
    question: Annotated[str | None, typer.Argument(help="What to answer.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="A Stream thinks about this; may be repeated.")
    ] = None,
    role: Annotated[
        list[str] | None,
        typer.Option(help="A Stream thinks about the question in this role; may be repeated."),
    ] = None,
    file: Annotated[Path | None, typer.Option(help="A TOML file with all of this.")] = None,
    context: Context = None,
    mode: Mode = None,
    threshold: Annotated[
        float | None, typer.Option(help="Least score of a thought that is let in, -1 to 1.")
    ] = None,
    no_gate: Annotated[bool, typer.Option("--no-gate", help="Let every thought in.")] = False,
    landmarks: NumLandmarks = None,
    stream_tokens: Annotated[
        int, typer.Option(min=1, help="Longest thought, in tokens.")
    ] = MAX_TOKENS,
    wait: Annotated[
        bool, typer.Option(help="Answer when all Streams are done, or begin beside them.")
    ] = True,
    model: options.Model = options.DEFAULT_MODEL,
    system: options.System = None,
    temp: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    max_tokens: options.MaxTokens = 512,
    seed: options.Seed = None,
    kv_format: options.KVFormatName = options.DEFAULT_FORMAT,
    kv_budget: options.KVBudget = None,
    no_cache: options.NoCache = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: answer, thoughts and timings.")
    ] = False,
) -> None:
    """Have side agents think about a question, then answer it with what they found.

    Without tasks, roles and a file there are three: one checks facts, one
    doubts, one looks for gaps. Options go before what a file says; tasks and
    roles are added to its streams. Only the answer goes to stdout.
    """
    given = {"question": question, "system": system, "threshold": threshold}
    given |= {"mode": mode, "landmarks": landmarks}
    plan = _plan(file, task or [], role or [], given, no_gate)
    text = _with_context(plan.question, context)
    river = options.sampling_of(temp, top_p, max_tokens, seed)
    config = options.engine_config(kv_format, kv_budget, no_cache)
    with options.load_engine(model, config) as engine:
        agent = options.make_agent(engine, plan.system, river)
        agent.think_with(_cortex_config(plan, replace(river, max_tokens=stream_tokens)))
        watch = Watch(agent, _thoughts(plan))
        generation = _hold(agent, text, watch, wait, as_json)
        if as_json:
            settings = {"wait": wait, "context": context and str(context)} | asdict(river)
            settings |= {"stream_tokens": stream_tokens, "kv_format": engine.config.kv_format}
            print(_record(model, plan, settings, watch, generation))


# What was asked for.


def _plan(
    file: Path | None,
    tasks: Sequence[str],
    roles: Sequence[str],
    given: dict[str, Any],
    no_gate: bool,
) -> Council:
    """What a file says and options say of it.

    Raises:
        ConfigError: a wrong file, a value out of its range, or two that exclude each other.
        PromptError: a question, task or role that is empty or no text.
    """
    if no_gate and given["threshold"] is not None:
        raise ConfigError("--no-gate lets every thought in: leave out --threshold")
    plan = load(file) if file else Council()
    given = {name: value for name, value in given.items() if value is not None}
    if no_gate:
        given["threshold"] = None
    plan = replace(plan, **given)
    _check_text(plan.question, "question")
    seats = [Seat(task=_check_text(task, "task")) for task in tasks]
    seats += [Seat(role=_check_text(role, "role")) for role in roles]
    seats = [*plan.seats, *seats] or [Seat(role=role) for role in DEFAULT_ROLES]
    return replace(plan, seats=tuple(seats))


def _check_text(text: str, name: str) -> str:
    """
    Raises:
        PromptError: it is empty, or not UTF-8.
    """
    if not text.strip():
        raise PromptError(f"the {name} is empty: expected some text, as an argument or in a file")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(f"the {name} is not text: expected UTF-8 in the argument") from error
    return text


def _with_context(question: str, file: Path | None) -> str:
    """The text of a file, then the question.

    Raises:
        PromptError: the file cannot be read, or is not UTF-8.
    """
    if file is None:
        return question
    try:
        data = sys.stdin.buffer.read() if file == STANDARD else file.read_bytes()
    except OSError as error:
        raise PromptError(f"cannot read the context {file}: {error.strerror}") from error
    text = options.decoded(data, "stdin" if file == STANDARD else str(file)).strip("\n")
    return f"{text}\n\n{question}" if text else question


def _cortex_config(plan: Council, sampling: "SamplingParams") -> "CortexConfig":
    from edgecortex.warp.cortex import CortexConfig

    return CortexConfig(
        num_landmarks=plan.landmarks,
        threshold=plan.threshold,
        mode=plan.mode,
        sampling=sampling,
    )


def _thoughts(plan: Council) -> "list[Thought]":
    from edgecortex.warp.stream import Thought

    return [
        Thought(seat.task or plan.question, seat.kind, seat.role, mode=seat.mode or plan.mode)
        for seat in plan.seats
    ]


# The council itself.


def _hold(agent: "Agent", text: str, watch: Watch, wait: bool, as_json: bool) -> "Generation":
    """Asks, and shows what comes; the answer goes to stdout unless it is to be part of JSON."""
    planned = list(watch.thoughts)
    streaming = not (as_json or watch.is_live)
    generation = agent.think_with().ask(text, planned) if wait else agent.chat(text)
    try:
        with watch.shown():
            try:
                for piece in generation:
                    if not watch.answer:
                        watch.tell() if wait else _spawn(agent, planned)
                    watch.answer += piece
                    if streaming:
                        print(piece, end="", flush=True)
            except KeyboardInterrupt:
                _stop(agent, generation)
                raise
            finally:
                _close(agent, planned)
    finally:
        if watch.answer and not as_json:
            print("" if streaming else watch.answer)
    return generation


def _spawn(agent: "Agent", planned: "Sequence[Thought]") -> None:
    """Starts Streams once the River has read all: they see landmarks of it."""
    for thought in planned:
        agent.spawn(thought.task, role=thought.role, kind=thought.kind, mode=thought.mode)


def _stop(agent: "Agent", generation: "Generation") -> None:
    """Cancels the answer and waits for its end."""
    with suppress(StateError):  # it has just ended
        generation.cancel()
    with suppress(EdgeCortexError):
        generation.text()


def _close(agent: "Agent", planned: "Sequence[Thought]") -> None:
    """Cancels whatever is still being thought about: the answer is over."""
    streams = list(agent.cortex.streams) if agent.cortex else []
    for stream in streams:
        stream.close()
    for stream in streams:
        stream.result()
    for thought in planned[len(agent.thoughts) :]:
        thought.status = "cancelled"


def _record(
    model: str, plan: Council, settings: dict[str, Any], watch: Watch, generation: "Generation"
) -> str:
    """The whole council as JSON."""
    stats, own = generation.stats, ("mode", "threshold", "landmarks", "system")
    record = {
        "question": plan.question,
        "answer": watch.answer,
        "model": model,
        "settings": {name: getattr(plan, name) for name in own} | settings,
        "thoughts": [thought.to_dict() for thought in watch.thoughts],
        "stats": {
            "ttft_s": stats.ttft_s,
            "decode_tokens_per_s": stats.decode_tokens_per_s,
            "num_prompt_tokens": stats.num_prompt_tokens,
            "num_generated_tokens": stats.num_generated_tokens,
            "finish_reason": stats.finish_reason,
        },
    }
    return json.dumps(record, ensure_ascii=False)
