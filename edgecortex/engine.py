"""The engine: one resident model and the one thread that owns MLX."""

import atexit
import itertools
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from edgecortex.agent import Agent, AnswerHook
from edgecortex.config import EngineConfig, SamplingParams
from edgecortex.conversation import Conversation
from edgecortex.core import EngineCore
from edgecortex.errors import ClosedError
from edgecortex.generation import Generation
from edgecortex.models import resolve
from edgecortex.models.adapter import LoadedModel, load_model
from edgecortex.scheduler import Request

Progress = Callable[[str, int, int], None]


@dataclass
class Engine:
    """One model, many agents. Made by `Engine.load`; a context manager that closes itself.

    All of MLX runs on the engine's own thread; every method here may be called from any other.
    """

    model: LoadedModel
    config: EngineConfig
    _inbox: "queue.SimpleQueue[Callable[[], None] | None]"
    core: EngineCore
    _thread: threading.Thread | None = None
    _closed: bool = False

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
            target=cls._main, args=(path, config or EngineConfig(), inbox, ready), daemon=True
        )
        thread.start()
        engine = ready.get()
        if isinstance(engine, Exception):
            raise engine
        engine._thread = thread
        return engine

    @classmethod
    def _main(cls, path: Path, config: EngineConfig, inbox: Any, ready: Any) -> None:
        try:
            model = load_model(path)
            engine = cls(model, config, inbox, EngineCore(model, config))
        except Exception as error:
            ready.put(error)
        else:
            atexit.register(engine.close)
            ready.put(engine)
            engine._loop()
        finally:
            mx.clear_streams()  # a thread that leaves its streams behind aborts the interpreter

    def _loop(self) -> None:
        """Serves calls as they come and steps while anyone has an answer to make."""
        while True:
            while not (self.core.has_work and self._inbox.empty()):
                call = self._inbox.get()
                if call is None:
                    self.core.cancel_all()
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
    ) -> Agent:
        """A new agent with an empty context."""
        self._check_open()
        name = name or f"agent-{next(_agent_numbers)}"
        conversation = Conversation(self.model.tokenizer, system)
        return Agent(self, name, conversation, sampling or SamplingParams())

    def close(self) -> None:
        """Ends the engine's thread; answers in progress end as cancelled. Twice is harmless."""
        if not self._closed:
            self._closed = True
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
    ) -> None:
        """Queues an answer to be made."""
        self._check_open()
        detokenizer = self.model.tokenizer.detokenizer()
        request = Request(agent, prompt_ids, sampling, generation, answered, detokenizer)
        self._inbox.put(lambda: self.core.add(request))

    def release(self, agent: Agent) -> None:
        """Frees an agent's KV."""
        if not self._closed:
            self._inbox.put(lambda: self.core.release(agent))

    def kv_nbytes(self, agent: Agent) -> int:
        """Bytes of KV that an agent holds."""
        return self.call(lambda: self.core.kv_nbytes(agent))

    def call(self, function: Callable[[], Any]) -> Any:
        """Runs `function` on the engine's thread, between two steps, and returns its result."""
        self._check_open()
        reply: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                reply.put((function(), None))
            except Exception as error:
                reply.put((None, error))

        self._inbox.put(run)
        value, error = reply.get()
        if error:
            raise error
        return value

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the engine is closed; load a new one")


_agent_numbers = itertools.count(1)
