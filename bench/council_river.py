"""A River with a long text and Streams that never come to an end, made as users make them."""

import time
from pathlib import Path

from edgecortex.agent import Agent
from edgecortex.bench.side import serve
from edgecortex.bench.text import prompts
from edgecortex.config import EngineConfig
from edgecortex.core import EngineCore
from edgecortex.engine import Engine
from edgecortex.errors import EdgeCortexError
from edgecortex.kv.format import AUTO
from edgecortex.scheduler import Request
from edgecortex.warp.cortex import Cortex

NAME = "river"  # of the session
REPLY = "I have read all of it."
QUESTION = "What matters most in this text?"
ATTEMPTS = 8
POLL_S = 0.05


def open_engine(path: str, store: str, num_streams: int = 0, kv_format: str = AUTO) -> Engine:
    """An engine on a store of its own, with room for so many Streams in a step. No token ends
    an answer."""
    most = max(EngineConfig.max_batch, num_streams + 1)
    config = EngineConfig(kv_format=kv_format, max_batch=most, store_path=Path(store))
    engine = Engine.load(path, config=config)
    engine.model.tokenizer.eos_token_ids = set()
    return engine


def keep(path: str, store: str, tokens: int, kv_format: str) -> int:
    """Reads a conversation of that many tokens and keeps it as a session.

    Returns: its bytes on disk.
    """
    with open_engine(path, store, kv_format=kv_format) as engine:
        agent = engine.agent(NAME)
        _tell(agent, tokens)
        agent.read()
        return agent.save(NAME).result()


def _tell(agent: Agent, num_tokens: int) -> None:
    """One turn about real text: with what a chat adds to it, just this many tokens.

    Raises:
        EdgeCortexError: no text was found that comes to it.
    """
    tokenizer = agent.engine.model.tokenizer
    length = num_tokens
    for _ in range(ATTEMPTS):
        agent.reset()
        text = tokenizer.decode(prompts(tokenizer, [length])[0])
        agent.tell(text, REPLY)
        if agent.num_tokens == num_tokens:
            return
        length = max(1, length + num_tokens - agent.num_tokens)
    raise EdgeCortexError(
        f"no text for a River: expected {num_tokens:,} tokens, got {agent.num_tokens:,}; "
        "choose another number"
    )


def restored(engine: Engine) -> Agent:
    """The agent that was kept, its KV from disk.

    Raises:
        EdgeCortexError: some of that is missing.
    """
    agent, found = engine.restore(NAME)
    if found.num_disk_tokens < found.num_tokens - 1:  # the newest one has not been fed
        expected = found.num_tokens - 1
        raise EdgeCortexError(
            f"expected {expected:,} tokens from the store, got {found.num_disk_tokens:,}"
        )
    return agent


def tasks(count: int) -> list[str]:
    """Each another one."""
    return [f"Say what is easily overlooked in part {i + 1} of the text." for i in range(count)]


def wait_until_begun(engine: Engine, cortex: Cortex, count: int) -> None:
    """Waits until so many Streams have landmarks, and have been asked to think."""

    def begun() -> bool:
        waiting = any(stream.generation is None for stream in cortex.streams)
        return len(cortex.thoughts) >= count and not waiting

    while not engine.call(begun):
        time.sleep(POLL_S)


def step_until_said(core: EngineCore, cortex: Cortex, count: int, num_tokens: int) -> list[Request]:
    """Steps until so many Streams have each said that many tokens; one that has rests. On the
    engine's thread, once they have begun.

    Returns: what they are busy with.

    Raises:
        EdgeCortexError: one has ended before.
    """
    while True:
        requests = [request for request in core.scheduler.running if request.side]
        for request in requests:
            request.held = request.generation.stats.num_generated_tokens >= num_tokens
        if ended := [thought for thought in cortex.thoughts if thought.ended]:
            reason = ended[0].reason or "it has said all it may"
            raise EdgeCortexError(
                f"expected {count:,} Streams in memory at once, got {len(requests):,} before one "
                f"was {ended[0].status}: {reason}"
            )
        if len(requests) == count and all(request.held for request in requests):
            return requests
        core.step()


if __name__ == "__main__":
    serve({"keep": keep})
