"""An agent's KV: attached segments and a row of full-precision tokens."""

from dataclasses import dataclass, field

from edgecortex.kv.segment import KVSegment


@dataclass(eq=False)
class Context:
    """Segments in order, and the ids of the tokens fed by the agent itself, from position
    `base` on.

    Of its own tokens the sinks and the unsealed rest live in row `slot` of the slabs; the
    others are in the segments that follow the `num_attached` foreign ones.
    """

    slot: int
    segments: list[KVSegment] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    base: int = 0
    num_attached: int = 0

    @property
    def num_own(self) -> int:
        """How many tokens the agent itself has fed."""
        return len(self.token_ids)

    @property
    def position(self) -> int:
        """The position of the next token."""
        return self.base + self.num_own

    @property
    def own_segments(self) -> list[KVSegment]:
        return self.segments[self.num_attached :]
