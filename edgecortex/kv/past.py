"""Sealed KV read back, kept while its context prefills in many small shares."""

import mlx.core as mx

STEP = 512  # tokens by which a buffer grows


class Past:
    """Keys (n_kv_heads, head_dim, L) and values (n_kv_heads, L, v_head_dim), to append to."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self._k: mx.array | None = None
        self._v: mx.array | None = None

    def append(self, keys: mx.array, values: mx.array) -> None:
        """Adds keys and values of further tokens."""
        start, stop = self.num_tokens, self.num_tokens + values.shape[1]
        k, v = self._k, self._v
        self._k = k = _grown(keys[..., :0] if k is None else k, stop, 2)
        self._v = v = _grown(values[:, :0] if v is None else v, stop, 1)
        k[..., start:stop], v[:, start:stop] = keys, values
        self.num_tokens = stop

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """Of all tokens so far; there is at least one."""
        assert self._k is not None
        assert self._v is not None
        return self._k[..., : self.num_tokens], self._v[:, : self.num_tokens]


def _grown(part: mx.array, size: int, axis: int) -> mx.array:
    missing = -(-size // STEP) * STEP - part.shape[axis]
    if missing <= 0:
        return part
    shape = list(part.shape)
    shape[axis] = missing
    return mx.concatenate([part, mx.zeros(shape, part.dtype)], axis=axis)
