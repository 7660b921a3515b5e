"""Runs a workflow: its agents kept from phase to phase, or begun anew in each, to compare."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from statistics import mean

from edgecortex.agent import Agent
from edgecortex.config import SamplingParams
from edgecortex.engine import Engine
from edgecortex.workflow import Phase, Turn, Workflow, fill

Progress = Callable[[int, int], None]
READ = "I have read it."


@dataclass(frozen=True)
class Answer:
    """One turn as it went. Times in seconds, counts in tokens of its prompt."""

    phase: str
    agent: str
    ask: str
    text: str
    given: bool
    ttft_s: float
    num_prompt_tokens: int
    num_memory_tokens: int
    num_disk_tokens: int

    @property
    def num_read_tokens(self) -> int:
        """Tokens whose KV was computed for this turn."""
        return self.num_prompt_tokens - self.num_memory_tokens - self.num_disk_tokens


@dataclass(frozen=True)
class PhaseReport:
    """A phase: tokens reused and read anew, and the mean time to the first token, kept and cold.

    What takes a cold run is None without one. `same_text` says that all answers were word for
    word the same both times; one that was generated may differ where two tokens were as good as
    equally likely.
    """

    name: str
    num_turns: int
    num_prompt_tokens: int
    num_reused_tokens: int
    num_read_tokens: int
    ttft_kept_s: float
    num_cold_tokens: int | None = None
    ttft_cold_s: float | None = None
    same_text: bool | None = None

    @property
    def num_saved_tokens(self) -> int | None:
        """Tokens that earlier phases saved this one from reading: cold less kept. Others of those
        reused it had read itself, in an earlier turn."""
        return None if self.num_cold_tokens is None else self.num_cold_tokens - self.num_read_tokens

    @property
    def speedup(self) -> float | None:
        """Cold over kept."""
        return None if self.ttft_cold_s is None else self.ttft_cold_s / self.ttft_kept_s


def run(
    engine: Engine,
    workflow: Workflow,
    kept: bool = True,
    progress: Progress = lambda done, total: None,
) -> list[Answer]:
    """Takes all turns in order.

    Not `kept`, every phase begins with new agents, who read all that they were told and said
    before; for that to be so the engine must not have a store.
    """
    total = sum(len(phase.turns) for phase in workflow.phases)
    answers: list[Answer] = []
    with closing(_Cast(engine, workflow)) as cast:
        for phase in workflow.phases:
            if not kept:
                cast.begin_anew()
            for answer in _take(cast, phase):
                answers.append(answer)
                progress(len(answers), total)
    return answers


def compare(kept: Sequence[Answer], cold: Sequence[Answer] = ()) -> list[PhaseReport]:
    """What keeping saved, phase by phase; `cold` may be left out."""
    reports = []
    for name in dict.fromkeys(answer.phase for answer in kept):
        some, others = ([a for a in answers if a.phase == name] for answers in (kept, cold))
        report = PhaseReport(
            name,
            len(some),
            sum(a.num_prompt_tokens for a in some),
            sum(a.num_memory_tokens + a.num_disk_tokens for a in some),
            sum(a.num_read_tokens for a in some),
            mean(a.ttft_s for a in some),
        )
        reports.append(_against(report, some, others) if others else report)
    return reports


def _against(report: PhaseReport, kept: Sequence[Answer], cold: Sequence[Answer]) -> PhaseReport:
    return replace(
        report,
        num_cold_tokens=sum(a.num_read_tokens for a in cold),
        ttft_cold_s=mean(a.ttft_s for a in cold),
        same_text=[a.text for a in kept] == [a.text for a in cold],
    )


class _Cast:
    """The agents that a workflow's turns have asked for so far, and what they said."""

    def __init__(self, engine: Engine, workflow: Workflow) -> None:
        self.engine, self.workflow = engine, workflow
        self.said: dict[str, str] = {}
        self._agents: dict[str, Agent] = {}

    def agent(self, name: str) -> Agent:
        """An agent as it is now; made when it is first asked for."""
        if name not in self._agents:
            self._agents[name] = self._make(name)
        return self._agents[name]

    def begin_anew(self) -> None:
        """Puts agents in the place of those that there are, with the same past and no KV."""
        for name, old in self._agents.items():
            self._agents[name] = new = self.engine.agent(name, system=old.conversation.system)
            new.conversation = old.conversation.copy()
            old.close()

    def close(self) -> None:
        for agent in self._agents.values():
            agent.close()

    def _make(self, name: str) -> Agent:
        role = self.workflow.agents[name]
        if role.source:
            return self.agent(role.source).fork(name)
        agent = self.engine.agent(name, system=role.system)
        if role.document:
            agent.tell(role.document, READ)
        return agent


class _Asked:
    """A turn that is under way."""

    def __init__(self, cast: _Cast, phase: Phase, turn: Turn) -> None:
        self.cast, self.phase, self.turn = cast, phase, turn
        self.agent = cast.agent(turn.agent)
        self.ask = fill(turn.ask, cast.said)
        self._before = self.agent.conversation.copy()
        max_tokens = 1 if turn.reply else turn.max_tokens
        self.generation = self.agent.chat(self.ask, SamplingParams(max_tokens=max_tokens))

    def answer(self) -> Answer:
        """Waits for the answer. A given one takes the place of the token that was made."""
        text, stats = self.generation.text(), self.generation.stats
        if self.turn.reply:
            text = fill(self.turn.reply, self.cast.said)
            self.agent.conversation = self._before
            self.agent.tell(self.ask, text)
        self.cast.said[self.turn.agent] = text
        return Answer(
            self.phase.name,
            self.turn.agent,
            self.ask,
            text,
            self.turn.reply is not None,
            stats.ttft_s,
            stats.num_prompt_tokens,
            stats.num_memory_tokens,
            stats.num_disk_tokens,
        )


def _take(cast: _Cast, phase: Phase) -> Iterator[Answer]:
    """A phase's turns; those taken together are all asked before any is waited for, and forks of
    one another are made before any is asked."""
    for turn in phase.turns if phase.together else ():
        cast.agent(turn.agent)
    asked = (_Asked(cast, phase, turn) for turn in phase.turns)
    yield from (each.answer() for each in (list(asked) if phase.together else asked))
