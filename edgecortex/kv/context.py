"""An agent's KV: attached segments and a row of unquantized tokens."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import mlx.core as mx

from edgecortex.kv.segment import KVSegment


@dataclass(frozen=True)
class Attachment:
    """A foreign segment that a context sees from its own token number `at` on. `id` names what
    the segment holds."""

    segment: KVSegment
    at: int
    id: str


class Newest:
    """Arrays of which the newest `length` tokens, along `axis`, are kept. `num_fresh` tokens have
    come since it was last set to 0."""

    def __init__(self, length: int, axis: int) -> None:
        self.length, self.axis = length, axis
        self.parts: deque[mx.array] = deque()
        self._num_tokens = self.num_fresh = 0

    def add(self, new: mx.array) -> None:
        """Appends tokens; whole arrays that are not needed any more go."""
        self.parts.append(new)
        self._num_tokens += new.shape[self.axis]
        self.num_fresh += new.shape[self.axis]
        while self._num_tokens - self.parts[0].shape[self.axis] >= self.length:
            self._num_tokens -= self.parts.popleft().shape[self.axis]

    def all(self) -> mx.array:
        """At most `length` tokens in one array. There is at least one."""
        joined = mx.concatenate(list(self.parts), axis=self.axis)
        start = max(0, joined.shape[self.axis] - self.length)
        return joined[(slice(None),) * self.axis + (slice(start, None),)]


class Trace:
    """What passed through a context's newest tokens, for those who judge it: per layer the
    queries (n_kv_heads, G, tokens, head_dim) as they were attended with, of `num_queries`
    tokens, and the last layer's hidden states (tokens, hidden_size), of `num_states`."""

    def __init__(self, num_layers: int, num_queries: int, num_states: int) -> None:
        layers = range(num_layers if num_queries else 0)
        self.queries = {layer: Newest(num_queries, 2) for layer in layers}
        self.hidden = Newest(num_states, 0)

    def add(self, layer: int, queries: mx.array) -> None:
        """Keeps a copy of queries, if they are wanted: a view would keep the whole batch's."""
        if newest := self.queries.get(layer):
            newest.add(queries[:, :, -newest.length :] + 0)

    def add_hidden(self, states: mx.array) -> None:
        """Keeps a copy of hidden states."""
        self.hidden.add(states[-self.hidden.length :] + 0)

    def arrays(self) -> list[mx.array]:
        """The newest of each, for evaluation."""
        return [kept.parts[-1] for kept in (*self.queries.values(), self.hidden) if kept.parts]


Mark = tuple[int, str]
"""From which own token on something foreign is seen, and what it is."""


def marks_of(attached: Iterable[Attachment]) -> tuple[Mark, ...]:
    """What tells KV that has seen foreign segments from KV that has not, in order."""
    return tuple(sorted((laid.at, laid.id) for laid in attached))


@dataclass(eq=False)
class Context:
    """Segments in order, and the ids of the tokens fed by the agent itself, from position
    `base` on.

    Of its own tokens the sinks and the unsealed rest live in row `slot` of the slabs; the
    others are in the segments that follow those of `attached`.
    """

    slot: int
    segments: list[KVSegment] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    base: int = 0
    attached: list[Attachment] = field(default_factory=list)
    trace: Trace | None = None

    @property
    def num_own(self) -> int:
        """How many tokens the agent itself has fed."""
        return len(self.token_ids)

    @property
    def position(self) -> int:
        """The position of the next token."""
        return self.base + self.num_own

    @property
    def num_attached(self) -> int:
        """How many foreign segments come first."""
        return len(self.attached)

    @property
    def marks(self) -> tuple[Mark, ...]:
        """Of what is attached."""
        return marks_of(self.attached)

    @property
    def own_segments(self) -> list[KVSegment]:
        return self.segments[self.num_attached :]

    def show_attached_from(self, number: int) -> None:
        """Lets its attachments be seen from own token `number` on, if not from earlier."""
        self.attached = [replace(laid, at=min(laid.at, number)) for laid in self.attached]
