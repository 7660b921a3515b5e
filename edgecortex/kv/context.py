"""An agent's KV: attached segments and a row of unquantized tokens."""

from collections import deque
from dataclasses import dataclass, field

import mlx.core as mx

from edgecortex.kv.segment import KVSegment


@dataclass(frozen=True)
class Attachment:
    """A foreign segment that a context sees from its own token number `at` on. `id` names what
    the segment holds."""

    segment: KVSegment
    at: int
    id: str


class Trace:
    """What passed through a context's newest tokens, for those who judge it: per layer the
    queries (n_kv_heads, G, tokens, head_dim) as they were attended with, and the hidden states
    (hidden_size,) of the last layer, each of at most `length` steps."""

    def __init__(self, num_layers: int, length: int) -> None:
        self.length = length
        self.queries: list[deque[mx.array]] = [deque(maxlen=length) for _ in range(num_layers)]
        self.hidden: deque[mx.array] = deque(maxlen=length)

    def arrays(self) -> list[mx.array]:
        """The newest of each, for evaluation."""
        return [kept[-1] for kept in (*self.queries, self.hidden) if kept]


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
    def own_segments(self) -> list[KVSegment]:
        return self.segments[self.num_attached :]
