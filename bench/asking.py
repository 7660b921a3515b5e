"""An engine's core asked for tokens after exact token ids, without a chat around them."""

from pathlib import Path
from typing import Any

from edgecortex import gate
from edgecortex.archive import Archive
from edgecortex.bench.text import prompts
from edgecortex.config import EngineConfig, SamplingParams
from edgecortex.core import EngineCore
from edgecortex.errors import EdgeCortexError
from edgecortex.generation import Generation
from edgecortex.kv.context import Context
from edgecortex.models.adapter import load_model
from edgecortex.scheduler import Request
from edgecortex.sessions import archive_of
from edgecortex.store.cache import PersistentKVCache

ROOM = 64  # tokens past the text: new ones and generated ones


def open_core(path: str, store: str, num_tokens: int) -> EngineCore:
    """The model of a folder with its KV format and a store, at rest.

    No token ends an answer. A context may become longer than the model was made for, so that
    there is room after `num_tokens`: that changes what it says, not how fast.

    Raises:
        EdgeCortexError: the store cannot be used.
    """
    model = load_model(Path(path))
    model.tokenizer.eos_token_ids = set()
    longest = max(model.context_length, num_tokens + ROOM)
    model.config["max_position_embeddings"] = longest
    config, _ = gate.resolved(model, EngineConfig(store_path=Path(store), store_max_bytes=None))
    core = EngineCore(model, config)
    archive_of(core).wait()
    return core


def archive_in(core: EngineCore, folder: Path) -> Archive:
    """Another store for the contexts of a core."""
    own = archive_of(core)
    return Archive(PersistentKVCache(folder), own.codec, own.fingerprint)


def context_of(request: Request, num_tokens: int) -> Context:
    """What a complete answer has left.

    Raises:
        EdgeCortexError: it has not just so many tokens.
    """
    held = request.context.num_own if request.context else 0
    if request.context is None or held != num_tokens:
        raise EdgeCortexError(f"expected a context of {num_tokens:,} tokens, got {held:,}")
    return request.context


def passage(core: EngineCore, num_tokens: int) -> list[int]:
    """Ids of exactly this many tokens of real text.

    Raises:
        EdgeCortexError: the text is too short.
    """
    ids = prompts(core.model.tokenizer, [num_tokens])[0]
    if len(ids) != num_tokens:
        raise EdgeCortexError(f"the text has {len(ids):,} tokens, expected {num_tokens:,}")
    return ids


def ask(core: EngineCore, ids: list[int], max_tokens: int, agent: Any = None) -> Request:
    """Submits a greedy answer of `max_tokens` tokens; an agent is anything with an identity."""
    sampling = SamplingParams(max_tokens=max_tokens)
    detokenizer = core.model.tokenizer.detokenizer()
    agent = agent or object()
    request = Request(agent, ids, sampling, Generation(), lambda *_: None, detokenizer)
    core.add(request)
    return request


def finish(core: EngineCore, request: Request) -> None:
    """Steps until an answer is complete.

    Raises:
        EdgeCortexError: it failed.
    """
    while request.generation.stats.finish_reason is None:
        core.step()
    request.generation.text()


def recalled(core: EngineCore, agent: Any, ids: list[int]) -> Context:
    """Gives an agent the stored KV of just these tokens, and returns its context, in use.

    Raises:
        EdgeCortexError: not all of it is stored.
    """
    found = core.contexts.recall(agent, [*ids, 0], len(ids) + ROOM)
    if found is None or found.context.num_own != len(ids):
        held = found.context.num_own if found else 0
        raise EdgeCortexError(f"expected {len(ids):,} tokens from the store, got {held:,}")
    return found.context
