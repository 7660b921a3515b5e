"""`Cortex`: a River's Streams, and what of their thoughts it gets to know.

Everything marked so runs on the engine's thread, between steps.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from edgecortex.config import SamplingParams
from edgecortex.contexts import Foreign
from edgecortex.conversation import Conversation
from edgecortex.errors import ConfigError, PromptError, StateError
from edgecortex.generation import Generation
from edgecortex.kv.context import Attachment, Context
from edgecortex.warp import injection
from edgecortex.warp.gate import THRESHOLD, ValidationGate
from edgecortex.warp.judge import Along, Pieces, judge
from edgecortex.warp.router import KINDS, CortexRouter, RouterLimits
from edgecortex.warp.stream import Stream, Thought
from edgecortex.warp.synapse import NUM_LANDMARKS, Synapse, follow, trace

if TYPE_CHECKING:
    from edgecortex.agent import Agent
    from edgecortex.core import EngineCore

DONE = object()


@dataclass(frozen=True)
class CortexConfig:
    """How a River's Streams work.

    `kinds` and `limits` (of an answer) are the router's, which listens if `listens`; `rule`,
    `num_landmarks` (None: as many as the context's length asks for) and `refresh` the synapse's;
    `threshold` the gate's, None lets every thought through. `mode` is how thoughts are injected:
    `forward` or `graft`. All of them together are at most `max_share` of the River's tokens, or
    `judge.ALLOWANCE` tokens if that is more.

    Raises:
        ConfigError: a value out of its range.
    """

    listens: bool = False
    kinds: tuple[str, ...] = KINDS
    limits: RouterLimits = field(default_factory=RouterLimits)
    rule: str = "matched"
    num_landmarks: int | None = NUM_LANDMARKS
    refresh: int = 256
    threshold: float | None = THRESHOLD
    mode: str = "forward"
    max_share: float = 0.25
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=64))

    def __post_init__(self) -> None:
        injection.check_mode(self.mode)
        if not 0 < self.max_share <= 1:
            raise ConfigError(f"max_share must be above 0 and at most 1, got {self.max_share!r}")
        CortexRouter(self.kinds, self.limits)  # each raises what is wrong with its own
        Synapse(self.rule, self.num_landmarks, self.refresh)
        ValidationGate(self.least_score)

    @property
    def least_score(self) -> float:
        """The gate's threshold as a number: every score reaches -1."""
        return -1.0 if self.threshold is None else self.threshold


class Cortex:
    """One River's synapse, router, gate and Streams. Made by `Agent.think_with`."""

    def __init__(self, river: "Agent", config: CortexConfig, thoughts: list[Thought]) -> None:
        self.river, self.config = river, config
        self.synapse = Synapse(config.rule, config.num_landmarks, config.refresh)
        self.gate = ValidationGate(config.least_score, self.core.states)
        self.router = CortexRouter(config.kinds, config.limits)
        self.thoughts = list(thoughts)
        self.streams: list[Stream] = []
        self._awaiting: list[Stream] = []  # those that have not begun; a job is there for them
        self._judging: deque[tuple[Stream, Pieces]] = deque()  # whose first a job is there for
        self._num_answers = 0  # of the River that are over

    @property
    def core(self) -> "EngineCore":
        return self.river.engine.core

    # For any thread.

    def spawn(self, task: str, *, role: str = "", kind: str = "TASK", mode: str = "") -> Stream:
        """Gives a task to a new Stream; one that is too long is a failed thought.

        Raises:
            PromptError: the task is empty.
            ConfigError: no such mode.
            ClosedError: the engine is closed.
        """
        thought = self._new(task, kind, role, mode, "asked")
        stream: Stream = self.river.engine.call(lambda: self._start(thought, self.router))
        return stream

    def ask(
        self, text: str, tasks: Sequence[Thought], sampling: SamplingParams | None = None
    ) -> Generation:
        """Asks the River, and has Streams think about these tasks as soon as it has read the
        question; its answer begins when they are done.

        Raises:
            PromptError: the question or a task is empty, or the question too long.
            StateError: an answer is still being made.
            ClosedError: the agent or its engine is closed.
        """
        planned = [self._new(t.task, t.kind, t.role, t.mode, "planned") for t in tasks]
        return self.river.chat(text, sampling, watcher=Held(self, planned))

    def take_back(self, id: str) -> Thought:
        """Removes an accepted thought from the River's context, as if it had never been there:
        what was said since then is read again with the next question.

        Raises:
            StateError: there is no such thought.
        """
        found = [t for t in self.accepted if t.id == id or (len(id) >= 4 and t.id.startswith(id))]
        if found:
            self.river.engine.call(lambda: self.core.contexts.lift(self.river, found[0].id))
            found[0].status, found[0].reason = "rejected", "taken back"
            return found[0]
        known = ", ".join(thought.id[:8] for thought in self.accepted) or "none"
        raise StateError(f"no thought {id!r} to take back; there are: {known}")

    @property
    def accepted(self) -> list[Thought]:
        """The thoughts that the River sees."""
        return [thought for thought in self.thoughts if thought.status == "accepted"]

    def _new(self, task: str, kind: str, role: str, mode: str, origin: str) -> Thought:
        if not task.strip():
            raise PromptError("the task is empty: expected some text, got none")
        mode = mode or self.config.mode
        injection.check_mode(mode)
        return Thought(task.strip(), kind, role, origin, mode=mode)

    # On the engine's thread: the River.

    def admitted(self, context: Context) -> None:
        """The River's answer has got a context: what it asks for is counted anew."""
        self.router.reset()
        self.synapse.forget(context.position)
        follow(self.core.runner, context)

    def has_read(self) -> None:
        pass

    def start_planned(self, planned: Sequence[Thought]) -> None:
        """The River has read the question that these tasks go with."""
        for thought in planned:
            self._start(thought, self.router)
        self._let_go()

    def heard(self, text: str) -> None:
        self.heard_by(self.router, text)

    def heard_by(self, router: CortexRouter, text: str) -> None:
        """What a router finds in text is started."""
        if self.config.listens:
            for trigger in router.feed(text):
                thought = self._new(trigger.text, trigger.kind, "", "", "routed")
                self.core.defer(partial(self._start_routed, thought, router, self._num_answers))

    def river_ended(self, whole: bool) -> None:
        """The River's answer is over: what it asked for by itself is stopped, and all that was
        planned with it if it did not come to its end."""
        self.router.finish()
        self._num_answers += 1
        for stream in list(self.streams):
            routed, planned = (stream.thought.origin == x for x in ("routed", "planned"))
            if routed or (planned and not whole):
                self._stop(stream)

    def close(self) -> None:
        """The River forgets everything."""
        for stream in list(self.streams):
            self._stop(stream)
        self.synapse.forget()
        self.router.reset()
        self.thoughts = []
        self._num_answers += 1

    def _stop(self, stream: Stream) -> None:
        stream.thought.status = "cancelled"
        if stream.generation:
            stream.generation.cancelled = True  # it may not be queued yet
        self.core.release(stream)
        self._end(stream, "cancelled", "")

    # On the engine's thread: Streams.

    def _start_routed(self, thought: Thought, router: CortexRouter, num_answers: int) -> None:
        """Starts what was asked for in an answer, unless that is over by now."""
        if num_answers == self._num_answers:
            self._start(thought, router)
        else:
            thought.status = "cancelled"
            self.thoughts.append(thought)

    def _start(self, thought: Thought, router: CortexRouter) -> Stream:
        """Makes a Stream, which thinks as soon as there are landmarks."""
        self.thoughts.append(thought)
        name = f"{self.river.name}/{len(self.thoughts)}"
        stream = Stream(self, name, self._conversation(), thought, router.child())
        self.streams.append(stream)
        self._awaiting.append(stream)
        if len(self._awaiting) == 1:
            self.core.defer(self._prepare)
        return stream

    def _prepare(self) -> None:
        """Has the Streams that wait begin, or collects landmarks of one more layer for them."""
        failed = None
        try:
            self.river.engine.check_open()
            if self._look():
                self.core.defer(self._prepare)
                return
        except Exception as error:  # whatever it is, it is theirs
            failed = error
        self.synapse.stop()
        awaiting, self._awaiting = self._awaiting, []
        for stream in awaiting:
            self._begin(stream, failed)

    def _look(self) -> bool:
        """Goes on collecting the River's landmarks, if anyone is to have them. Returns whether
        there are more to come."""
        waiting = [each for each in self._awaiting if not (each.closed or each.thought.ended)]
        context = next(filter(None, map(self._visible_to, waiting)), None)
        if context is None:
            return False
        runner = self.core.runner
        with self.core.pool.kept(context):
            return trace(runner, context) or not self.synapse.grow(runner, context)

    def _begin(self, stream: Stream, failed: Exception | None) -> None:
        """Has a Stream think; one that cannot is a failed thought."""
        if stream.closed:
            self._end(stream, "cancelled", "")
        if stream.thought.ended:
            return
        try:
            if failed:
                raise failed
            self._show(stream)
            stream.begin()
        except Exception as error:  # whatever it is, it is this Stream's own
            self._end(stream, "failed", str(error) or repr(error))

    def _conversation(self) -> Conversation:
        """The River's, with what it is saying: new text goes on from there. The Stream has no
        tokens of it, but the landmarks."""
        told = self.river.conversation.copy()
        if told.messages and told.messages[-1]["role"] == "user":
            told.answered(self.core.scheduler.text_of(self.river) or "Let me think.", [])
        told.token_ids = []
        return told

    def _visible_to(self, stream: Stream) -> Context | None:
        """The River's context; None where a Stream has to read all of the text, as there can be no
        landmarks or the River itself had not read all."""
        context = self.core.contexts.get(self.river)
        known = self.river.conversation.token_ids[: max(0, stream.num_known - 1)]
        read = self.core.contexts.holds(self.river, known)
        is_long = context is not None and context.num_own > self.synapse.budget(context)
        return context if read and is_long and stream.conversation.rendered else None

    def _show(self, stream: Stream) -> None:
        """Lets a Stream begin with the River's landmarks, or with all of the text."""
        context = self._visible_to(stream)
        if context is None:
            stream.conversation.rendered = ""
            return
        laid = Attachment(self.synapse.segment(self.core.runner, context), 0, "synapse")
        self.core.contexts.begin(stream, Foreign(context.position, [laid]))

    def thought_of(self, stream: Stream, text: str | None, generation: Generation) -> None:
        """A Stream has said what it thinks: it is judged between steps."""
        thought = stream.thought
        thought.think_s = time.perf_counter() - generation.started
        if generation.cancelled:
            self._end(stream, "cancelled", "")
        elif text is None:
            self._end(stream, "failed", str(generation.error or "it was not answered"))
        elif not text.strip():
            self._end(stream, "rejected", "it said nothing")
        else:
            thought.text = text.strip()
            self._judging.append((stream, judge(self, stream)))
            if len(self._judging) == 1:
                self.core.defer(self._judge)

    def _judge(self) -> None:
        """Goes on judging and injecting the first of those who wait for it, by one piece."""
        stream, pieces = self._judging[0]
        if stream.closed:
            self._end(stream, "cancelled", "")
        thought, start = stream.thought, time.perf_counter()
        waits: Along | object | None = DONE
        try:
            waits = DONE if thought.ended else next(pieces, DONE)
        except Exception as error:  # whatever it is, it is this Stream's own
            thought.status, thought.reason = "failed", str(error) or repr(error)
        thought.inject_s += time.perf_counter() - start
        if waits is None:
            self.core.defer(self._judge)
        elif isinstance(waits, Along):
            waits.start(lambda: self.core.defer(self._judge))
        else:
            self._judged(stream, pieces)

    def _judged(self, stream: Stream, pieces: Pieces) -> None:
        pieces.close()
        self._judging.popleft()
        if self._judging:
            self.core.defer(self._judge)
        self._end(stream, stream.thought.status, stream.thought.reason)

    def _end(self, stream: Stream, status: str, reason: str) -> None:
        """A thought is decided: its Stream rests, and its KV goes. Should it be asked on, it
        reads all of the text."""
        if stream in self.streams:
            stream.conversation.rendered = ""
            stream.thought.status, stream.thought.reason = status, reason
            self.streams.remove(stream)
            self.core.release(stream)
            stream.ended.set()
            self._let_go()

    def _let_go(self) -> None:
        """Lets the River answer once nothing that was planned is being thought about."""
        if all(each.thought.origin != "planned" for each in self.streams):
            self.core.scheduler.let_go(self.river)


class Held:
    """Watches an answer that waits for what was planned with its question."""

    def __init__(self, cortex: Cortex, planned: Sequence[Thought]) -> None:
        self._cortex, self._planned = cortex, planned
        self.admitted, self.heard = cortex.admitted, cortex.heard

    def has_read(self) -> None:
        """The question is read: the tasks are thought about."""
        self._cortex.start_planned(self._planned)
