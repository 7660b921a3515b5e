"""Sealed KV read back, kept while prompts are read in small shares beside agents that speak."""

import mlx.core as mx

from edgecortex.kv.context import Context
from edgecortex.kv.plan import StepPlan

STEP = 512  # tokens by which a buffer grows


class Past:
    """Keys (n_kv_heads, head_dim, L) and values (n_kv_heads, L, v_head_dim), to append to.

    Keys lie as values do: a product takes a transposed part of a buffer as it is, while it copies
    some of the columns of every row.
    """

    def __init__(self) -> None:
        self.num_tokens = 0
        self._k: mx.array | None = None
        self._v: mx.array | None = None

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in (self._k, self._v) if buffer is not None)

    def append(self, keys: mx.array, values: mx.array) -> None:
        """Adds keys and values of further tokens."""
        start, stop = self.num_tokens, self.num_tokens + values.shape[1]
        self._k = _with(self._k, keys.swapaxes(-1, -2), start, stop)
        self._v = _with(self._v, values, start, stop)
        self.num_tokens = stop

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """Of all tokens so far; there is at least one."""
        assert self._k is not None
        assert self._v is not None
        k, v = (x[:, : self.num_tokens] for x in (self._k, self._v))
        return k.swapaxes(-1, -2), v


def _with(buffer: mx.array | None, new: mx.array, start: int, stop: int) -> mx.array:
    """A buffer with new rows in their place, grown if they need it."""
    buffer = new[:, :0] if buffer is None else buffer
    missing = -(-stop // STEP) * STEP - buffer.shape[1]
    if missing > 0:
        buffer = mx.pad(buffer, [(0, 0), (0, missing), (0, 0)])
    buffer[:, start:stop] = new
    return buffer


class Pasts:
    """Those of all prompts that are being read, by layer: beside the pool's books, in what is
    free of its budget.

    One begins when its prompt has a share of a step in which others speak, and lasts until the
    prompt is read, or whoever changes what its context has sealed says `forget`.
    """

    def __init__(self) -> None:
        self._held: dict[Context, dict[int, Past]] = {}

    @property
    def nbytes(self) -> int:
        return sum(past.nbytes for layers in self._held.values() for past in layers.values())

    def begin(self, plan: StepPlan, token_nbytes: int, free_bytes: int) -> None:
        """Begins a step: lets go of those whose prompt is read, and of all where they and what
        the step adds, `token_nbytes` a token, do not fit."""
        for share in plan.singles:
            self.forget(share.context)
        reading = [share for share in plan.spans if plan.singles or share.context in self._held]
        added = STEP * len(reading)
        for share in reading:
            known = self._held.setdefault(share.context, {})
            num_known = min((past.num_tokens for past in known.values()), default=0)
            num_sealed = sum(segment.num_tokens for segment in share.context.segments)
            added += num_sealed + share.num_tokens - num_known
        if self.nbytes + added * token_nbytes > free_bytes:
            self._held = {}

    def of(self, context: Context, layer: int) -> Past | None:
        """A layer's, if the context has one in this step."""
        known = self._held.get(context)
        return None if known is None else known.setdefault(layer, Past())

    def renew(self, context: Context, layer: int) -> Past:
        """An empty one in its place: what the layer holds has changed."""
        past = self._held[context][layer] = Past()
        return past

    def forget(self, context: Context) -> None:
        """Lets go of a context's."""
        self._held.pop(context, None)
