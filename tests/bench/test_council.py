"""The benchmark of side agents, small, on the real model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgecortex import SamplingParams, runner
from edgecortex.agent import Agent
from edgecortex.bench import council, council_memory, council_river, council_speed
from edgecortex.bench.council_river import (
    keep,
    open_engine,
    restored,
    step_until_said,
    wait_until_begun,
)
from edgecortex.config import EngineConfig
from edgecortex.engine import Engine
from edgecortex.errors import EdgeCortexError
from edgecortex.kv.format import KV4
from edgecortex.warp.cortex import Cortex, CortexConfig
from edgecortex.warp.stream import Thought

TOKENS = 200
SMALL_QWEN = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
SMALL = council.Plan(
    river_tokens=TOKENS,
    resident=(3,),
    said=(2, 6),
    busy=(0, 2),
    rounds=2,
    phase_tokens=24,
    thought_tokens=4,
    published=(2,),
)


@pytest.fixture(scope="module")
def report(smollm2: Path) -> dict[str, Any]:
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(council, "QWEN25_05B", SMALL_QWEN)
        patch.setattr(council, "PUBLISHED_MB", {2: 7})
        found = council.measure(str(smollm2), lines.append, plan=SMALL)
    assert len(lines) == 8  # two Rivers, a model, four numbers of Streams and thoughts
    return found


def rows(report: dict[str, Any], what: str) -> list[dict[str, Any]]:
    return [row for row in report["rows"] if row["what"] == what]


def test_memory(report: dict[str, Any]) -> None:
    found = rows(report, "memory")
    rounds = [(row["said"], row["round"]) for row in found]
    assert rounds == [(2, 1), (2, 2), *((6, n) for n in (1, 2, 3, 4))] * 2
    found = [row for row in found if row["round"] == 1]
    of_each = [(row["model"], row["streams"], row["said"]) for row in found]
    own = report["settings"]["model"]
    assert of_each == [(own, 3, 2), (own, 3, 6), (council.QWEN, 2, 2), (council.QWEN, 2, 6)]
    assert [row.get("published_mb") for row in found] == [None, None, 7, 7]
    for row in found:
        assert row["river_tokens"] == TOKENS
        grown = max(row["process_mb"], row["mlx_arrays_mb"] + row["mlx_cache_mb"])
        assert row["mb_per_stream"] == pytest.approx(grown / row["streams"])
    # A row is 30 layers of 3 heads, keys and values of 68 tokens and 64 numbers in 16 bits.
    assert found[0]["mlx_arrays_mb"] > 3 * 30 * 3 * 2 * 68 * 64 * 2 / 1e6


def test_speed(report: dict[str, Any]) -> None:
    found = rows(report, "speed")
    rounds = range(1, report["settings"]["rounds"] + 1)
    assert [(row["streams"], row["round"]) for row in found] == [
        (n, i) for n in (0, 2) for i in rounds
    ]
    for row in found:
        assert row["river_alone_tok_s"] > 0 < row["river_beside_tok_s"]
        share = row["river_beside_tok_s"] / row["river_alone_tok_s"]
        assert row["river_share"] == pytest.approx(share)
        assert (row["streams_beside_tok_s"] > 0) == (row["streams"] > 0)
        assert (row["streams_alone_tok_s"] > 0) == (row["streams"] > 0)


def test_thoughts(report: dict[str, Any]) -> None:
    found = rows(report, "thought")
    verdicts = [(row["status"], row["reason"]) for row in found]
    assert verdicts[0] == ("accepted", "")
    # When landmarks are looked at, and so what is thought, depends on how far the River has got.
    assert verdicts[1] in (("accepted", ""), ("rejected", "already known"))
    for row in found:
        assert row["gap"] == row["longest_gap_s"] / row["alone_gap_s"] > 0
        assert row["river_share"] > 0
        assert 0 < row["begun_s"] < row["decided_s"]
        assert 0 < row["inject_s"] < row["decided_s"]


def test_settings(report: dict[str, Any]) -> None:
    settings = report["settings"]
    assert settings["river_share"] == EngineConfig.river_share
    assert (settings["resident"], settings["busy"]) == ((3,), (0, 2))
    assert list(report["figures"]) == ["council.thought_gap"]  # neither 100 in memory nor 16 busy
    accepted = [row["gap"] for row in rows(report, "thought") if row["status"] == "accepted"]
    ends = {"council.thought_gap": [min(accepted), max(accepted)]} if len(accepted) > 1 else {}
    assert report["spread"] == ends


def test_figures() -> None:
    """Of the model itself, and of those who have said least."""

    def memory(model: str, streams: int, mb: float, said: int = 8) -> dict[str, Any]:
        found = {"model": model, "what": "memory", "streams": streams, "said": said}
        return found | {"mb_per_stream": mb}

    def thought(status: str, gap: float) -> dict[str, Any]:
        return {"model": "m", "what": "thought", "status": status, "gap": gap}

    def speed(streams: int, share: float) -> dict[str, Any]:
        return {"model": "m", "what": "speed", "streams": streams, "river_share": share}

    made_up = [
        memory("m", 10, 5.0),
        memory("m", 100, 1.5),
        memory("m", 100, 1.3),
        memory("m", 100, 1.6),
        memory("m", 100, 2.5, said=64),
        memory("other", 100, 9.0),
        *(speed(16, share) for share in (0.8, 0.9, 0.85)),
        speed(4, 0.7),
        *(thought("accepted", gap) for gap in (1.5, 3.0, 2.0)),
        thought("rejected", 9.0),
    ]
    figures = {"mb_per_stream_100": 1.5, "river_share_16": 0.85, "thought_gap": 2.0}
    counted = council._counted(made_up, "m")
    assert council._figures(counted) == {f"council.{k}": v for k, v in figures.items()}
    assert len(counted) == 3 + 3 + 3


def test_many_streams_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, list[int]]] = []

    def run(module: str, job: str, count: int, said: list[int], **_: Any) -> list[Any]:
        asked.append((count, said))
        return []

    monkeypatch.setattr(council.side, "run", run)
    river = council._River("m", "path", "store", KV4.name, council.Plan(), lambda line: None)
    assert river.memory((100, 1000)) == []
    assert asked == [(100, [8, 64]), (1000, [8])]


# In this process.


@pytest.fixture(scope="module")
def store(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("council"))
    assert keep(str(smollm2), folder, TOKENS, KV4.name) > 0
    return folder


@pytest.fixture
def engine(smollm2: Path, store: str) -> Iterator[Engine]:
    with open_engine(str(smollm2), store, 4, KV4.name) as engine:
        yield engine


@pytest.fixture
def river(engine: Engine) -> Agent:
    river = restored(engine)
    assert (river.num_tokens, river.messages[-1]["content"]) == (TOKENS, council_river.REPLY)
    return river


def asked(river: Agent, count: int, max_tokens: int) -> Cortex:
    cortex = river.think_with(CortexConfig(sampling=SamplingParams(max_tokens=max_tokens)))
    cortex.ask("What is it about?", [Thought(task) for task in council_river.tasks(count)])
    wait_until_begun(river.engine, cortex, count)
    return cortex


def test_streams_are_in_memory_all_at_once(engine: Engine, river: Agent) -> None:
    cortex, core = asked(river, 4, 64), engine.core
    for num_tokens in (3, 5):
        requests = engine.call(lambda n=num_tokens: step_until_said(core, cortex, 4, n))
        assert {request.agent for request in requests} == set(cortex.streams)
        held = [core.contexts.get(stream) for stream in cortex.streams]
        assert len({context.slot for context in held}) == 4
        for stream, context in zip(cortex.streams, held, strict=True):
            assert stream.generation.stats.num_generated_tokens == num_tokens
            assert context.base >= TOKENS
            assert context.num_own == len(stream.conversation.token_ids) + num_tokens - 1
            assert [laid.id for laid in context.attached] == ["synapse"]
        assert {stream.thought.status for stream in cortex.streams} == {"thinking"}
    assert core.contexts.get(river).num_own >= TOKENS


def test_a_stream_that_ends_is_an_error(engine: Engine, river: Agent) -> None:
    cortex = asked(river, 2, max_tokens=4)
    with pytest.raises(EdgeCortexError, match="expected 2 Streams in memory at once, got"):
        engine.call(lambda: step_until_said(engine.core, cortex, 2, 8))


def test_streams_that_find_no_room_are_an_error(
    smollm2: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_default_budget", lambda: 8_000_000)
    with pytest.raises(EdgeCortexError, match=r"expected 6 Streams in memory at once, got [0-5] "):
        council_memory.streams(str(smollm2), store, KV4.name, 6, [2])


def test_who_rests_says_nothing(engine: Engine, river: Agent) -> None:
    """Those who are meant to are all that say something, and are counted."""
    made = council_speed._begun(river, 2)

    def said() -> list[int]:
        who = (made.river, *made.streams)
        return [request.generation.stats.num_generated_tokens for request in who]

    def measured(river: bool, streams: bool) -> tuple[list[int], tuple[float, float]]:
        before = said()
        rates = made.rates(river, streams, 6)
        return [new - old for new, old in zip(said(), before, strict=True)], rates

    def gained(river: bool, streams: bool) -> tuple[list[int], tuple[float, float]]:
        return engine.call(lambda: measured(river, streams))  # between calls they go on

    settled = 6 + council_speed.SETTLING
    (main, *side), rates = gained(True, False)
    assert (main, side, rates[1]) == (settled, [0, 0], 0)
    (main, *side), rates = gained(False, True)
    assert (main, side, rates[0]) == (0, [settled, settled], 0)
    (main, *side), rates = gained(True, True)
    assert (main, rates[0] > 0) == (settled, True)
    assert max(side) <= settled


def test_an_answer_that_ends_is_an_error(
    engine: Engine, river: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(council_speed, "MOST", 12)
    made = council_speed._begun(river, 1)
    with pytest.raises(EdgeCortexError, match=r"expected all to go on decoding.*: length"):
        engine.call(lambda: made.rates(True, False, 20))


def test_a_river_too_short_for_a_chat_is_an_error(engine: Engine) -> None:
    with pytest.raises(EdgeCortexError, match="no text for a River: expected 20 tokens, got"):
        council_river._tell(engine.agent(), 20)


def test_a_river_that_was_not_read_is_an_error(smollm2: Path, tmp_path: Path) -> None:
    with open_engine(str(smollm2), str(tmp_path), kv_format=KV4.name) as engine:
        river = engine.agent()
        council_river._tell(river, TOKENS)
        river.save(council_river.NAME).result()
        with pytest.raises(EdgeCortexError, match="expected 199 tokens from the store, got 0"):
            restored(engine)
