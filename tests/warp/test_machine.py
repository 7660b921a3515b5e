"""Rivers, Streams and thoughts in any order of events, with little memory: the books agree, and
what a River sees is what its record says."""

from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgecortex import Agent
from edgecortex.errors import BudgetError
from edgecortex.kv.context import Context
from edgecortex.warp.cortex import CortexConfig
from edgecortex.warp.stream import Stream, Thought
from tests import scripted
from tests.scripted import limit, until

SCRIPT = {
    "find one": ["It is", " blue", "."],
    "find two": ["They ", "are", " far", " off."],
    "say nothing": [" "],
    "Ask for one.": ["[TASK: find one] ", "and [TASK: find two]", " so on ", "and on."],
}
NOTES = "The river is wide and slow, and the boats are late again. " * 3
BUDGET = 3_000_000  # some forty rows
tasks = st.sampled_from(["find one", "find two", "say nothing", "Think of it.", "x" * 5000])
modes = st.sampled_from(["forward", "graft"])
numbers = st.integers(0, 5)


class Council(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stack, self.stored = ExitStack(), False
        self.rivers: list[Agent] = []
        self.streams: list[Stream] = []

    def river(self, number: int) -> Agent:
        return self.rivers[number % len(self.rivers)]

    # What a caller may do.

    @initialize(kind=st.sampled_from(["llama", "gemma3_text"]), stored=st.booleans())
    def start(self, kind: str, stored: bool) -> None:
        folder = Path(self.stack.enter_context(TemporaryDirectory())) if stored else None
        engine = scripted.engine(SCRIPT, kind, folder, kv_budget_bytes=BUDGET)
        self.engine, self.stored = self.stack.enter_context(engine), stored
        self.begin()

    @precondition(lambda self: len(self.rivers) < 3)
    @rule()
    def begin(self) -> None:
        river = self.engine.agent(system=f"{len(self.rivers)}: {NOTES}", sampling=limit(5))
        river.think_with(CortexConfig(threshold=None, listens=True, sampling=limit(12)))
        self.rivers.append(river)

    @rule(number=numbers, text=st.sampled_from(["Go on.", "Ask for one.", "What is it? " * 5]))
    def chat(self, number: int, text: str) -> None:
        assert self.river(number).chat(text).text()

    @rule(number=numbers, task=tasks, mode=modes)
    def spawn(self, number: int, task: str, mode: str) -> None:
        self.streams.append(self.river(number).spawn(task, mode=mode))

    @rule(number=numbers, planned=st.lists(tasks, max_size=3))
    def ask(self, number: int, planned: list[str]) -> None:
        cortex = self.river(number).think_with()
        assert cortex.ask("And now?", [Thought(task) for task in planned], limit(3)).text()

    @rule(number=numbers)
    def cancel(self, number: int) -> None:
        answer = self.river(number).chat("Ask for one.", limit(500))
        answer.cancel()
        answer.text()

    @precondition(lambda self: self.streams)
    @rule(number=numbers)
    def wait(self, number: int) -> None:
        assert self.streams[number % len(self.streams)].result(60).ended

    @precondition(lambda self: self.streams)
    @rule(number=numbers)
    def close_stream(self, number: int) -> None:
        stream = self.streams[number % len(self.streams)]
        stream.close()
        assert stream.result(60).ended

    @rule(number=numbers, which=numbers)
    def take_back(self, number: int, which: int) -> None:
        river = self.river(number)
        if accepted := river.think_with().accepted:
            thought = accepted[which % len(accepted)]
            assert river.take_back(thought.id) is thought

    @precondition(lambda self: len(self.rivers) < 3)
    @rule(number=numbers)
    def fork(self, number: int) -> None:
        self.rivers.append(self.river(number).fork())

    @precondition(lambda self: self.stored)
    @rule(number=numbers)
    def save_and_restore(self, number: int) -> None:
        river = self.river(number)
        seen = [(t.id, t.text) for t in river.think_with().accepted]
        river.save("it").result()
        again, came = self.engine.restore("it", sampling=limit(5))
        assert came.num_lost_thoughts == 0
        assert {(t.id, t.text) for t in again.thoughts} >= set(seen)
        self.rivers.remove(river)
        river.close()
        self.rivers.append(again)

    @rule(number=numbers)
    def reset(self, number: int) -> None:
        river = self.river(number)
        river.reset()
        until(self.engine, lambda: river.thoughts == [])

    @precondition(lambda self: len(self.rivers) > 1)
    @rule(number=numbers)
    def close_river(self, number: int) -> None:
        river = self.river(number)
        self.rivers.remove(river)
        river.close()

    @rule()
    def press(self) -> None:
        """Others take all the room for a moment: whoever rests has to make way."""

        def crowd() -> None:
            others: list[Context] = []
            with suppress(BudgetError):
                others += iter(self.engine.core.pool.open, None)
            for other in others:
                self.engine.core.pool.close(other)

        self.engine.call(crowd)

    # What holds all the time.

    @invariant()
    def books_agree(self) -> None:
        self.engine.call(self.engine.core.pool.check)

    @invariant()
    def a_river_sees_what_its_record_says(self) -> None:
        def compare() -> None:
            for river in self.rivers:
                attached = self.engine.core.contexts.attached(river)
                ids = [laid.id for laid in attached]
                assert sorted(ids) == sorted(t.id for t in river.think_with().accepted)
                assert all(stream.thought in river.thoughts for stream in river.cortex.streams)

        self.engine.call(compare)

    def teardown(self) -> None:
        for agent in self.rivers:
            agent.close()
        assert all(stream.result(60).ended for stream in self.streams)
        until(self.engine, lambda: not self.engine.core._jobs)
        self.engine.call(self.engine.core.pool.check)
        kept = self.engine.call(lambda: list(self.engine.core.contexts._contexts))
        assert [agent.name for agent in kept] == []
        self.stack.close()


TestCouncil = Council.TestCase
TestCouncil.settings = settings(
    max_examples=12,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
