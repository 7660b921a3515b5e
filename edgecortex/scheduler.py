"""Who runs in the next step, and with how many tokens."""

import itertools
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from edgecortex.config import EngineConfig, SamplingParams
from edgecortex.generation import Generation
from edgecortex.kv.context import Context
from edgecortex.kv.format import FORMATS, KV4
from edgecortex.yielding import SideShare, blend

if TYPE_CHECKING:
    from edgecortex.agent import Agent, AnswerHook

MIN_SHARE = 16  # tokens of a prefill that always go into a step, so that it never starves
GOOD_FOR = 16  # steps with prefill in them, after which what one without takes is learnt anew


class Watcher(Protocol):
    """Is told, on the engine's thread, how an answer comes along."""

    def admitted(self, context: Context) -> None:
        """It has got a context."""

    def has_read(self) -> None:
        """All of the prompt but its last token is read."""

    def heard(self, text: str) -> None:
        """Text has come."""


@dataclass(eq=False)
class Request:
    """One answer to make. Lower `priority` goes first.

    A `side` request takes what the others leave; beside them it reads `one_by_one` if a share of a
    prompt is dear where its context is long. One that is `held` reads its prompt but for the last
    token, and waits.
    """

    agent: "Agent"
    prompt_ids: list[int]
    sampling: SamplingParams
    generation: Generation
    answered: "AnswerHook"
    detokenizer: Any
    priority: int = 0
    side: bool = False
    held: bool = False
    one_by_one: bool = False
    watcher: Watcher | None = None
    text: str = ""
    cut: bool = False  # at a stop string
    num_emitted: int = 0
    seed: int = field(default_factory=lambda: secrets.randbits(32))
    context: Context | None = None
    num_stored: int | None = None  # leading tokens of the prompt on disk, once that was asked
    forks: set[int] = field(default_factory=set)  # lengths at which what is read is stored
    last_step: int = 0  # in which it had a share
    told_read: bool = False
    number: int = field(default_factory=itertools.count().__next__)
    refused_at: int | None = None  # the pool's `num_freed` when it had to wait

    def __post_init__(self) -> None:
        if self.sampling.seed is not None:
            self.seed = self.sampling.seed

    @property
    def token_ids(self) -> list[int]:
        """The prompt and what has been generated."""
        return self.prompt_ids + self.generation.token_ids

    @property
    def max_tokens(self) -> int:
        """The longest that its context can get."""
        return len(self.prompt_ids) + self.sampling.max_tokens

    def next_ids(self, count: int) -> list[int]:
        """The next `count` tokens to feed."""
        assert self.context is not None
        fed, prompt = self.context.num_own, len(self.prompt_ids)
        if fed < prompt:
            return self.token_ids[fed : fed + count]
        return self.generation.token_ids[fed - prompt : fed - prompt + count]

    def pending(self) -> int:
        """Tokens that are not in the KV yet."""
        fed = 0 if self.context is None else self.context.num_own
        return len(self.prompt_ids) + len(self.generation.token_ids) - fed

    def wanted(self) -> int:
        """Tokens that it may be fed now."""
        return self.pending() - self.held


class Scheduler:
    """Continuous batching: every running answer decodes in every step, prefills fill up.

    `admit(request)` is asked for a context when a request's turn comes: it says whether there
    was room. A request that `holds(request)` lets others pass.
    """

    def __init__(
        self,
        config: EngineConfig,
        admit: Callable[[Request], bool],
        holds: Callable[[Request], bool],
    ) -> None:
        self.config, self._admit, self._holds = config, admit, holds
        self._format = FORMATS.get(config.kv_format, KV4)
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.side_share = SideShare(config.river_share, config.max_gap)
        self._num_steps = 0
        self._decode_s: dict[int, float] = {}  # of steps of 1, 2 to 3, 4 to 7, … rows
        self._num_mixed: Counter[int] = Counter()  # steps since that was learnt
        self._prefill_token_s: float | None = None

    @property
    def has_work(self) -> bool:
        return bool(self.waiting) or any(r.wanted() for r in self.running)

    def add(self, request: Request) -> None:
        """Queues a request behind those of its priority."""
        self.waiting.append(request)
        self.waiting.sort(key=lambda r: r.priority)

    def remove(self, request: Request) -> None:
        """Takes a request out, wherever it is."""
        for queue in (self.waiting, self.running):
            if request in queue:
                queue.remove(request)

    def let_go(self, agent: "Agent") -> None:
        """Lets an agent's answer begin, if it was held."""
        for request in self._of(agent):
            request.held = request.one_by_one  # that is no answer

    def text_of(self, agent: "Agent") -> str:
        """What an agent has said so far of the answer it is making."""
        return "".join(request.text for request in self._of(agent))

    def _of(self, agent: "Agent") -> list[Request]:
        return [request for request in (*self.running, *self.waiting) if request.agent is agent]

    def schedule(self) -> list[tuple[Request, int]]:
        """The next step's requests and how many tokens each one feeds."""
        self._admit_waiting()
        self._num_steps += 1
        able = [request for request in self.running if request.wanted()]
        main = [request for request in able if not request.side]
        batch = self._shares(main or able)
        if len(able) > len(main) == len(batch) and all(n == 1 for _, n in batch):
            batch += self._side_shares([request for request in able if request.side])
        for request, _ in batch:
            request.last_step = self._num_steps
        return batch

    def _shares(self, able: Sequence[Request]) -> list[tuple[Request, int]]:
        """Everyone who decodes, and prefills as far as there is room beside them."""
        batch = [(request, 1) for request in able if request.pending() == 1]
        prefilling = [request for request in able if request.pending() > 1]
        room = self.prefill_room(len(batch)) if batch else self.config.prefill_chunk
        for request in sorted(prefilling, key=lambda r: r.priority):
            if room <= 0:
                break
            share = self._prefill_share(request, room)
            batch.append((request, share))
            room -= share
        return batch

    def _side_shares(self, side: list[Request]) -> list[tuple[Request, int]]:
        """Who of the others goes along, the longest waiting first."""
        batch: list[tuple[Request, int]] = []
        wanted = sum(1 if request.one_by_one else request.wanted() for request in side)
        room = self.side_share.room(wanted)
        for request in sorted(side, key=lambda r: r.last_step):
            if room <= 0:
                break
            share = self._prefill_share(request, 1 if request.one_by_one else room)
            batch.append((request, share))
            room -= share
        return batch

    def _prefill_share(self, request: Request, room: int) -> int:
        assert request.context is not None
        num_own = request.context.num_own
        share = min(self._format.share(num_own, room), request.wanted())
        return min([share, *(fork - num_own for fork in request.forks if fork > num_own)])

    def _admit_waiting(self) -> None:
        num_main = sum(not request.side for request in self.running)
        for request in list(self.waiting):
            if (len(self.running) if request.side else num_main) >= self.config.max_batch:
                continue
            if self._holds(request):
                continue
            if request not in self.waiting:
                continue  # it ended with another's
            if not self._admit(request):
                if request in self.waiting:
                    return
                continue
            self.waiting.remove(request)
            self.running.append(request)
            num_main += not request.side

    def spares_side(self) -> bool:
        """Whether something else than their steps may be done for side agents now."""
        return not self.main_waits() or self.side_share.spares()

    def charge_side(self, seconds: float) -> None:
        """Counts what that took, if a main agent waited meanwhile."""
        if self.main_waits():
            self.side_share.charge(seconds)

    def main_waits(self) -> bool:
        """Whether a main agent's answer is being made."""
        return any(request.wanted() for request in self.running if not request.side)

    def prefill_room(self, num_decoding: int) -> int:
        """Prefill tokens that fit into a step without stretching it past `max_gap`. None where
        it is not known any more what a step of about so many takes: one is taken alone then."""
        size = num_decoding.bit_length()
        decode_s = self._decode_s.get(size)
        if not decode_s or self._num_mixed[size] >= GOOD_FOR:
            return 0
        if not self._prefill_token_s:
            return MIN_SHARE
        spare = (self.config.max_gap - 1) * decode_s / self._prefill_token_s
        return max(MIN_SHARE, min(int(spare), self.config.prefill_chunk))

    def observe(self, batch: Sequence[tuple[Request, int]], seconds: float) -> None:
        """Learns from a step: how long decoding takes, and a token of prefill beside it."""
        main = {request.number: n for request, n in batch if not request.side}
        num_side = sum(n for request, n in batch if request.side)
        if main:
            decoding = max(main.values()) == 1
            self.side_share.observe(num_side, seconds, decoding, frozenset(main))
        if main and num_side:
            return
        shares = [n for _, n in batch]
        num_prefill, size = sum(n for n in shares if n > 1), shares.count(1).bit_length()
        decode_s = self._decode_s.get(size)
        if not num_prefill:
            between = self._num_mixed.pop(size, 0)  # a little slower for what was read around it
            is_slower = between and decode_s and decode_s < seconds < 2 * decode_s
            self._decode_s[size] = blend(decode_s, seconds, 0.02 if is_slower else 0.3)
            return
        self._num_mixed[size] += 1
        if decode_s and min(shares) == 1:
            extra = max(seconds - decode_s, 0.1 * seconds)
            self._prefill_token_s = blend(self._prefill_token_s, extra / num_prefill, 0.3)
