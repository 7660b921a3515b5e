"""`edgecortex chat`: a conversation in the terminal."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from rich.console import Console

from edgecortex.cli import lines, options, transcript
from edgecortex.errors import EdgeCortexError, StateError

if TYPE_CHECKING:
    from edgecortex import Agent, Engine, Generation
    from edgecortex.generation import GenerationStats

ENDINGS = {
    "length": "stopped at --max-tokens",
    "context": "stopped: the context is full",
    "cancelled": "stopped",
}


def chat(
    model: options.Model = options.DEFAULT_MODEL,
    system: options.System = None,
    temp: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    max_tokens: options.MaxTokens = 512,
    seed: options.Seed = None,
    kv_format: options.KVFormatName = options.DEFAULT_FORMAT,
    kv_budget: options.KVBudget = None,
) -> None:
    """Talk with a model. Ctrl-C stops an answer, Ctrl-D leaves, /help lists commands."""
    sampling = options.sampling_of(temp, top_p, max_tokens, seed)
    config = options.engine_config(kv_format, kv_budget)
    with options.load_engine(model, config) as engine:
        talk = Chat(engine, options.make_agent(engine, system, sampling))
        talk.welcome(model)
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

    def __init__(self, engine: "Engine", agent: "Agent") -> None:
        self.engine, self.agent = engine, agent
        self._last: GenerationStats | None = None
        self._console = Console(stderr=True, highlight=False, markup=False, style="dim")
        self._commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/help": (self._help, "list the commands"),
            "/stats": (self._stats, "speed of the last answer, context and KV memory"),
            "/reset": (self._reset, "forget everything but the system prompt"),
            "/save": (self._save, "write the chat to a file: /save NAME.md or /save NAME.jsonl"),
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

    def _help(self, _: str) -> None:
        for name, (_command, meaning) in self._commands.items():
            print(f"{name:<8}{meaning}")

    def _stats(self, _: str) -> None:
        if stats := self._last:
            fresh = stats.num_prompt_tokens - stats.num_cached_tokens
            print(
                f"prompt   {stats.num_prompt_tokens:,} tokens, {fresh:,} of them new; "
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
