"""`Cortex`: a River's Streams, and what of their thoughts it gets to know.

Everything marked so runs on the engine's thread, between steps.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from edgecortex.config import SamplingParams
from edgecortex.contexts import Foreign
from edgecortex.conversation import Conversation
from edgecortex.errors import ConfigError, PromptError, StateError
from edgecortex.generation import Generation
from edgecortex.kv.context import Attachment, Context
from edgecortex.warp import injection
from edgecortex.warp.gate import PLAIN_TEXT, THRESHOLD, ValidationGate
from edgecortex.warp.router import KINDS, CortexRouter, RouterLimits
from edgecortex.warp.stream import Stream, Thought
from edgecortex.warp.synapse import NUM_LANDMARKS, Synapse, follow, trace

if TYPE_CHECKING:
    from edgecortex.agent import Agent
    from edgecortex.core import EngineCore

ALLOWANCE = 256  # tokens of thoughts that any River takes, however little it was told
REFERENCE = "{}\n\n"  # any words around it would be said again


@dataclass(frozen=True)
class CortexConfig:
    """How a River's Streams work.

    `kinds` and `limits` (of an answer) are the router's, which listens if `listens`; `rule`,
    `num_landmarks` (None: as many as the context's length asks for) and `refresh` the synapse's;
    `threshold` the gate's, None lets every thought through. `mode` is how thoughts are injected:
    `forward` or `graft`. All of them together are at most `max_share` of the River's tokens, or
    `ALLOWANCE` tokens if that is more.

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
        self.gate = ValidationGate(config.least_score, self._core.states)
        self.router = CortexRouter(config.kinds, config.limits)
        self.thoughts = list(thoughts)
        self.streams: list[Stream] = []
        self._awaiting: list[Stream] = []  # those that have not begun; a job is there for them
        self._num_answers = 0  # of the River that are over

    @property
    def _core(self) -> "EngineCore":
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
            self.river.engine.call(lambda: self._core.contexts.lift(self.river, found[0].id))
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
        follow(self._core.runner, context)

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
                self._core.defer(partial(self._start_routed, thought, router, self._num_answers))

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
        self._core.release(stream)
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
        told = self.river.conversation.copy()
        stream = Stream(self, name, told, thought, router.child())
        self.streams.append(stream)
        self._awaiting.append(stream)
        if len(self._awaiting) == 1:
            self._core.defer(self._prepare)
        return stream

    def _prepare(self) -> None:
        """Has the Streams that wait begin, or collects landmarks of one more layer for them."""
        failed = None
        try:
            self.river.engine.check_open()
            if any(not stream.closed for stream in self._awaiting) and self._look():
                self._core.defer(self._prepare)
                return
        except Exception as error:  # whatever it is, it is theirs
            failed = error
        awaiting, self._awaiting = self._awaiting, []
        for stream in awaiting:
            self._begin(stream, failed)

    def _look(self) -> bool:
        """Goes on collecting the River's landmarks. Returns whether there are more to come."""
        context, runner = self._visible(), self._core.runner
        if context is None:
            return False
        with self._core.pool.kept(context):
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
            stream.generation = stream.chat(stream.thought.prompt)
        except Exception as error:  # whatever it is, it is this Stream's own
            self._end(stream, "failed", str(error) or repr(error))

    def _conversation(self) -> Conversation:
        """The River's, with what it is saying: new text goes on from there. The Stream has no
        tokens of it, but the landmarks."""
        told = self.river.conversation.copy()
        if told.messages and told.messages[-1]["role"] == "user":
            told.answered(self._core.scheduler.text_of(self.river) or "Let me think.", [])
        told.token_ids = []
        return told

    def _visible(self) -> Context | None:
        """The River's context; None where a Stream has to read all of the text, as there can be no
        landmarks or the River itself has not read all."""
        context, told = self._core.contexts.get(self.river), self.river.conversation
        read = self._core.contexts.holds(self.river, told.token_ids[:-1])
        is_long = context is not None and context.num_own > self.synapse.budget(context)
        return context if read and is_long and told.rendered else None

    def _show(self, stream: Stream) -> None:
        """Lets a Stream begin with the River's landmarks, or with all of the text."""
        context, stream.conversation = self._visible(), self._conversation()
        if context is None:
            stream.conversation.rendered = ""
            return
        laid = Attachment(self.synapse.segment(self._core.runner, context), 0, "synapse")
        self._core.contexts.begin(stream, Foreign(context.position, [laid]))

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
            self._core.defer(lambda: self._judge(stream))

    def _judge(self, stream: Stream) -> None:
        """Lets the gate decide, and injects what passes."""
        if stream.closed:
            self._end(stream, "cancelled", "")
        if stream.thought.ended:
            return
        thought, start = stream.thought, time.perf_counter()
        try:
            self._merge(stream)
        except Exception as error:  # whatever it is, it is this Stream's own
            thought.status, thought.reason = "failed", str(error) or repr(error)
        thought.inject_s = time.perf_counter() - start
        self._end(stream, thought.status, thought.reason)

    def _merge(self, stream: Stream) -> None:
        thought, contexts = stream.thought, self._core.contexts
        self._make_ready()
        side, main = contexts.get(stream), contexts.get(self.river)
        if side is None or main is None or not (side.num_own and main.num_own):
            thought.status, thought.reason = "rejected", "a context of theirs is not in memory"
            return
        with self._core.pool.kept(side), self._core.pool.kept(main):
            trace(self._core.runner, main)
            ids = self._core.model.tokenizer.encode(thought.text, first=False)
            thinking = self._core.runner.hidden_of(ids)
        assert main.trace
        hidden = main.trace.hidden
        about = np.array(hidden.all().astype(mx.float32))
        self.gate.seen.add(about[max(0, len(about) - hidden.num_fresh) :])
        hidden.num_fresh = 0
        verdict = self.gate.judge(thinking, about)
        thought.score = verdict.score
        if not verdict.accepted:
            thought.status, thought.reason = "rejected", "unlike what the River is about"
            return
        if any(known.text == thought.text for known in self.accepted):
            thought.status, thought.reason = "rejected", "already known"
            return
        self._inject(stream, side, main)

    def _make_ready(self) -> None:
        """What is done once, before any context is looked up, as it may have to make room: the
        gate gets to know plain text, and it is found out whether keys turn.

        Raises:
            BudgetError: there is no room.
        """
        if not self.gate.seen.count:
            ids = self._core.model.tokenizer.encode(PLAIN_TEXT, first=True)
            self.gate.seen.add(self._core.runner.hidden_of(ids))
        _ = self._core.runner.keys_turn

    def _inject(self, stream: Stream, side: Context, main: Context) -> None:
        thought, generation = stream.thought, stream.generation
        assert generation is not None
        ids = self._core.model.tokenizer.encode(REFERENCE.format(thought.text), first=False)
        said = side.num_own - generation.stats.num_prompt_tokens
        n = len(ids) if thought.mode == "forward" else said
        if not n:
            thought.status, thought.reason = "rejected", "it is too short to have left any KV"
            return
        used = sum(laid.segment.num_tokens for laid in main.attached)
        if used + n > max(self.config.max_share * main.num_own, ALLOWANCE):
            thought.status = "rejected"
            thought.reason = (
                f"its {n} tokens and {used} before it are more than {ALLOWANCE} and than "
                f"{self.config.max_share:.0%} of the River's {main.num_own:,}"
            )
            return
        if thought.mode == "forward":
            segment = injection.forward(self._core.runner, main, ids)
        else:
            segment = injection.moved(self._core.runner, side, side.num_own - n, main)
        laid = self._core.pool.lay(main, segment, injection.name_of(segment))
        thought.status, thought.id = "accepted", laid.id
        thought.at, thought.start, thought.num_tokens = laid.at, segment.start, segment.num_tokens

    def _end(self, stream: Stream, status: str, reason: str) -> None:
        """A thought is decided: its Stream rests, and its KV goes. Should it be asked on, it
        reads all of the text."""
        if stream in self.streams:
            stream.conversation.rendered = ""
            stream.thought.status, stream.thought.reason = status, reason
            self.streams.remove(stream)
            self._core.contexts.release(stream)
            stream.ended.set()
            self._let_go()

    def _let_go(self) -> None:
        """Lets the River answer once nothing that was planned is being thought about."""
        if all(each.thought.origin != "planned" for each in self.streams):
            self._core.scheduler.let_go(self.river)


class Held:
    """Watches an answer that waits for what was planned with its question."""

    def __init__(self, cortex: Cortex, planned: Sequence[Thought]) -> None:
        self._cortex, self._planned = cortex, planned
        self.admitted, self.heard = cortex.admitted, cortex.heard

    def has_read(self) -> None:
        """The question is read: the tasks are thought about."""
        self._cortex.start_planned(self._planned)
