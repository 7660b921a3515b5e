"""A side agent, and what it thought."""

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from edgecortex.agent import Agent
from edgecortex.errors import StateError
from edgecortex.generation import Generation
from edgecortex.kv.context import Context

if TYPE_CHECKING:
    from edgecortex.conversation import Conversation
    from edgecortex.warp.cortex import Cortex
    from edgecortex.warp.router import CortexRouter

PROMPTS = {
    "SEARCH": "Look in what was said so far for this: {}",
    "CODE": "Write this code: {}",
    "CHECK": "Check whether this is right: {}",
}


@dataclass
class Thought:
    """One task given to a Stream, and what became of it.

    `origin` says who wanted it: `asked` (by a caller), `planned` (with a question) or `routed` (by
    the River itself). `status` is `waiting`, `thinking`, `accepted`, `rejected`, `failed` or
    `cancelled`, and `reason` says why where that needs saying. `score` is the gate's. An
    accepted one has an `id`, and the River sees its `num_tokens` tokens, from position `start` on,
    since its own token number `at`. The Stream said `num_said` tokens: as many as it may say at
    most if it was cut short. Times are in seconds: `think_s` of the Stream, `inject_s` of judging
    and injecting.
    """

    task: str
    kind: str = "TASK"
    role: str = ""
    origin: str = "asked"
    text: str = ""
    status: str = "waiting"
    reason: str = ""
    score: float | None = None
    mode: str = "forward"
    id: str = ""
    at: int = 0
    start: int = 0
    num_tokens: int = 0
    num_said: int = 0
    think_s: float = 0.0
    inject_s: float = 0.0

    @property
    def prompt(self) -> str:
        """What its Stream is asked."""
        task = PROMPTS.get(self.kind, "{}").format(self.task)
        return f"{self.role}\n{task}".strip()

    @property
    def ended(self) -> bool:
        return self.status not in ("waiting", "thinking")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Thought":
        """What `to_dict` made, by this version or another."""
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


class Stream(Agent):
    """Thinks about one task on its River's landmarks. Made by `Agent.spawn`.

    Like any agent it can be closed, listened to through `generation`, which is there once it has
    begun, and asked on when its thought is decided: until then that raises `StateError`.
    """

    def __init__(
        self,
        owner: "Cortex",
        name: str,
        conversation: "Conversation",
        thought: Thought,
        router: "CortexRouter",
    ) -> None:
        river, sampling = owner.river, owner.config.sampling
        super().__init__(river.engine, name, conversation, sampling, river.priority + 1)
        self.owner, self.thought, self.router = owner, thought, router
        self.generation: Generation | None = None
        self.ended = threading.Event()
        self.num_known = len(river.conversation.token_ids)  # tokens that its River had been told

    side = True

    @property
    def river(self) -> Agent:
        """The agent that it thinks for."""
        return self.owner.river

    @property
    def watcher(self) -> "Stream | None":
        return None if self.thought.ended else self

    def result(self, timeout: float | None = None) -> Thought:
        """Waits for the thought to be accepted or not.

        Raises:
            StateError: that took longer than `timeout` seconds.
        """
        if not self.ended.wait(timeout):
            raise StateError(
                f"{self.name!r} is still thinking after {timeout} s; wait, or close it"
            )
        return self.thought

    def begin(self) -> None:
        """Asks for the thought. On the engine's thread.

        Raises:
            PromptError: the task is too long.
            ClosedError: the engine is closed.
        """
        self.generation = self._ask(self.thought.prompt)

    def _check_idle(self, action: str) -> None:
        super()._check_idle(action)
        if not self.ended.is_set():
            raise StateError(
                f"cannot {action}: the thought of {self.name!r} is not decided yet; "
                "wait for its result, or close it"
            )

    # As a watcher of its own answer.

    def admitted(self, context: Context) -> None:
        self.thought.status = "thinking"

    def has_read(self) -> None:
        pass

    def heard(self, text: str) -> None:
        self.thought.text += text
        self.owner.heard_by(self.router, text)

    def _answered(self, text: str | None, cut: bool) -> None:
        generation = self._current
        super()._answered(text, cut)
        if generation is not None and not self.thought.ended:
            self.thought.num_said = generation.stats.num_generated_tokens
            self.owner.thought_of(self, text, generation)
