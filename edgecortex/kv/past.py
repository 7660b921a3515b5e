"""Sealed KV read back, kept while its context prefills in many small shares."""

import mlx.core as mx

STEP = 512  # tokens by which a buffer grows


class Past:
    """Keys (n_kv_heads, L, head_dim) and values (n_kv_heads, L, v_head_dim), to append to."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self._parts: list[mx.array] = []

    def append(self, *new: mx.array) -> None:
        """Adds keys and values of further tokens."""
        start, stop = self.num_tokens, self.num_tokens + new[0].shape[1]
        empty = [x[:, :0] for x in new]
        parts = zip(self._parts or empty, new, strict=True)
        self._parts = [_grown(part, like, stop) for part, like in parts]
        for part, x in zip(self._parts, new, strict=True):
            part[:, start:stop] = x
        self.num_tokens = stop

    def keys_and_values(self) -> tuple[mx.array, ...]:
        """Of all tokens so far."""
        return tuple(part[:, : self.num_tokens] for part in self._parts)


def _grown(part: mx.array, like: mx.array, size: int) -> mx.array:
    heads, _, dim = like.shape
    missing = -(-size // STEP) * STEP - part.shape[1]
    if missing <= 0:
        return part
    return mx.concatenate([part, mx.zeros((heads, missing, dim), like.dtype)], axis=1)
