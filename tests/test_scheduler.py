"""Who runs with how many tokens: simulated steps on a made-up machine."""

from collections.abc import Callable

import pytest

from edgecortex.config import EngineConfig
from edgecortex.scheduler import Request, Scheduler
from tests.simulated import admit, feed, request

DECODE_S, TOKEN_S, PREFILL_S = 0.05, 0.005, 0.0005  # a step's, and each row's


def scheduler(**config: int) -> Scheduler:
    return Scheduler(EngineConfig(kv_format="kv4", **config), admit, lambda request: False)


def step(scheduler: Scheduler) -> tuple[int, int, float]:
    """Takes a step. Returns: how many decode, how many tokens are read, and its seconds."""
    batch = scheduler.schedule()
    decoding = sum(each.pending() == 1 for each, _ in batch)
    reading = sum(n for each, n in batch if each.pending() > 1)
    seconds = DECODE_S + TOKEN_S * decoding + PREFILL_S * reading
    feed(scheduler, batch)
    scheduler.observe(batch, seconds)
    return decoding, reading, seconds


def count(scheduler: Scheduler, wanted: Callable[[], bool], most: int) -> int:
    """Takes steps until something is true. Returns how many."""
    for number in range(most):
        if wanted():
            return number
        step(scheduler)
    pytest.fail(f"not in {most:,} steps")


def test_many_long_prompts_are_read_on_an_engine_that_is_new() -> None:
    """From the first that decodes on, the others are read as fast as it allows."""
    engine = scheduler()
    prompts = [request(2000, 500) for _ in range(16)]
    for prompt in prompts:
        engine.add(prompt)
    assert count(engine, lambda: all(each.generation.token_ids for each in prompts), 600) < 300


@pytest.mark.parametrize("before", [1, 64])
def test_the_gap_is_that_of_those_who_decode_now(before: int) -> None:
    """Whoever decoded before: what they took tells nothing of one alone."""
    engine = scheduler()
    for _ in range(before):
        engine.add(request(10, 40))
    count(engine, lambda: not engine.has_work, 400)
    one = request(10, 2000)
    engine.add(one)
    count(engine, lambda: len(one.generation.token_ids) == 3, 20)
    late = request(4000, 1)
    engine.add(late)
    steps = []
    while not late.generation.token_ids:
        steps.append(step(engine))
    alone = DECODE_S + TOKEN_S
    assert max(seconds for *_, seconds in steps) <= 2.6 * alone
    assert len(steps) < 40


def test_a_pace_that_is_wrong_by_now_is_learnt_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step alone was slow, as a machine's first one is; prompts have waited since."""
    engine = scheduler()
    one = request(10, 3000)
    engine.add(one)
    count(engine, lambda: len(one.generation.token_ids) == 1, 20)
    monkeypatch.setitem(globals(), "DECODE_S", 20 * DECODE_S)
    engine.add(request(200_000, 1))
    step(engine)
    monkeypatch.undo()
    steps = [step(engine) for _ in range(420)]
    late = [seconds for _, reading, seconds in steps[360:] if reading]
    assert len(late) > 40
    assert max(late) <= 2.6 * (DECODE_S + TOKEN_S)


def test_a_prompt_is_read_however_many_come_and_go() -> None:
    engine = scheduler()
    one, late = request(10, 3000), request(2000, 1)
    engine.add(one)
    count(engine, lambda: len(one.generation.token_ids) == 3, 20)
    engine.add(late)
    for number in range(60):
        for _ in range(3 * (number % 2)):
            engine.add(request(1, 1))
        step(engine)
    assert late.generation.token_ids


def test_one_that_cannot_begin_is_no_reason_for_the_next_to_wait() -> None:
    first, second = request(10, 5), request(10, 5)

    def admitting(request: Request) -> bool:
        if request is second:
            return admit(request)
        engine.remove(request)  # as the engine does with an answer that fails
        return False

    engine = Scheduler(EngineConfig(kv_format="kv4"), admitting, lambda request: False)
    engine.add(first)
    engine.add(second)
    engine.schedule()
    assert (engine.running, engine.waiting) == ([second], [])


def test_side_agents_do_not_keep_main_ones_out() -> None:
    engine = scheduler(max_batch=4)
    sides = [request(10, 100, side=True) for _ in range(6)]
    for side in sides:
        engine.add(side)
    step(engine)
    assert engine.running == sides[:4]
    mains = [request(10, 100) for _ in range(5)]
    for main in mains:
        engine.add(main)
    step(engine)
    assert engine.running == [*sides[:4], *mains[:4]]
    assert engine.waiting == [*sides[4:], mains[4]]


def test_side_agents_pay_only_for_what_a_main_one_waited_for() -> None:
    engine = scheduler()
    engine.charge_side(5.0)
    assert engine.side_share._credit_s == 0
    main = request(10, 100)
    engine.add(main)
    step(engine)
    before = engine.side_share._credit_s
    engine.charge_side(5.0)
    assert engine.side_share._credit_s == before - 5.0
    assert not engine.spares_side()
    main.held = True
    count(engine, lambda: not main.wanted(), 5)
    before = engine.side_share._credit_s
    engine.charge_side(5.0)
    assert engine.side_share._credit_s == before
    assert engine.spares_side()


def test_a_token_at_a_time_beside_main_agents_only() -> None:
    """And no more is waited for than goes into a step."""
    engine, main, along = scheduler(), request(10, 300), request(40, 1, side=True)
    along.one_by_one = True
    engine.add(main)
    step(engine)
    engine.add(along)
    shares = []
    while along in [*engine.waiting, *engine.running] and len(shares) < 280:
        before = along.pending()
        step(engine)
        shares.append(before - along.pending())
    assert set(shares) <= {0, 1}
    assert sum(shares) >= 20
    main.held = True
    left = along.pending()
    step(engine)
    assert along not in engine.running or left - along.pending() > 1
