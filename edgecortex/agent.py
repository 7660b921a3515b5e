"""A named conversation on an engine."""

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from edgecortex.config import SamplingParams
from edgecortex.conversation import Conversation, Message
from edgecortex.errors import ClosedError, StateError
from edgecortex.generation import Generation

if TYPE_CHECKING:
    from edgecortex.engine import Engine
    from edgecortex.scheduler import Watcher
    from edgecortex.warp.cortex import Cortex, CortexConfig
    from edgecortex.warp.stream import Stream, Thought

AnswerHook = Callable[[str | None, bool], None]
"""Takes an answer's text, None if it failed, and whether a stop string cut it."""


class Agent:
    """Talks with the engine's model and remembers. Made by `Engine.agent()`.

    One answer at a time: a second `chat` while one is being made raises `StateError`. When the
    context reaches the model's limit the oldest turns are dropped, the system prompt is kept,
    and `GenerationStats.num_dropped_messages` says so. An answer that ends with an error leaves
    the conversation as it was before the question; one that is cancelled stays as far as it got.
    """

    def __init__(
        self,
        engine: "Engine",
        name: str,
        conversation: Conversation,
        sampling: SamplingParams,
        priority: int = 0,
    ) -> None:
        self.engine = engine
        self.name = name
        self.conversation = conversation
        self.sampling = sampling
        self.priority = priority
        self.closed = False
        self.created = time.time()
        self.cortex: Cortex | None = None
        self._current: Generation | None = None

    side = False

    @property
    def watcher(self) -> "Watcher | None":
        """Who follows its answers."""
        return self.cortex

    @property
    def messages(self) -> list[Message]:
        """The turns so far, oldest first, as `{"role": …, "content": …}`."""
        return self.conversation.messages

    @property
    def num_tokens(self) -> int:
        """Length of the context in tokens."""
        return len(self.conversation.token_ids)

    @property
    def kv_nbytes(self) -> int:
        """Bytes of KV that this agent holds now."""
        return self.engine.kv_nbytes(self)

    def chat(
        self,
        text: str,
        sampling: SamplingParams | None = None,
        *,
        watcher: "Watcher | None" = None,
    ) -> Generation:
        """Asks, and returns the answer as a stream of text.

        Args:
            watcher: holds the answer until it lets it go.

        Raises:
            PromptError: `text` is empty or longer than the context.
            StateError: an answer is still being made.
            ClosedError: the agent or its engine is closed.
        """
        self._check_idle("chat")
        return self._ask(text, sampling, watcher)

    def _ask(
        self, text: str, sampling: SamplingParams | None = None, watcher: "Watcher | None" = None
    ) -> Generation:
        sampling = sampling or self.sampling
        max_context = self.engine.context_length
        reserve = min(sampling.max_tokens, max_context // 4)
        prompt_ids, num_dropped = self.conversation.ask(text, max_context, reserve)
        self._current = generation = Generation()
        generation.stats.num_dropped_messages = num_dropped
        try:
            self.engine.submit(self, prompt_ids, sampling, generation, self._answered, watcher)
        except ClosedError:
            self._answered(None, False)
            raise
        return generation

    def tell(self, text: str, reply: str) -> int:
        """Adds a turn whose answer is given: nothing is generated, and its KV is computed with
        the next question, or by `read`.

        Returns: how many of the oldest messages were dropped, as the context was full.

        Raises:
            PromptError: `text` or `reply` is empty, or both are longer than the context.
            StateError: an answer is still being made.
            ClosedError: the agent is closed.
        """
        self._check_idle("tell")
        return self.conversation.tell(text, reply, self.engine.context_length)

    def think_with(self, config: "CortexConfig | None" = None) -> "Cortex":
        """Lets Streams think for this agent, which is their River, and injects what they find.

        Args:
            config: how; None leaves it as it is, or takes the defaults.

        Raises:
            StateError: it cannot be changed while Streams are thinking.
        """
        from edgecortex.warp.cortex import Cortex, CortexConfig

        if config is not None and self.cortex and self.cortex.streams:
            raise StateError(
                f"cannot change how Streams think for {self.name!r}: {len(self.cortex.streams)} "
                "are thinking; wait for their results, or close them"
            )
        if self.cortex is None or config is not None:
            thoughts = self.cortex.thoughts if self.cortex else []
            self.cortex = Cortex(self, config or CortexConfig(), thoughts)
        return self.cortex

    def spawn(self, task: str, *, role: str = "", kind: str = "TASK", mode: str = "") -> "Stream":
        """Gives a task to a side agent, which thinks about it on a compressed view of this one's
        context. What it finds is injected if it fits in: see `thoughts`.

        Args:
            role: what kind of helper it is to be, in words.
            mode: `forward` or `graft`; the cortex's own if empty.

        Raises:
            PromptError: the task is empty; one that is too long is a failed thought.
            ConfigError: no such mode.
            ClosedError: the agent or its engine is closed.
        """
        if self.closed:
            raise ClosedError(f"cannot spawn: agent {self.name!r} is closed; make a new one")
        return self.think_with().spawn(task, role=role, kind=kind, mode=mode)

    @property
    def thoughts(self) -> "list[Thought]":
        """Of its Streams, in the order in which they began."""
        return self.cortex.thoughts if self.cortex else []

    def take_back(self, id: str) -> "Thought":
        """Removes an accepted thought, by its id or how that begins, as if it had never been there.

        Raises:
            StateError: there is no such thought, or an answer is still being made.
            ClosedError: the agent or its engine is closed.
        """
        self._check_idle("take back a thought")
        return self.think_with().take_back(id)

    def fork(self, name: str | None = None) -> "Agent":
        """A new agent that has lived through the same conversation and goes on by itself.

        Costs one row of full-precision KV: all sealed KV is shared. Where there is no room for
        the row now, the child's KV is computed anew when it is asked something.

        Raises:
            StateError: an answer is still being made.
            ClosedError: the agent or its engine is closed.
        """
        self._check_idle("fork")
        return self.engine.fork(self, name)

    def save(self, name: str) -> "Future[int]":
        """Keeps the agent as a session, in the background: `Engine.restore(name)` brings it back.

        Returns: a future; once it has a result (the bytes written) the session is durable. Its
        error is a StoreError.

        Raises:
            StateError: an answer is still being made.
            StoreError: no name for a session, or the engine has no store.
            ClosedError: the agent or its engine is closed.
        """
        self._check_idle("save")
        return self.engine.save(self, name)

    def read(self) -> int:
        """Reads into KV what of the conversation is not there, and waits for it.

        Returns: how many tokens were read anew.

        Raises:
            StateError: an answer is still being made.
            BudgetError: there is no room.
            ClosedError: the agent or its engine is closed.
        """
        self._check_idle("read")
        ids = self.conversation.catch_up()
        if not 0 < len(ids) < self.engine.context_length:
            return 0  # what does not fit is shortened with the next question
        if self.engine.call(lambda: self.engine.core.contexts.holds(self, ids)):
            return 0
        self._current = generation = Generation()
        sampling = SamplingParams(max_tokens=1)  # the token itself is let go
        self.engine.submit(self, ids, sampling, generation, self._has_read)
        generation.text()
        return generation.stats.num_prompt_tokens - generation.stats.num_cached_tokens

    def _has_read(self, _text: str | None, _cut: bool) -> None:
        self._current = None

    def reset(self) -> None:
        """Forgets all turns but the system prompt, and frees the KV.

        Raises:
            StateError: an answer is still being made.
            ClosedError: the agent is closed.
        """
        self._check_idle("reset")
        self.conversation.reset()
        self.engine.release(self)

    def close(self) -> None:
        """Frees the agent's KV. Closing twice is harmless; an answer in progress is cancelled."""
        if generation := self._current:
            with contextlib.suppress(StateError):  # it has just ended, or is about to
                generation.cancel()
        if not self.closed:
            self.closed = True
            self.engine.release(self)

    def _answered(self, text: str | None, cut: bool) -> None:
        """Called on the engine's thread when an answer is complete, before its consumer sees it."""
        generation, self._current = self._current, None
        if self.cortex and generation:
            self.cortex.river_ended(text is not None and not generation.cancelled)
        if text is None or generation is None:
            self.conversation.withdraw()
        else:
            self.conversation.answered(text, generation.token_ids, cut)

    def _check_idle(self, action: str) -> None:
        if self.closed:
            raise ClosedError(f"cannot {action}: agent {self.name!r} is closed; make a new one")
        if self._current is not None:
            raise StateError(
                f"cannot {action}: agent {self.name!r} is still answering; "
                "read the answer to its end, or cancel it"
            )
