"""One answer as it is made: an iterator of text that can be stopped and measured."""

import asyncio
import contextlib
import queue
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

from edgecortex.errors import StateError


@dataclass
class GenerationStats:
    """Counts in tokens, times in seconds. `ttft_s` is the time to the first token, or to the end
    of an answer without any. Of the prompt, `num_memory_tokens` were resident,
    `num_disk_tokens` came from the store, and the rest was read anew.

    `finish_reason` is `stop`, `length`, `context`, `cancelled`, `error`, or None while the answer
    is being made.
    """

    num_prompt_tokens: int = 0
    num_memory_tokens: int = 0
    num_disk_tokens: int = 0
    num_generated_tokens: int = 0
    num_dropped_messages: int = 0
    ttft_s: float = 0.0
    decode_s: float = 0.0
    finish_reason: str | None = None

    @property
    def num_cached_tokens(self) -> int:
        """Tokens of the prompt whose KV was there already."""
        return self.num_memory_tokens + self.num_disk_tokens

    @property
    def prefill_tokens_per_s(self) -> float:
        """Tokens read anew over the time to the first token."""
        fresh = self.num_prompt_tokens - self.num_cached_tokens
        return fresh / self.ttft_s if self.ttft_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens after the first over the time since the first."""
        return (self.num_generated_tokens - 1) / self.decode_s if self.decode_s else 0.0


@dataclass
class Generation:
    """Iterates over an answer's text as it comes, each consumer from its start; `text()` waits
    for all of it.

    `for` waits in the caller's thread, `async for` in its event loop without blocking it, so
    one loop can follow any number of answers. Either raises what stopped the answer, if an
    error did.
    """

    stats: GenerationStats = field(default_factory=GenerationStats)
    token_ids: list[int] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    cancelled: bool = False
    error: Exception | None = None
    _pieces: list[str] = field(default_factory=list)
    _over: bool = False
    _wakes: list[Callable[[], None]] = field(default_factory=list)

    def __iter__(self) -> Iterator[str]:
        news: queue.SimpleQueue[None] = queue.SimpleQueue()
        at, over = 0, False
        with self._waking(lambda: news.put(None)):
            while not over:
                fresh, over = self._since(at)
                at += len(fresh)
                yield from filter(None, fresh)
                if not over:
                    news.get()
        self._raise()

    async def __aiter__(self) -> AsyncIterator[str]:
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(news.set)

        at, over = 0, False
        with self._waking(wake):
            while not over:
                news.clear()
                fresh, over = self._since(at)
                at += len(fresh)
                for text in filter(None, fresh):
                    yield text
                if not over:
                    await news.wait()
        self._raise()

    def text(self) -> str:
        """The whole answer, once it is complete."""
        return "".join(self)

    def cancel(self) -> None:
        """Asks the engine to stop; what was made so far stays.

        Raises:
            StateError: it has been cancelled before, or the answer is complete.
        """
        if self.cancelled or self.stats.finish_reason:
            state = "complete" if self.stats.finish_reason else "being cancelled already"
            raise StateError(f"cannot cancel: the answer is {state}")
        self.cancelled = True

    # No locks here: a consumer may be interrupted anywhere, and the engine waits for none.

    @contextlib.contextmanager
    def _waking(self, wake: Callable[[], None]) -> Iterator[None]:
        """`wake` is called after each piece."""
        self._wakes.append(wake)
        try:
            yield
        finally:
            self._wakes.remove(wake)

    def _since(self, at: int) -> tuple[list[str], bool]:
        """The pieces from number `at` on, and whether they are the last."""
        over = self._over  # asked first: there may be more pieces later
        return self._pieces[at:], over

    def _raise(self) -> None:
        if self.error:
            raise self.error

    # The engine's side.

    def add_token(self, token_id: int, text: str) -> None:
        """Notes one token and hands out the text that it completes, which may be empty."""
        now = time.perf_counter() - self.started
        self.token_ids.append(token_id)
        self.stats.num_generated_tokens += 1
        if self.stats.num_generated_tokens == 1:
            self.stats.ttft_s = now
        self.stats.decode_s = now - self.stats.ttft_s
        self._put(text)

    def finish(self, reason: str, text: str = "") -> None:
        """Ends the stream with the last of the text, or with `error` to raise."""
        self.stats.finish_reason = reason
        self.stats.ttft_s = self.stats.ttft_s or time.perf_counter() - self.started
        self._put(text, over=True)

    def _put(self, piece: str, over: bool = False) -> None:
        self._pieces.append(piece)
        self._over = over
        for wake in tuple(self._wakes):
            wake()
