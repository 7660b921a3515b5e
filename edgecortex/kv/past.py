"""Sealed KV read back, kept while its context prefills in many small shares."""

import mlx.core as mx

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
