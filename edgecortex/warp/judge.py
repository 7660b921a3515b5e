"""From a Stream's last word to its River's context: the gate, then injection. All of it runs on the
engine's thread, in pieces between which the River may go on."""

from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from edgecortex.config import SamplingParams
from edgecortex.generation import Generation
from edgecortex.kv.context import Context
from edgecortex.kv.segment import KVSegment
from edgecortex.runner import HiddenStates
from edgecortex.scheduler import Request
from edgecortex.warp import injection
from edgecortex.warp.gate import PLAIN_TEXT
from edgecortex.warp.stream import Stream, Thought
from edgecortex.warp.synapse import trace

if TYPE_CHECKING:
    from edgecortex.agent import Agent
    from edgecortex.core import EngineCore
    from edgecortex.warp.cortex import Cortex

ALLOWANCE = 256  # tokens of thoughts that any River takes, however little it was told
PIECE, ALONE = 16, 512  # tokens that are read at a time beside a River that speaks, and else
REFERENCE = "{}\n\n"  # any words around it would be said again
Pieces = Generator["Along | None", None, None]
"""Between two of them the River may go on; if an `Along` is given, until that has ended."""


class Along:
    """A thought that is read in the River's own steps, a token in each, as long as it speaks."""

    def __init__(self, core: "EngineCore", stream: Stream, reading: injection.Reading) -> None:
        self._core, self._reading = core, reading
        self._ended: Callable[[], object] = lambda: None
        last = [reading.token_ids[-1]]  # is not read: the answer is held before it
        self.request = Request(
            stream,
            [*reading.reader.token_ids, *reading.token_ids, *last],
            SamplingParams(max_tokens=1),
            Generation(),
            self._answered,
            None,
            stream.priority,
            side=True,
            held=True,
            one_by_one=True,
            watcher=self,
            cut=True,
            context=reading.reader,
        )

    def start(self, ended: Callable[[], object]) -> None:
        """Begins to read; `ended` is called when all is read, or nothing will be."""
        self._ended = ended
        self._core.scheduler.running.append(self.request)

    def admitted(self, context: Context) -> None:
        pass

    def heard(self, text: str) -> None:
        pass

    def has_read(self) -> None:
        self._core.scheduler.remove(self.request)
        self._ended()

    def _answered(self, text: str | None, cut: bool) -> None:
        """It was cancelled, or failed."""
        self._reading.close()
        self._ended()


def judge(cortex: "Cortex", stream: Stream) -> Pieces:
    """Lets the gate decide on a thought, and injects it if it passes. Sets its status.

    Raises:
        BudgetError: there is no room.
    """
    yield from _make_ready(cortex)
    if _context(cortex, cortex.river, stream.thought):
        reading = _reading(cortex, stream.thought.text, first=False)
        _ask_gate(cortex, stream.thought, (yield from _states(cortex, reading)))
    while not stream.thought.ended:
        yield None
        yield from _inject(cortex, stream)


def _make_ready(cortex: "Cortex") -> Pieces:
    """What is done once, before any context is looked up, as it may have to make room: the gate
    gets to know plain text, and it is found out whether keys turn."""
    seen = cortex.gate.seen
    if not seen.count:
        states = yield from _states(cortex, _reading(cortex, PLAIN_TEXT, first=True))
        if not seen.count:  # another River's thought was not faster
            seen.add(states)
    _ = cortex.core.runner.keys_turn
    yield None


def _reading(cortex: "Cortex", text: str, first: bool) -> HiddenStates:
    """Of a text by itself; the River makes no way for it."""
    core, main = cortex.core, cortex.core.contexts.get(cortex.river)
    with core.pool.kept(main) if main else nullcontext():
        return HiddenStates(core.runner, core.model.tokenizer.encode(text, first=first))


def _states(cortex: "Cortex", reading: HiddenStates) -> Generator["Along | None", None, np.ndarray]:
    """What is read, (L, hidden_size), in pieces beside a River that speaks."""
    waits = cortex.core.scheduler.main_waits
    with closing(reading):
        while reading.read(PIECE if waits() else ALONE):
            yield None
        if waits():
            yield None
        return reading.all()


def _context(cortex: "Cortex", agent: "Agent", thought: Thought) -> Context | None:
    """An agent's, or a rejection."""
    context = cortex.core.contexts.get(agent)
    if context and context.num_own:
        return context
    _reject(thought, "a context of theirs is not in memory")
    return None


def _ask_gate(cortex: "Cortex", thought: Thought, thinking: np.ndarray) -> None:
    core, gate, main = cortex.core, cortex.gate, _context(cortex, cortex.river, thought)
    if main is None:
        return
    with core.pool.kept(main):
        trace(core.runner, main)
    assert main.trace
    hidden = main.trace.hidden
    about = np.array(hidden.all().astype(mx.float32))
    gate.seen.add(about[max(0, len(about) - hidden.num_fresh) :])
    hidden.num_fresh = 0
    verdict = gate.judge(thinking, about)
    thought.score = verdict.score
    if not verdict.accepted:
        _reject(thought, "unlike what the River is about")


def _inject(cortex: "Cortex", stream: Stream) -> Pieces:
    """Decides nothing where the River takes another course meanwhile."""
    thought, main = stream.thought, _context(cortex, cortex.river, stream.thought)
    if main is None:
        return
    if thought.mode == "forward":
        segment = yield from _read(cortex, stream, main)
    else:
        segment = _grafted(cortex, stream, main)
    if segment:
        laid = cortex.core.pool.lay(main, segment, injection.name_of(segment))
        thought.status, thought.id = "accepted", laid.id
        thought.at, thought.start, thought.num_tokens = laid.at, segment.start, segment.num_tokens


def _read(
    cortex: "Cortex", stream: Stream, main: Context
) -> Generator[Along | None, None, KVSegment | None]:
    """The thought, read over the River's context."""
    core, thought = cortex.core, stream.thought
    ids = core.model.tokenizer.encode(REFERENCE.format(thought.text), first=False)
    if not _fits(cortex, thought, main, len(ids)):
        return None
    with closing(injection.Reading(core.runner, main, ids)) as reading:
        if not core.scheduler.main_waits():
            reading.all_at_once()
            return reading.segment(main)
        along = Along(core, stream, reading)
        yield along
        if error := along.request.generation.error:
            raise error
        if core.contexts.get(cortex.river) is not main or not reading.is_of(main):
            return None
        return reading.segment(main)


def _grafted(cortex: "Cortex", stream: Stream, main: Context) -> KVSegment | None:
    """The thought as the Stream itself has it."""
    side = _context(cortex, stream, stream.thought)
    assert stream.generation
    n = side.num_own - stream.generation.stats.num_prompt_tokens if side else 0
    if side is None or not _fits(cortex, stream.thought, main, n):
        return None
    return injection.moved(cortex.core.runner, side, side.num_own - n, main)


def _fits(cortex: "Cortex", thought: Thought, main: Context, n: int) -> bool:
    """Whether a thought of `n` tokens may be injected, or a rejection."""
    used, share = sum(laid.segment.num_tokens for laid in main.attached), cortex.config.max_share
    if any(known.text == thought.text for known in cortex.accepted):
        _reject(thought, "already known")
    elif not n:
        _reject(thought, "it is too short to have left any KV")
    elif used + n > max(share * main.num_own, ALLOWANCE):
        _reject(
            thought,
            f"its {n} tokens and {used} before it are more than {ALLOWANCE} and than {share:.0%} "
            f"of the River's {main.num_own:,}",
        )
    return not thought.ended


def _reject(thought: Thought, reason: str) -> None:
    thought.status, thought.reason = "rejected", reason
