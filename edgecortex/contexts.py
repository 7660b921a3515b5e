"""Where every agent's KV is, and how it gets there again."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgecortex.archive import Archive
from edgecortex.errors import BudgetError, StoreError
from edgecortex.kv.context import Attachment, Context, Trace, marks_of
from edgecortex.kv.pool import BlockPool
from edgecortex.store.cache import Match
from edgecortex.store.sessions import Session
from edgecortex.tokens import common_prefix_len

if TYPE_CHECKING:
    from edgecortex.agent import Agent


@dataclass(frozen=True)
class Recalled:
    """A context in use, and where what it holds came from, in tokens. Of `num_known` the store
    has blocks, but maybe not the windows to begin with there."""

    context: Context
    num_memory_tokens: int
    num_disk_tokens: int
    num_known: int


@dataclass
class Foreign:
    """What a context has beside its own tokens."""

    base: int = 0
    attached: Sequence[Attachment] = ()
    trace: Trace | None = None


class AgentContexts:
    """The contexts of all agents: resident, or on disk once they had to make room.

    A prompt starts from the longest prefix of it that is known: the agent's own context, the
    beginning of another's if it `shares`, or blocks on disk.
    """

    def __init__(self, pool: BlockPool, archive: Archive | None, shares: bool = True) -> None:
        self.pool, self.archive, self.shares = pool, archive, shares
        self._contexts: dict[Agent, Context] = {}
        self._spilled: dict[Agent, Future[int]] = {}
        self._forks: list[tuple[Sequence[int], Future[int]]] = []
        self._foreign: dict[Agent, Foreign] = {}  # of agents that are not resident
        pool.on_evict = self._spill

    def get(self, agent: "Agent") -> Context | None:
        """An agent's context, if it is resident."""
        return self._contexts.get(agent)

    def release(self, agent: "Agent") -> None:
        """Frees an agent's KV."""
        self._spilled.pop(agent, None)
        self._foreign.pop(agent, None)
        if context := self._contexts.pop(agent, None):
            self.pool.close(context)

    def renew(self, agent: "Agent") -> None:
        """Frees what an agent has read itself: what is attached to it stays."""
        context = self._contexts.get(agent)
        self.release(agent)
        if context and context.attached:
            self.begin(agent, Foreign(context.base, context.attached))

    def fork(self, parent: "Agent", child: "Agent") -> None:
        """Gives `child` the KV of `parent`, if it has any and there is room for one more row."""
        if context := self._contexts.get(parent):
            with self.pool.kept(context):
                try:
                    self._contexts[child] = self.pool.fork(context)
                except BudgetError:
                    self.begin(child, Foreign(context.base, list(context.attached)))
        elif foreign := self._foreign.get(parent):
            self.begin(child, Foreign(foreign.base, list(foreign.attached)))

    def begin(self, agent: "Agent", foreign: Foreign) -> None:
        """Lets the context of an agent that has none begin with what is not its own."""
        self._foreign[agent] = foreign

    def attached(self, agent: "Agent") -> Sequence[Attachment]:
        """The foreign segments that an agent sees."""
        context = self._contexts.get(agent)
        return context.attached if context else self._foreign.get(agent, Foreign()).attached

    def lift(self, agent: "Agent", id: str) -> None:
        """Takes a foreign segment back, and what has seen it."""
        if context := self._contexts.get(agent):
            self.pool.lift(context, id)
        elif foreign := self._foreign.get(agent):
            foreign.attached = [laid for laid in foreign.attached if laid.id != id]

    def _open(self, agent: "Agent") -> Context:
        """
        Raises:
            BudgetError: there is no room for its row.
        """
        if agent not in self._contexts:
            context = self._contexts[agent] = self.pool.open()
            foreign = self._foreign.pop(agent, Foreign())
            context.base, context.trace = foreign.base, foreign.trace
            for laid in foreign.attached:
                self.pool.lay(context, laid.segment, laid.id, laid.at)
        return self._contexts[agent]

    def recall(self, agent: "Agent", prompt_ids: Sequence[int], num_tokens: int) -> Recalled | None:
        """Finds an agent a context with what is known of its prompt, but for the last token at
        least, and room for `num_tokens`. None if there is no room now."""
        self._await_spill(agent)
        if self.archive and (saves := self.forks_to_come(agent, prompt_ids)):
            self.archive.wait(saves)
        try:
            context = self._open(agent)
        except BudgetError:
            return None
        wanted = prompt_ids[:-1]
        self._share(context, wanted)
        common = common_prefix_len(context.token_ids, wanted)
        if common < context.num_own:  # the conversation has taken another course
            context.show_attached_from(common)
        self.pool.truncate(context, common)
        match = self._match(wanted, context)
        worthwhile = self.pool.format.block if context.num_own else 1
        if match.num_tokens >= context.num_own + worthwhile:
            self.pool.truncate(context, 0)
        num_memory = context.num_own
        if not self.pool.acquire(context, num_tokens):
            return None
        if not context.num_own:
            self._load(context, wanted, match)
            self.pool.acquire(context, num_tokens)
        return Recalled(context, num_memory, context.num_own - num_memory, match.num_known)

    def _match(self, wanted: Sequence[int], context: Context | None = None) -> Match:
        """What is stored of these tokens, as they are where a context is to hold them."""
        if self.archive is None or (context and context.base):
            return Match()
        return self.archive.match(wanted, context.marks if context else ())

    def _load(self, context: Context, wanted: Sequence[int], match: Match) -> None:
        """Fills an empty context from disk, less what turns out to be unusable there. The same
        match again is left: what is damaged could not be set aside."""
        while self.archive and match.num_tokens:
            try:
                self.archive.load(context, wanted, match)
                return
            except StoreError:
                again = self._match(wanted, context)
                match = again if again.entries != match.entries else Match()

    def holds(self, agent: "Agent", ids: Sequence[int]) -> bool:
        """Whether an agent's resident context begins with these tokens."""
        context = self._contexts.get(agent)
        return context is not None and common_prefix_len(context.token_ids, ids) == len(ids)

    def num_resident(self, agent: "Agent", ids: Sequence[int]) -> int:
        """How many leading tokens are in memory: of the agent's own, or in blocks of others."""
        own = self._contexts.get(agent)
        known = common_prefix_len(own.token_ids, ids) if own else 0
        can_share = self.shares and not self.pool.slides
        return max(known, self.num_of_others(agent, ids)) if can_share else known

    def num_of_others(self, agent: "Agent", ids: Sequence[int]) -> int:
        """How many leading tokens other agents have in blocks in memory."""
        return max(self._of_others(self._contexts.get(agent), ids).values(), default=0)

    def num_on_disk(self, ids: Sequence[int]) -> int:
        """How many leading tokens are stored."""
        return self._match(ids).num_tokens

    def shared_len(self, a: Sequence[int], b: Sequence[int]) -> int:
        """How many leading tokens two runs share, in the sinks and whole blocks."""
        format, common = self.pool.format, common_prefix_len(a, b)
        sealed = format.num_sealed(common)
        return format.num_sinks + sealed if sealed else 0

    def save(self, agent: "Agent", session: Session) -> "Future[int]":
        """Starts to store all of an agent's KV, and then a manifest of it. There is a store."""
        assert self.archive is not None
        context = self._contexts.get(agent)
        if context and context.num_own and not context.base:
            return self.archive.save(context, tail=True, session=session)
        return self.archive.save_session(session, self.attached(agent))

    def save_blocks(self, agent: "Agent") -> None:
        """Starts to store an agent's sealed KV, if it has any and there is a store."""
        context = self._contexts.get(agent)
        if self.archive and context and context.own_segments and not context.base:
            self.archive.save(context)

    def save_fork(self, agent: "Agent") -> None:
        """Starts to store an agent's sealed KV as it is now: others begin with it. There is a
        store; what it cannot take is read again."""
        assert self.archive is not None
        context = self._contexts[agent]
        try:
            self._forks.append((list(context.token_ids), self.archive.save(context)))
        except Exception as error:
            self.archive.problem = StoreError(repr(error))

    def forks_to_come(self, agent: "Agent", ids: Sequence[int]) -> "list[Future[int]]":
        """The saves under way of what these tokens begin with, where that is more than the agent
        has in memory."""
        self._forks = [(fork, saved) for fork, saved in self._forks if not saved.done()]
        own = self._contexts.get(agent)
        known = common_prefix_len(own.token_ids, ids) if own else 0
        longer = [(fork, saved) for fork, saved in self._forks if len(fork) > known]
        return [saved for fork, saved in longer if list(ids[: len(fork)]) == fork]

    def num_stored(self, agent: "Agent", token_ids: Sequence[int]) -> int:
        """How many of these tokens `save` would leave stored."""
        self._await_spill(agent)
        foreign = self._contexts.get(agent) or self._foreign.get(agent, Foreign())
        if foreign.base:
            return 0
        if isinstance(foreign, Context):
            common = common_prefix_len(foreign.token_ids, token_ids)
            held, wanted = map(self.pool.format.num_sealed, (foreign.num_own, common))
            if held == wanted or not self.pool.slides:
                return common  # windows are stored at the end only
        if self.archive is None:
            return 0
        self.archive.wait()
        return self.archive.match(token_ids, marks_of(foreign.attached)).num_tokens

    def _resident(self) -> list[Context]:
        return [c for c in self._contexts.values() if not c.attached and not c.base]

    def _of_others(self, context: Context | None, ids: Sequence[int]) -> dict[Context, int]:
        """How many leading tokens each other resident context has in blocks."""
        others = (c for c in self._resident() if c is not context)
        return {c: self.shared_len(c.token_ids, ids) for c in others}

    def _share(self, context: Context, wanted: Sequence[int]) -> None:
        """Lets a context begin with another's blocks if that is more than it has."""
        if not self.shares or context.attached or context.base:
            return
        shared = self._of_others(context, wanted)
        donor = max(shared, key=lambda c: shared[c], default=None)
        if donor and shared[donor] > common_prefix_len(context.token_ids, wanted):
            self.pool.share(donor, context, shared[donor])

    def _spill(self, context: Context) -> None:
        """Moves a context to disk, if there is a store; its agent finds it there."""
        agent = next(agent for agent, held in self._contexts.items() if held is context)
        if self.archive and context.num_own and not context.base:
            self._spilled[agent] = self.archive.save(context, tail=True)
        if context.base or context.attached or context.trace:
            self._foreign[agent] = Foreign(context.base, context.attached, context.trace)
        del self._contexts[agent]

    def _await_spill(self, agent: "Agent") -> None:
        """Waits until what was spilled of an agent can be read."""
        if self.archive and (spilled := self._spilled.pop(agent, None)):
            self.archive.wait([spilled])
