"""The engine: one resident model and the one thread that owns MLX."""

import atexit
import contextlib
import itertools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from edgecortex import gate, sessions
from edgecortex.agent import Agent, AnswerHook
from edgecortex.config import EngineConfig, SamplingParams
from edgecortex.conversation import Conversation
from edgecortex.core import EngineCore
from edgecortex.errors import ClosedError, StoreError
from edgecortex.generation import Generation
from edgecortex.models import resolve
from edgecortex.models.adapter import LoadedModel, load_model
from edgecortex.scheduler import Request, Watcher
from edgecortex.store.cache import PersistentKVCache
from edgecortex.store.sessions import check_name

Progress = Callable[[str, int, int], None]


@dataclass
class Engine:
    """One model, many agents. Made by `Engine.load`; a context manager that closes itself.

    All of MLX runs on the engine's own thread; every method here may be called from any other.
    """

    name: str
    model: LoadedModel
    config: EngineConfig
    _inbox: "queue.SimpleQueue[Callable[[], None] | None]"
    core: EngineCore
    notice: str = ""
    _thread: threading.Thread | None = None
    _closed: bool = False
    _posting: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def load(
        cls,
        model: str = "smollm2-135m",
        *,
        config: EngineConfig | None = None,
        progress: Progress | None = None,
    ) -> "Engine":
        """Loads a model by catalogue name, repository or folder; fetches it if need be.

        Args:
            progress: called as `progress(step, done, total)` while a model is fetched.

        Raises:
            ModelError: unknown name, no network, a damaged file, or an unsupported model.
        """
        path = resolve(model, progress=progress)
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        ready: queue.SimpleQueue[Engine | Exception] = queue.SimpleQueue()
        thread = threading.Thread(
            target=cls._main,
            args=(model, path, config or EngineConfig(), inbox, ready),
            daemon=True,
        )
        thread.start()
        engine = ready.get()
        if isinstance(engine, Exception):
            raise engine
        engine._thread = thread
        return engine

    @classmethod
    def _main(cls, name: str, path: Path, config: EngineConfig, inbox: Any, ready: Any) -> None:
        try:
            model = load_model(path)
            config, notice = gate.resolved(model, config)
            engine = cls(name, model, config, inbox, EngineCore(model, config), notice)
        except Exception as error:
            ready.put(error)
        else:
            atexit.register(engine.close)
            ready.put(engine)
            engine._loop()
        finally:
            mx.clear_streams()  # a thread that leaves its streams behind aborts the interpreter

    def _loop(self) -> None:
        """Serves until the end; then nobody is left waiting, even if the end is a failure."""
        end = ClosedError("the engine was closed")
        try:
            self._serve()
        except Exception as error:
            end = ClosedError(f"the engine failed and is closed: {error!r}; load a new one")
            end.__cause__ = error
        with self._posting:
            self._closed = True
        while not self._inbox.empty():
            if call := self._inbox.get():
                with contextlib.suppress(Exception):  # after a failure anything may fail
                    call()
        self.core.cancel_all(end)
        self.core.close()

    def _serve(self) -> None:
        """Runs calls as they come and steps while anyone has an answer to make."""
        while True:
            while not (self.core.has_work and self._inbox.empty()):
                call = self._inbox.get()
                if call is None:
                    return
                call()
            self.core.step()

    @property
    def context_length(self) -> int:
        """The longest context, in tokens."""
        return self.core.context_length

    def agent(
        self,
        name: str | None = None,
        *,
        system: str | None = None,
        sampling: SamplingParams | None = None,
        priority: int = 0,
    ) -> Agent:
        """A new agent with an empty context.

        Args:
            priority: lower goes first where answers wait for room or read their prompts.

        Raises:
            ClosedError: the engine is closed.
        """
        self.check_open()
        conversation = Conversation(self.model.tokenizer, system)
        return Agent(self, _named(name), conversation, sampling or SamplingParams(), priority)

    def restore(
        self, name: str, *, sampling: SamplingParams | None = None
    ) -> tuple[Agent, sessions.Restored]:
        """The agent that was saved as session `name`, and how much of its KV came back.

        Whatever is not stored any more, or was made by another model or KV format, is read again
        from the text with the next question.

        Raises:
            StoreError: no such session, a damaged one, or no store.
            ClosedError: the engine is closed.
        """
        session = self.store.sessions.load(name)
        agent = self.agent(name, system=session.system, sampling=sampling)
        return agent, self.call(lambda: sessions.restore(self.core, agent, session))

    @property
    def store(self) -> PersistentKVCache:
        """The store that this engine keeps KV and sessions in.

        Raises:
            StoreError: there is none.
        """
        return sessions.archive_of(self.core).store

    @property
    def store_problem(self) -> StoreError | None:
        """Why nothing is kept on disk, or not all that should be."""
        archive = self.core.contexts.archive
        return archive.problem if archive else self.core.store_problem

    def close(self) -> None:
        """Ends the engine's thread; answers in progress end as cancelled. Twice is harmless."""
        with self._posting:
            self._closed, was_closed = True, self._closed
        if not was_closed:
            atexit.unregister(self.close)
            self._inbox.put(None)
            if self._thread:
                self._thread.join()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Called by agents.

    def submit(
        self,
        agent: Agent,
        prompt_ids: list[int],
        sampling: SamplingParams,
        generation: Generation,
        answered: AnswerHook,
        holder: Watcher | None = None,
    ) -> None:
        """Queues an answer to be made; a `holder` holds it when its prompt is read.

        Raises:
            ClosedError: the engine is closed.
        """
        detokenizer = self.model.tokenizer.detokenizer()
        request = Request(
            agent,
            prompt_ids,
            sampling,
            generation,
            answered,
            detokenizer,
            agent.priority,
            side=agent.side,
            held=holder is not None,
            watcher=holder or agent.watcher,
        )
        self._post(lambda: self.core.add(request))

    def fork(self, parent: Agent, name: str | None) -> Agent:
        """A copy of an agent that shares its sealed KV."""
        conversation = parent.conversation.copy()
        child = Agent(self, _named(name), conversation, parent.sampling, parent.priority)
        self.call(lambda: self._fork(parent, child))
        return child

    def _fork(self, parent: Agent, child: Agent) -> None:
        self.core.contexts.fork(parent, child)
        if parent.cortex:
            thoughts = [replace(thought) for thought in parent.cortex.accepted]
            child.think_with(parent.cortex.config).thoughts += thoughts

    def save(self, agent: Agent, name: str) -> "Future[int]":
        """Starts to keep an agent as a session."""
        check_name(name)
        return self.call(lambda: sessions.save(self.core, agent, name, self.name))

    def release(self, agent: Agent) -> None:
        """Frees an agent's KV; harmless on a closed engine, which holds none."""
        with contextlib.suppress(ClosedError):
            self._post(lambda: self._forget(agent))

    def _forget(self, agent: Agent) -> None:
        self.core.release(agent)
        if agent.cortex:
            agent.cortex.close()

    def kv_nbytes(self, agent: Agent) -> int:
        """Bytes of KV that an agent holds."""
        return self.call(lambda: self.core.kv_nbytes(agent))

    def call(self, function: Callable[[], Any]) -> Any:
        """Runs `function` on the engine's thread, between two steps, and returns its result."""
        reply: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                reply.put((function(), None))
            except Exception as error:
                reply.put((None, error))

        self._post(run)
        value, error = reply.get()
        if error:
            raise error
        return value

    def _post(self, call: Callable[[], None]) -> None:
        """Hands a call to the engine's thread, which serves all that came before its end."""
        with self._posting:
            self.check_open()
            self._inbox.put(call)

    def check_open(self) -> None:
        """
        Raises:
            ClosedError: the engine is closed.
        """
        if self._closed:
            raise ClosedError("the engine is closed; load a new one")


_agent_numbers = itertools.count(1)


def _named(name: str | None) -> str:
    return name or f"agent-{next(_agent_numbers)}"
