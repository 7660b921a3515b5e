"""Streams that wait for landmarks, which are collected while their River goes on."""

from collections.abc import Iterator
from typing import Any

import pytest

from edgecortex import Engine
from edgecortex.warp import synapse
from edgecortex.warp.stream import Thought
from tests import scripted
from tests.scripted import context_of, limit, until
from tests.warp.test_streams import SCRIPT, make_river, statuses

__all__ = ["statuses"]  # holds for every test here too


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with scripted.engine(SCRIPT, river_share=0.2) as engine:
        yield engine


def test_a_river_goes_on_while_landmarks_are_collected(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than a layer of them between two of its tokens, for however many Streams."""
    river = make_river(engine)
    answer = river.chat("Go on.", limit(3000))
    next(iter(answer))
    said: list[int] = []
    real = synapse.collect_layer

    def collect_layer(*args: Any) -> Any:
        said.append(answer.stats.num_generated_tokens)
        return real(*args)

    monkeypatch.setattr(synapse, "collect_layer", collect_layer)
    streams = [river.spawn(f"find {i}") for i in range(3)]
    until(engine, lambda: all(each.thought.status == "thinking" for each in streams))
    assert len(said) == len(set(said)) == len(engine.core.pool.caches) > 1
    assert len({id(context_of(each).attached[0].segment) for each in streams}) == 1
    answer.cancel()
    for each in streams:
        each.close()


def test_landmarks_that_cannot_be_collected(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who wait for them have failed thoughts; the next one gets others."""
    river = make_river(engine)
    with monkeypatch.context() as patch:
        patch.setattr(synapse, "collect_layer", lambda *args: 1 / 0)
        streams = [river.spawn("find one") for _ in range(2)]
        for each in streams:
            assert each.result(60).status == "failed"
            assert "division by zero" in each.thought.reason
    assert river.spawn("find one").result(60).text == "It is blue."


def test_landmarks_are_there_though_the_river_is_asked_at_once(engine: Engine) -> None:
    river = make_river(engine, sampling=limit(2000))
    stream = river.spawn("Think of it.")
    answer = river.chat("And what of the ferry, which is late as well?", limit(2000))
    until(engine, lambda: stream.thought.status == "thinking")
    assert [laid.id for laid in context_of(stream).attached] == ["synapse"]
    assert stream.generation
    assert stream.generation.stats.num_prompt_tokens < 40
    stream.close()
    answer.cancel()
    answer.text()


def test_what_is_collected_for_nobody_is_let_go(engine: Engine) -> None:
    river = make_river(engine)
    cortex = river.think_with()

    def run() -> tuple[int, int]:
        stream = cortex._start(Thought("find one"), cortex.router)
        cortex._prepare()
        part = len(cortex.synapse._layers)
        cortex._stop(stream)
        cortex._prepare()
        return part, len(cortex.synapse._layers)

    assert engine.call(run) == (1, 0)
