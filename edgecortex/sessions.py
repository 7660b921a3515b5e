"""Agents kept as sessions of the store, and brought back. Runs on the engine's thread."""

import contextlib
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgecortex.archive import Archive
from edgecortex.contexts import Foreign
from edgecortex.core import EngineCore
from edgecortex.errors import StoreError
from edgecortex.kv.context import Attachment
from edgecortex.store.sessions import Session
from edgecortex.warp.stream import Thought

if TYPE_CHECKING:
    from edgecortex.agent import Agent


@dataclass(frozen=True)
class Restored:
    """How a session came back: of its `num_tokens` tokens, how many from memory and from disk.

    The others are read again with the next question: all of them where the model or the KV format
    is another than the session was saved with.
    """

    num_tokens: int
    num_memory_tokens: int
    num_disk_tokens: int
    seconds: float
    same_model: bool
    same_format: bool
    num_lost_thoughts: int = 0

    @property
    def notice(self) -> str:
        """What a user should know, or nothing."""
        lost = self.num_lost_thoughts
        without = f", without the thoughts injected into it ({lost})" if lost else ""
        if not self.same_model:
            return f"this is another model than the session's: its text is read again{without}"
        if not self.same_format:
            return f"the session's KV has another format: its tokens are read again{without}"
        if lost:
            return f"{lost} of the thoughts injected into it could not be read"
        missing = self.num_tokens - self.num_memory_tokens - self.num_disk_tokens
        if missing > 1:  # the newest token is never stored: it has not been fed yet
            return f"the KV of {missing:,} of its {self.num_tokens:,} tokens is read again"
        return ""


def save(core: EngineCore, agent: "Agent", name: str, model: str) -> "Future[int]":
    """Starts to keep an agent as a session. The future has a result once it is durable.

    Raises:
        StoreError: there is no store.
    """
    archive, told, now = archive_of(core), agent.conversation, time.time()
    seen_from = {laid.id: laid.at for laid in core.contexts.attached(agent)}
    accepted = [t for t in agent.thoughts if t.status == "accepted" and t.id in seen_from]
    session = Session(
        name=name,
        model=model,
        fingerprint=archive.fingerprint,
        kv_format=core.config.kv_format,
        root=archive.chain.root,
        num_sinks=archive.chain.num_sinks,
        block=archive.chain.block,
        num_windows=archive.codec.num_windows,
        num_kv_tokens=core.contexts.num_stored(agent, told.token_ids),
        system=told.system,
        messages=told.messages,
        token_ids=told.token_ids,
        rendered=told.rendered,
        created=agent.created,
        updated=now,
        thoughts=[thought.to_dict() | {"at": seen_from[thought.id]} for thought in accepted],
    )
    return core.contexts.save(agent, session)


def restore(core: EngineCore, agent: "Agent", session: Session) -> Restored:
    """Gives a new agent a session's conversation, and its KV as far as it is stored.

    Raises:
        StoreError: there is no store.
    """
    archive, start = archive_of(core), time.perf_counter()
    agent.created, same_model = session.created, session.fingerprint == archive.fingerprint
    agent.conversation.restore(
        session.messages,
        session.token_ids if same_model else [],
        session.rendered if same_model else "",
    )
    num_lost = _put_back(core, agent, session)
    found, num_tokens = None, len(session.token_ids) + 1
    if same_model and 1 < num_tokens <= core.context_length:
        found = core.contexts.recall(agent, [*session.token_ids, 0], num_tokens)
    if found:
        core.pool.release(found.context)
    return Restored(
        len(session.token_ids),
        found.num_memory_tokens if found else 0,
        found.num_disk_tokens if found else 0,
        time.perf_counter() - start,
        same_model,
        session.root == archive.chain.root,
        num_lost,
    )


def _put_back(core: EngineCore, agent: "Agent", session: Session) -> int:
    """Lets an agent see again what had been injected into its session. Returns how many thoughts
    could not be read, or are of another model or format."""
    archive, found = archive_of(core), []
    for kept in session.thoughts if session.root == archive.chain.root else ():
        with contextlib.suppress(StoreError):
            segment = archive.load_thought(kept["id"], kept["start"], kept["num_tokens"])
            found.append((Attachment(segment, kept["at"], kept["id"]), kept))
    if found:
        core.contexts.begin(agent, Foreign(attached=[laid for laid, _ in found]))
        agent.think_with().thoughts += [Thought.from_dict(kept) for _, kept in found]
    return len(session.thoughts) - len(found)


def archive_of(core: EngineCore) -> Archive:
    """
    Raises:
        StoreError: there is no store.
    """
    if core.contexts.archive is None:
        raise core.store_problem or StoreError(
            "sessions need a store: expected an engine with `use_store`, got one without"
        )
    return core.contexts.archive
