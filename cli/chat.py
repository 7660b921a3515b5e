"""`edgecortex chat`: a conversation in the terminal."""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from edgecortex.cli import kept, lines, options, transcript
from edgecortex.cli.thoughts import MAX_TOKENS, Listener, News, asked_of, line_of, verdict_of
from edgecortex.errors import ConfigError, EdgeCortexError, StateError, StoreError
from edgecortex.kv.format import AUTO, FORMATS

if TYPE_CHECKING:
    from edgecortex import Agent, Engine, Generation, SamplingParams
    from edgecortex.generation import GenerationStats
    from edgecortex.store import sessions as saved_sessions
    from edgecortex.warp.cortex import CortexConfig

ENDINGS = {
    "length": "stopped at --max-tokens",
    "context": "stopped: the context is full",
    "cancelled": "stopped",
}
COUNCIL_SYSTEM = f"{options.DEFAULT_SYSTEM} Helpers think about what you write in [TASK: ...]."
# A small model does as it did before, not as it is told: these come first.
EXAMPLES = (
    (
        "Why do cats purr?",
        "Cats purr mostly when they are content. They may also purr when they are hurt or afraid, "
        "to calm themselves. [TASK: Find out how cats make that sound.]",
    ),
    (
        "How do I make tea?",
        "Boil fresh water and pour it over the leaves. Wait for three to five minutes, take the "
        "leaves out, and add milk or sugar if you like. [TASK: List what can go wrong with tea.]",
    ),
    (
        "Who was Marie Curie?",
        "Marie Curie was a physicist and chemist. She discovered polonium and radium, and won two "
        "Nobel Prizes. [TASK: Name the two Nobel Prizes of Marie Curie.]",
    ),
)


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
    council: Annotated[
        bool,
        typer.Option("--council", help="Let side agents do what the model asks for in [TASK: …]."),
    ] = False,
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
            taught = council and system is None and engine.model.tokenizer.has_chat_template
            agent = options.make_agent(engine, COUNCIL_SYSTEM if taught else system, sampling)
            talk = Chat(engine, agent, session, council=council)
            with talk.held:
                talk.welcome(model)
                if saved:
                    talk.resume(saved, sampling)
                elif taught:
                    talk.teach()
                interactive = lines.is_interactive()
                _converse(talk, interactive)
                talk.finish(wait=not interactive)


def _converse(talk: "Chat", interactive: bool) -> None:
    """Takes lines to the last; at a terminal an error is a note, else it ends the program."""
    for line in lines.typed_lines(talk) if interactive else lines.piped_lines():
        try:
            talk.take(line.strip())
        except EOFError:
            return
        except EdgeCortexError as error:
            if not interactive:
                raise
            talk.note(str(error))


class Chat:
    """Answers lines and obeys commands. Answers go to stdout, notes to stderr. A session that
    `/session` begins is locked until `held` is closed."""

    def __init__(
        self, engine: "Engine", agent: "Agent", session: str | None = None, council: bool = False
    ) -> None:
        self.engine, self.agent, self.session = engine, agent, session
        self.held = ExitStack()
        self._council, self._taught = council, False
        self._problem = engine.store_problem
        self._saving: Future[int] | None = None
        self._unsaved = False
        self._last: GenerationStats | None = None
        self._news = News()
        self._console = Console(stderr=True, highlight=False, markup=False, style="dim")
        self._commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/help": (self._help, "list the commands"),
            "/stats": (self._stats, "speed of the last answer, context and KV memory"),
            "/task": (self._task, "have a side agent think about something: /task TEXT"),
            "/thoughts": (self._thoughts, "all thoughts of side agents, and what became of them"),
            "/forget": (self._forget, "take an accepted thought back: /forget ID"),
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
        if self.agent.cortex:
            self.agent.think_with(self._thinking())
        num_thoughts = len(self._news.told(self.agent.thoughts))
        self.note(
            f"session {saved.name}: {len(saved.messages)} messages, "
            + f"{num_thoughts} thoughts, " * bool(num_thoughts)
            + f"{known:,} of {came.num_tokens:,} tokens back in {came.seconds:.2f} s"
        )
        if came.notice:
            self.note(came.notice)
        for message in saved.messages[-2:]:
            if message["role"] != "system":
                self.note(f"{message['role']}: {message['content']}")

    def teach(self) -> None:
        """Puts examples first in which the model asks for helpers."""
        self._taught = True
        for question, reply in EXAMPLES:
            self.agent.tell(question, reply)

    def finish(self, wait: bool) -> None:
        """Waits for what is being thought about, or stops it, and until the session is durable.

        Raises:
            StoreError: it could not be saved.
        """
        streams = list(self.agent.cortex.streams) if self.agent.cortex else []
        for stream in streams:
            if not wait:
                stream.close()
            stream.result()
        self.tell_news()
        if self._saving:
            self._saving.result()
            self.note(f"session {self.session} is saved")

    def has_news(self) -> bool:
        return bool(self._news.of(self.agent.thoughts))

    def tell_news(self) -> None:
        """Notes what became of thoughts; a session keeps those that were accepted.

        Raises:
            StoreError: it cannot be saved.
        """
        width = self._console.width if self._console.is_terminal else None
        for number, thought in self._news.told(self.agent.thoughts):
            self._unsaved |= thought.status == "accepted"
            self.note(line_of(number, thought, width))
        if self.session and self._unsaved:
            self._unsaved, self._saving = False, self.agent.save(self.session)

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
        self.tell_news()

    def _answer(self, text: str) -> None:
        self._wait_until_kept()
        listener = Listener(self._river()) if self._council else None
        generation = self.agent.chat(text)
        self._unsaved = True
        self._last = generation.stats
        if dropped := generation.stats.num_dropped_messages:
            self.note(f"the context is full: the oldest {dropped} messages were dropped")
        with _interrupt_cancels(generation):
            for piece in generation:
                print(piece, end="", flush=True)
                if listener:
                    listener.hear(piece)
        if listener:
            listener.end(not generation.cancelled)
        print(flush=True)
        if generation.stats.finish_reason in ENDINGS:
            self.note(f"({ENDINGS[generation.stats.finish_reason]})")
        problem = self.engine.store_problem
        if not self.session and problem and problem is not self._problem:
            self._problem = problem
            self.note(f"nothing is kept on disk: {problem}")

    def _wait_until_kept(self) -> None:
        """Waits until all that was said is durable; if it cannot be, says so and tries again
        with the next answer."""
        try:
            if self._saving:
                self._saving.result()
        except StoreError as error:
            self._saving, self._unsaved = None, True
            self.note(f"session {self.session} is not saved: {error}")

    def _help(self, _: str) -> None:
        for name, (_command, meaning) in self._commands.items():
            print(f"{name:<10}{meaning}")

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

    def _task(self, text: str) -> None:
        if not any(message["role"] == "user" for message in self.agent.messages):
            raise StateError("there is nothing to think about yet: ask something first")
        with self._console.status("reading"):
            self.agent.read()  # it may have moved to disk, or be another model's
        self._river().spawn(text)

    def _river(self) -> "Agent":
        """The agent, once that side agents think for it as this chat has it."""
        if self.agent.cortex is None:
            self.agent.think_with(self._thinking())
        return self.agent

    def _thinking(self) -> "CortexConfig":
        from edgecortex.warp.cortex import CortexConfig

        sampling = replace(self.agent.sampling, max_tokens=MAX_TOKENS)
        return CortexConfig(num_landmarks=None, sampling=sampling)

    def _thoughts(self, _: str) -> None:
        out = Console(highlight=False, markup=False)
        for number, thought in enumerate(self.agent.thoughts, 1):
            id = thought.id[:8] if thought.status == "accepted" else "-"
            line = f"{number}. {id} {asked_of(thought)} → {verdict_of(thought)}"
            out.print(line, soft_wrap=not out.is_terminal)
        if not self.agent.thoughts:
            self.note("no thoughts so far")

    def _forget(self, id: str) -> None:
        thought = self.agent.take_back(id)
        self._unsaved = True
        self.note(f"taken back: {thought.text}")

    def _reset(self, _: str) -> None:
        self.agent.reset()
        self._last = None
        self._news = self.engine.call(News)  # on its thread the thoughts are gone by then
        self._unsaved = True
        if self._taught:
            self.teach()
        self.note("forgotten")

    def _save(self, name: str) -> None:
        self.note(f"saved to {transcript.save(self.agent.messages, name)}")

    def _keep(self, name: str) -> None:
        if name and name != self.session:
            self._begin(name)
        self.note(f"kept as session {self.session}" if self.session else "kept as no session")

    def _begin(self, name: str) -> None:
        with ExitStack() as held:
            held.enter_context(self.engine.store.sessions.reserved(name))
            self.session, self._saving = name, self.agent.save(name)
            self.held.enter_context(held.pop_all())

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
