"""`edgecortex chat`: a conversation in the terminal."""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from edgecortex.cli import kept, lines, options, transcript
from edgecortex.errors import ConfigError, EdgeCortexError, StateError
from edgecortex.kv.format import AUTO, FORMATS

if TYPE_CHECKING:
    from edgecortex import Agent, Engine, Generation, SamplingParams
    from edgecortex.generation import GenerationStats
    from edgecortex.store import sessions as saved_sessions

ENDINGS = {
    "length": "stopped at --max-tokens",
    "context": "stopped: the context is full",
    "cancelled": "stopped",
}


Session = Annotated[
    str | None,
    typer.Option(
        "--session",
        help="Go on with the session of this name, or begin it; it is kept after every answer.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A catalogue name, a folder, a .gguf file or owner/repository. "
        f"Default: the session's, or {options.DEFAULT_MODEL}",
        show_default=False,
    ),
]
KVFormatName = Annotated[
    str | None,
    typer.Option(
        "--kv-format",
        help=f"How KV is stored, one of: {', '.join([AUTO, *FORMATS])}. "
        f"Default: the session's, or {options.DEFAULT_FORMAT}",
        show_default=False,
    ),
]


def chat(
    model: Model = None,
    session: Session = None,
    system: options.System = None,
    temp: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    max_tokens: options.MaxTokens = 512,
    seed: options.Seed = None,
    kv_format: KVFormatName = None,
    kv_budget: options.KVBudget = None,
    no_cache: options.NoCache = False,
) -> None:
    """Talk with a model. Ctrl-C stops an answer, Ctrl-D leaves, /help lists commands."""
    sampling = options.sampling_of(temp, top_p, max_tokens, seed)
    with kept.opened(session, no_cache) as saved:
        if saved and system is not None:
            raise ConfigError("the session has its system prompt: leave --system out")
        model = model or (saved.model if saved else options.DEFAULT_MODEL)
        kv_format = kv_format or (saved.kv_format if saved else options.DEFAULT_FORMAT)
        config = options.engine_config(kv_format, kv_budget, no_cache)
        with options.load_engine(model, config) as engine:
            talk = Chat(engine, options.make_agent(engine, system, sampling), session)
            talk.welcome(model)
            if saved:
                talk.resume(saved, sampling)
            _converse(talk)
            talk.finish()


def _converse(talk: "Chat") -> None:
    """Takes lines to the last; at a terminal an error is a note, else it ends the program."""
    interactive = lines.is_interactive()
    for line in lines.typed_lines(talk.note) if interactive else lines.piped_lines():
        try:
            talk.take(line.strip())
        except EOFError:
            return
        except EdgeCortexError as error:
            if not interactive:
                raise
            talk.note(str(error))


class Chat:
    """Answers lines and obeys commands. Answers go to stdout, notes to stderr."""

    def __init__(self, engine: "Engine", agent: "Agent", session: str | None = None) -> None:
        self.engine, self.agent, self.session = engine, agent, session
        self._problem = engine.store_problem
        self._saving: Future[int] | None = None
        self._last: GenerationStats | None = None
        self._console = Console(stderr=True, highlight=False, markup=False, style="dim")
        self._commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/help": (self._help, "list the commands"),
            "/stats": (self._stats, "speed of the last answer, context and KV memory"),
            "/reset": (self._reset, "forget everything but the system prompt"),
            "/save": (self._save, "write the chat to a file: /save NAME.md or /save NAME.jsonl"),
            "/session": (self._keep, "keep the chat as a session from now on: /session NAME"),
            "/quit": (self._quit, "leave, as Ctrl-D does"),
        }

    def note(self, text: str) -> None:
        self._console.print(text, soft_wrap=not self._console.is_terminal)

    def welcome(self, model: str) -> None:
        """Says what runs where, and which larger models would run here."""
        from edgecortex.doctor import device_name
        from edgecortex.models.catalogue import catalogue, larger
        from edgecortex.models.machine import this_machine

        device = self.engine.call(device_name)
        self.note(f"{model}, context of {self.engine.context_length:,} tokens, {device}")
        if model in catalogue() and (others := larger(model, self.engine.call(this_machine))):
            names = ", ".join(entry.name for entry in others)
            self.note(f"This machine could also run larger models with --model: {names}")

    def resume(self, saved: "saved_sessions.Session", sampling: "SamplingParams") -> None:
        """Goes on with a session, and shows where it was left."""
        self.agent.close()
        self.agent, came = self.engine.restore(saved.name, sampling=sampling)
        known = came.num_memory_tokens + came.num_disk_tokens
        self.note(
            f"session {saved.name}: {len(saved.messages)} messages, {known:,} of "
            f"{came.num_tokens:,} tokens back in {came.seconds:.2f} s"
        )
        if came.notice:
            self.note(came.notice)
        for message in saved.messages[-2:]:
            if message["role"] != "system":
                self.note(f"{message['role']}: {message['content']}")

    def finish(self) -> None:
        """Waits until the session is durable.

        Raises:
            StoreError: it could not be saved.
        """
        if self._saving:
            self._saving.result()
            self.note(f"session {self.session} is saved")

    def take(self, line: str) -> None:
        """Answers a line, or obeys it if it is a command.

        Raises:
            EOFError: the command was to leave.
        """
        if line.startswith("/"):
            name, _, rest = line.partition(" ")
            if name in self._commands:
                self._commands[name][0](rest.strip())
            else:
                self.note(f"unknown command {name}; there are {', '.join(self._commands)}")
        elif line:
            self._answer(line)

    def _answer(self, text: str) -> None:
        generation = self.agent.chat(text)
        self._last = generation.stats
        if dropped := generation.stats.num_dropped_messages:
            self.note(f"the context is full: the oldest {dropped} messages were dropped")
        with _interrupt_cancels(generation):
            for piece in generation:
                print(piece, end="", flush=True)
        print(flush=True)
        if generation.stats.finish_reason in ENDINGS:
            self.note(f"({ENDINGS[generation.stats.finish_reason]})")
        if self.session:
            self._saving = self.agent.save(self.session)
        elif (problem := self.engine.store_problem) and problem is not self._problem:
            self._problem = problem
            self.note(f"nothing is kept on disk: {problem}")

    def _help(self, _: str) -> None:
        for name, (_command, meaning) in self._commands.items():
            print(f"{name:<9}{meaning}")

    def _stats(self, _: str) -> None:
        if stats := self._last:
            fresh = stats.num_prompt_tokens - stats.num_cached_tokens
            print(
                f"prompt   {stats.num_prompt_tokens:,} tokens: {stats.num_memory_tokens:,} from "
                f"memory, {stats.num_disk_tokens:,} from disk, {fresh:,} read anew; "
                f"first token after {stats.ttft_s:.2f} s ({stats.prefill_tokens_per_s:.0f} tok/s)\n"
                f"answer   {stats.num_generated_tokens:,} tokens "
                f"({stats.decode_tokens_per_s:.1f} tok/s)"
            )
        used, limit = self.agent.num_tokens, self.engine.context_length
        print(f"context  {used:,} of {limit:,} tokens; KV {self.agent.kv_nbytes / 1e6:.1f} MB")

    def _reset(self, _: str) -> None:
        self.agent.reset()
        self._last = None
        self.note("forgotten")

    def _save(self, name: str) -> None:
        self.note(f"saved to {transcript.save(self.agent.messages, name)}")

    def _keep(self, name: str) -> None:
        if name:
            self.engine.store.sessions.check_free(name)
            self.session, self._saving = name, self.agent.save(name)
        self.note(f"kept as session {self.session}" if self.session else "kept as no session")

    def _quit(self, _: str) -> None:
        raise EOFError


@contextmanager
def _interrupt_cancels(generation: "Generation") -> Iterator[None]:
    """Ctrl-C ends the answer rather than the program."""

    def cancel(*_: object) -> None:
        with suppress(StateError):  # it has been pressed before, or the answer has just ended
            generation.cancel()

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
