"""How side agents yield: simulated steps that take what a made-up machine would need."""

import itertools
import random
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecortex.config import EngineConfig
from edgecortex.scheduler import Request, Scheduler
from edgecortex.yielding import SPENT, SideShare
from tests.simulated import admit, feed, request

ALONE_S = 0.1  # a step of the main agent


@dataclass
class Machine:
    """Steps of one main agent beside side agents; `fixed_s` and `token_s` are what a step with
    side agents takes longer, in parts of a step alone."""

    share: SideShare
    fixed_s: float
    token_s: float
    slower_s: float = 0.0  # by which every step alone is longer than the one before
    who: int = 0
    noise: Iterator[float] = field(default_factory=lambda: itertools.repeat(1.0))  # factors
    alone_s: list[float] = field(default_factory=list)
    extra_s: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def step(self, wanted: int) -> int:
        """Takes a step; returns how many side tokens went along."""
        factor = next(self.noise)
        alone = factor * (ALONE_S + self.slower_s * len(self.counts))
        n = self.share.room(wanted)
        extra = factor * (self.fixed_s + self.token_s * n) * ALONE_S if n else 0.0
        self.share.observe(n, alone + extra, True, self.who)
        self.alone_s.append(alone)
        self.extra_s.append(extra)
        self.counts.append(n)
        return n

    @property
    def main_s(self) -> float:
        return sum(self.alone_s)


shares = st.floats(0.5, 0.95)
gaps = st.floats(1.2, 5.0)
costs = st.floats(0.0, 3.0)
token_costs = st.floats(0.01, 2.0)
demands = st.lists(st.integers(0, 40), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(shares, gaps, costs, token_costs, demands, st.floats(0.0, 1e-4))
def test_the_main_agent_keeps_its_share(share, gap, fixed, token, demand, slower) -> None:
    """At any time side agents have had what was earned, and one step's worth at most beyond."""
    machine = Machine(SideShare(share, gap), fixed, token, slower)
    total = 0.0
    for i in range(900):
        machine.step(demand[i // 150 % len(demand)])
        total += machine.extra_s[-1]
        due = (1 / share - 1) * machine.main_s
        assert total <= due + max(machine.extra_s) + 1e-9
    assert machine.main_s / (machine.main_s + total) >= share - 0.05


@settings(max_examples=60, deadline=None)
@given(shares, gaps, costs, token_costs, demands)
def test_no_step_is_stretched_past_the_gap(share, gap, fixed, token, demand) -> None:
    """Unless a single token does that already."""
    machine = Machine(SideShare(share, gap), fixed, token)
    for i in range(900):
        machine.step(demand[i // 150 % len(demand)])
    longest = max((gap - 1) * ALONE_S, (fixed + token) * ALONE_S)
    assert max(machine.extra_s) <= longest + 1e-9


@settings(max_examples=60, deadline=None)
@given(shares, gaps, costs, token_costs, st.integers(1, 40))
def test_side_agents_get_what_was_earned(share, gap, fixed, token, wanted) -> None:
    """Half of what is spent of it at least, however dear they are, or of what the gap allows in
    every step: tokens do not divide, and little is saved up. And they never wait for longer than
    that takes."""
    machine = Machine(SideShare(share, gap), fixed, token)
    for _ in range(1200):
        machine.step(wanted)
    allowed = min(fixed + token * wanted, max(fixed + token, (gap - 1) / 2))
    earned = SPENT * (1 / share - 1)
    due = min(earned, allowed) * 600 * ALONE_S
    assert sum(machine.extra_s[600:]) >= 0.49 * due - max(machine.extra_s)
    pauses = [len(run) for run in "".join("x."[not n] for n in machine.counts).split("x")]
    assert max(pauses) <= 2 + 2 * max(fixed + token, gap - 1, 1) / earned


@pytest.mark.parametrize("same", [1, 5, 40])
@pytest.mark.parametrize("longest", [1.3, 2.0, 3.0])
@pytest.mark.parametrize(("share", "fixed"), [(0.8, 0.15), (0.95, 0.15), (0.8, 3.0)])
def test_noise_lets_nobody_wait_for_ever(
    same: int, longest: float, share: float, fixed: float
) -> None:
    """Other programs that make steps up to so many times as long, the same for some steps: side
    agents go on, and the main agent keeps about its share of the speed that it has beside them."""
    rng = random.Random(same)
    noise = (x for _ in itertools.count() for x in [rng.uniform(1, longest)] * same)
    machine = Machine(SideShare(share, 2.5), fixed, 0.08, noise=noise)
    for _ in range(6000):
        machine.step(4)
    assert kept(machine) >= share - 0.05
    due = (1 - share) / (0.08 + fixed)  # tokens a step, if each went alone
    for start in range(0, 6000, 1000):
        assert sum(machine.counts[start : start + 1000]) >= 0.1 * due * 1000


def kept(machine: Machine, since: int = 0) -> float:
    """The main agent's share of the time from a step on."""
    alone, extra = machine.alone_s[since:], machine.extra_s[since:]
    return sum(alone) / (sum(alone) + sum(extra))


@pytest.mark.parametrize("times", [5, 30, 6000])
@pytest.mark.parametrize("first", [0, 100, 101, 102, 103])
def test_one_long_step_changes_little(times: float, first: int) -> None:
    """Whichever it is, the first one or one of or after side agents."""
    noise = (times if i == first else 1.0 for i in itertools.count())
    machine = Machine(SideShare(0.8, 2.5), 0.15, 0.08, noise=noise)
    for _ in range(1000):
        machine.step(4)
    assert kept(machine, first + 1) >= 0.78
    assert sum(machine.counts[first + 100 :]) >= 0.7 * len(machine.counts[first + 100 :])


@pytest.mark.parametrize("to", [0.3, 0.6, 0.8, 4.0])
def test_a_machine_of_another_speed_is_learnt(to: float) -> None:
    noise = (1.0 if i < 500 else to for i in itertools.count())
    machine = Machine(SideShare(0.8, 2.5), 0.15, 0.08, noise=noise)
    for _ in range(2500):
        machine.step(4)
    assert kept(machine, 500) >= 0.76
    assert kept(machine, 1500) >= 0.79
    assert sum(machine.counts[1500:]) >= 1000


def test_of_other_main_agents_it_is_learnt_anew() -> None:
    share = SideShare(0.8, 2.5)
    for _ in range(100):
        share.observe(share.room(4), 1.0, True, "many")
    assert share.room(4) > 0
    share.observe(0, 0.1, True, "one")
    assert share.room(4) == 0
    with_side = sum(bool(n) for n in (_step(share, 0.1) for _ in range(200)))
    assert 0 < with_side <= 0.25 * 200 / 2


@pytest.mark.parametrize("times", [1.0, 1.5, 2.5, 4.0, 50.0])
@pytest.mark.parametrize("every", [1, 2, 3, 5, 8, 66, 100, 400])
@pytest.mark.parametrize("wanted", [4, 16])
def test_main_agents_that_come_and_go_keep_their_share(
    times: float, every: int, wanted: int
) -> None:
    """Where the first step of each is so many times as long."""
    noise = (times if i % every == 0 else 1.0 for i in itertools.count())
    machine = Machine(SideShare(0.8, 2.5), 0.15, 0.08, noise=noise)
    for i in range(3000):
        machine.who = i // every
        machine.step(wanted)
    assert kept(machine) >= 0.76
    assert sum(machine.counts) >= 300


def test_a_scheduler_tells_who_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A main agent of ten times the speed follows another that side agents were measured beside."""
    told: list[Hashable] = []
    observe = SideShare.observe

    def observed(share: SideShare, side: int, seconds: float, decoding: bool, who: Any) -> None:
        told.append(who)
        observe(share, side, seconds, decoding, who)

    monkeypatch.setattr(SideShare, "observe", observed)
    scheduler = Scheduler(EngineConfig(kv_format="fp"), admit, lambda request: False)
    for _ in range(8):
        scheduler.add(request(40, 2000, True, priority=1))
    lost = []
    for speed in (1.0, 0.1):
        main = request(1, 400)
        scheduler.add(main)
        steps = simulate(scheduler, 400, lambda n, side, s=speed: s * affine(n, side))
        lost.append(sum(took for *_, took in steps) / (speed * ALONE_S * len(steps)))
        assert main.generation.stats.finish_reason or len(main.generation.token_ids) >= 399
        scheduler.remove(main)
    assert all(times <= 1 / 0.78 for times in lost)
    (first, num_first), (second, num_second) = ((k, len(list(v))) for k, v in groupby(told))
    assert first != second
    assert min(num_first, num_second) >= 399


def _step(share: SideShare, alone: float) -> int:
    """One in which side agents cost twice what the main one takes."""
    n = share.room(4)
    share.observe(n, alone * (3 if n else 1), True, "one")
    return n


def test_all_of_the_speed_leaves_nothing() -> None:
    machine = Machine(SideShare(1.0, 2.5), 0.1, 0.1)
    assert [machine.step(4) for _ in range(500)] == [0] * 500


def test_nothing_before_the_first_step_alone() -> None:
    share = SideShare(0.8, 2.5)
    assert share.room(4) == 0
    share.observe(0, 0.5, False, "it")  # a prompt is read: how long a step is, it does not say
    assert share.room(4) == 0
    for _ in range(5):
        assert share.room(4) == 0
        share.observe(0, 0.1, True, "it")
    assert share.room(4) == 1  # to learn what one costs
    share.observe(1, 0.11, True, "it")
    assert share.room(4) == 4


def test_what_is_done_between_steps_is_paid_back() -> None:
    """A second of judging costs side agents the steps that earn a second."""
    machine = Machine(SideShare(0.8, 2.5), 0.2, 0.1)
    for _ in range(200):
        machine.step(8)
    machine.share.charge(1.0)
    waited = 0
    while not machine.step(8):
        waited += 1
    steps = 1.0 / (SPENT * 0.25 * ALONE_S)
    assert steps - 5 <= waited <= steps + 40


@settings(max_examples=60, deadline=None)
@given(shares, st.floats(0.01, 8.0), st.integers(0, 4))
def test_what_is_done_between_steps_waits_until_it_is_earned(share, size, side) -> None:
    """Pieces of any size, beside side agents that decode or not: the main agent keeps its share,
    all pieces get done, and between two of them there is a step."""
    machine, done = Machine(SideShare(share, 2.5), 0.2, 0.1), 0
    extra = 0.0
    for _ in range(900):
        if machine.share.spares():
            machine.share.charge(size * ALONE_S)
            extra += size * ALONE_S
            done += 1
        machine.step(side)
        total = extra + sum(machine.extra_s)
        assert total <= (1 / share - 1) * machine.main_s + max(size, 1.5, 0.7) * ALONE_S * 2
    due = (1 / share - 1) * machine.main_s
    assert done >= 0.4 * min(due / (size * ALONE_S), 900) - 1


def test_all_of_the_speed_leaves_nothing_between_steps_either() -> None:
    assert not SideShare(1.0, 2.5).spares()


def test_a_long_rest_is_not_saved_up() -> None:
    machine = Machine(SideShare(0.8, 2.5), 0.2, 0.1)
    for _ in range(100):
        machine.step(8)
    for _ in range(10_000):
        machine.step(0)
    before = len(machine.extra_s)
    for _ in range(100):
        machine.step(8)
    burst = machine.extra_s[before:]
    assert sum(burst) <= 0.25 * 100 * ALONE_S + 1.5 * ALONE_S + max(burst)


# The scheduler as a whole.


def simulate(
    scheduler: Scheduler, num_steps: int, seconds: Callable[[int, int], float]
) -> list[tuple[int, int, float]]:
    """Runs steps that take `seconds(main tokens, side tokens)`; all answers go on until they are
    complete. Returns what each step had."""
    steps = []
    for _ in range(num_steps):
        batch = scheduler.schedule()
        main = sum(n for r, n in batch if not r.side)
        side = sum(n for r, n in batch if r.side)
        took = seconds(main, side)
        feed(scheduler, batch)
        scheduler.observe(batch, took)
        steps.append((main, side, took))
    return steps


def affine(main: int, side: int) -> float:
    return ALONE_S * (0.9 + 0.1 * main + (0.15 + 0.08 * side if side else 0.0))


@pytest.fixture
def busy() -> tuple[Scheduler, Request, list[Request]]:
    """A main agent with a long prompt and a long answer, and 16 side agents."""
    scheduler = Scheduler(EngineConfig(kv_format="fp"), admit, lambda request: False)
    main, sides = request(600, 3000), [request(40, 64, True, priority=1) for _ in range(16)]
    for each in (*sides, main):
        scheduler.add(each)
    return scheduler, main, sides


def test_a_whole_council_beside_a_main_agent(busy) -> None:
    scheduler, main, sides = busy
    steps = simulate(scheduler, 2500, affine)
    first = next(i for i, (n, _, _) in enumerate(steps) if n == 1)
    assert [side for _, side, _ in steps[:first]] == [0] * first  # it reads its prompt first
    beside = steps[first:]
    assert all(n == 1 for n, _, _ in beside)
    assert ALONE_S * len(beside) / sum(took for *_, took in beside) >= 0.79
    assert max(took for *_, took in beside) <= 2.5 * ALONE_S + 1e-9
    assert all(len(each.generation.token_ids) == 64 for each in sides)
    assert len(main.generation.token_ids) == 1 + len(beside)


def test_side_agents_get_on_together(busy) -> None:
    """Who has waited longest goes first: nobody is done long before the others have begun."""
    scheduler, _, sides = busy
    spread = 0
    for _ in range(800):
        simulate(scheduler, 1, affine)
        fed = [each.context.num_own if each.context else 0 for each in sides]
        if min(fed) > 40 and max(fed) < 104:
            spread = max(spread, max(fed) - min(fed))
    assert 0 < spread <= 40


def test_side_agents_alone_have_all_of_the_machine() -> None:
    scheduler = Scheduler(EngineConfig(kv_format="fp"), admit, lambda request: False)
    for _ in range(4):
        scheduler.add(request(40, 16, True, priority=1))
    simulate(scheduler, 30, affine)
    assert not scheduler.has_work


def test_one_that_is_held_reads_its_prompt_and_no_more(busy) -> None:
    scheduler, main, sides = busy
    main.held = True
    simulate(scheduler, 400, affine)
    assert (main.pending(), main.generation.token_ids) == (1, [])
    assert not any(scheduler._of(each.agent) for each in sides)
    assert not scheduler.has_work
    scheduler.let_go(main.agent)
    assert scheduler.has_work
    simulate(scheduler, 5, affine)
    assert len(main.generation.token_ids) == 5
