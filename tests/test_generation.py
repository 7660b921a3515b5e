"""A generation: its text, its counts, and how it ends."""

import asyncio
import threading
import time

import pytest

from edgecortex.errors import StateError
from edgecortex.generation import Generation, GenerationStats


def _made_of(*pieces: str, reason: str = "stop", last: str = "") -> Generation:
    generation = Generation()
    for token_id, piece in enumerate(pieces):
        generation.add_token(token_id, piece)
    generation.finish(reason, last)
    return generation


def test_pieces_come_in_order_and_empty_ones_not_at_all() -> None:
    generation = _made_of("a", "", "b", last="c")
    assert list(generation) == ["a", "b", "c"]
    assert generation.token_ids == [0, 1, 2]
    assert generation.stats.num_generated_tokens == 3
    assert generation.stats.finish_reason == "stop"


def test_text_is_the_whole_however_much_was_read_before() -> None:
    generation = _made_of("a", "b", "c")
    assert next(iter(generation)) == "a"
    assert generation.text() == "abc"
    assert generation.text() == "abc"
    assert list(generation) == ["a", "b", "c"]


def test_an_error_is_raised_after_the_text_and_each_time() -> None:
    generation = Generation()
    generation.add_token(1, "a")
    generation.error = ValueError("broken")
    generation.finish("error")
    pieces = iter(generation)
    assert next(pieces) == "a"
    with pytest.raises(ValueError, match="broken"):
        next(pieces)
    with pytest.raises(ValueError, match="broken"):
        generation.text()


def test_a_reader_waits_for_the_engine() -> None:
    generation, read = Generation(), []
    reader = threading.Thread(target=lambda: read.append(generation.text()))
    reader.start()
    generation.add_token(1, "a")
    generation.finish("stop")
    reader.join(10)
    assert read == ["a"]


def test_every_consumer_gets_all_of_it() -> None:
    """In threads and in a loop, while the engine's thread makes more."""
    generation, read = Generation(), dict[str, list[str]]()
    pieces = [str(i) for i in range(500)]

    async def follow(name: str) -> None:
        read[name] = [piece async for piece in generation]

    async def followers() -> None:
        await asyncio.gather(follow("first"), follow("second"))

    def make() -> None:
        while len(generation._wakes) < 4:
            time.sleep(0.001)
        for i, piece in enumerate(pieces):
            generation.add_token(i, piece)
        generation.finish("stop", "end")

    jobs = [
        lambda: read.update(third=list(generation)),
        lambda: read.update(fourth=list(generation)),
        lambda: asyncio.run(followers()),
        make,
    ]
    threads = [threading.Thread(target=job, daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    expected = [*pieces, "end"]
    assert read == dict.fromkeys(["first", "second", "third", "fourth"], expected)


def test_a_consumer_may_leave() -> None:
    """In the midst of an answer, and nobody else waits for ever."""
    generation = Generation()
    generation.add_token(0, "a")

    async def leave() -> str:
        pieces = aiter(generation)
        first = await anext(pieces)
        await pieces.aclose()
        return first

    assert asyncio.run(leave()) == "a"
    assert generation._wakes == []
    generation.add_token(1, "b")
    generation.finish("stop")
    assert generation.text() == "ab"


def test_cancel_asks_once() -> None:
    generation = Generation()
    generation.cancel()
    assert generation.cancelled
    with pytest.raises(StateError, match="being cancelled already"):
        generation.cancel()


def test_a_complete_answer_cannot_be_cancelled() -> None:
    generation = _made_of("a")
    with pytest.raises(StateError, match="complete"):
        generation.cancel()
    assert generation.text() == "a"


def test_an_answer_without_tokens_has_a_time_too() -> None:
    stats = _made_of().stats
    assert stats.ttft_s > 0
    assert (stats.decode_s, stats.num_generated_tokens) == (0, 0)


def test_rates() -> None:
    stats = GenerationStats(
        num_prompt_tokens=120,
        num_memory_tokens=12,
        num_disk_tokens=8,
        num_generated_tokens=11,
        ttft_s=2.0,
        decode_s=5.0,
    )
    assert stats.prefill_tokens_per_s == 50
    assert stats.decode_tokens_per_s == 2


def test_rates_of_nothing_are_zero() -> None:
    assert GenerationStats().prefill_tokens_per_s == 0
    assert GenerationStats(num_generated_tokens=1).decode_tokens_per_s == 0
