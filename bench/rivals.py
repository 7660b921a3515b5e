"""Other ways to store KV in few bits, on mlx-lm's own full-precision cache.

Keys and values are replaced by what would be read back. All but the stock format keep the
newest block and, unless said, four sinks in 16 bits, and differ from `kv4` in one thing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from edgecortex.kv.affine import pack, unpack
from edgecortex.kv.format import KV4
from edgecortex.kv.segment import rotate, rounded
from edgecortex.models.adapter import LoadedModel

ReadBack = Callable[[mx.array], mx.array]


def stock(x: mx.array, bits: int = 4) -> mx.array:
    """Groups of channels of a token, as mlx-lm's `QuantizedKVCache` has them."""
    return mx.dequantize(*mx.quantize(x, group_size=64, bits=bits), group_size=64, bits=bits)


def per_token(x: mx.array) -> mx.array:
    """Groups of channels of a token."""
    return unpack(pack(x, 64, 4), 64, 4, x.dtype)


def per_channel(x: mx.array) -> mx.array:
    """Groups of tokens of a channel (KIVI, arXiv 2402.02750)."""
    return per_token(x.swapaxes(-1, -2)).swapaxes(-1, -2)


def rotated(inner: ReadBack) -> ReadBack:
    """After a Hadamard transform (QuaRot, arXiv 2404.00456)."""
    return lambda x: rotate(inner(rotate(x)))


def in_16_bits(x: mx.array) -> mx.array:
    """What the engine holds of a token that is not in a block yet."""
    return rotated(lambda turned: rounded(turned, KV4))(x)


def less_mean(x: mx.array) -> mx.array:
    """The mean over the block's tokens kept apart in full precision, the rest rotated."""
    mean = x.mean(axis=-2, keepdims=True)
    return mean + rotated(per_token)(x - mean)


@dataclass(frozen=True)
class Rival:
    """How keys and values (1, n_kv_heads, L, head_dim) are read back.

    `at_once` has no full-precision residual: a token is quantized before it is first seen.
    """

    keys: ReadBack
    values: ReadBack
    num_sinks: int = KV4.num_sinks
    at_once: bool = False


KEYS, VALUES = rotated(per_channel), rotated(per_token)  # kv4's own
RIVALS = {
    "mlx-lm 4-bit": Rival(stock, stock, num_sinks=0, at_once=True),
    "keys less mean": Rival(less_mean, VALUES),
    "keys per token": Rival(rotated(per_token), VALUES),
    "values not rotated": Rival(KEYS, per_token),
    "no sinks": Rival(KEYS, VALUES, num_sinks=0),
    "values in 3 bits": Rival(KEYS, rotated(partial(stock, bits=3))),
}


class RivalCache(KVCache):
    """To be fed block by block: what came before the newest block is read back as stored."""

    def __init__(self, rival: Rival) -> None:
        super().__init__()
        self._rival, self._num_stored = rival, rival.num_sinks
        self._unit = 1 if rival.at_once else KV4.block

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Appends (1, n_kv_heads, L, head_dim); returns all keys and values so far."""
        if not self._rival.at_once:
            keys, values = in_16_bits(keys), in_16_bits(values)
            self._store()
        fetched = super().update_and_fetch(keys, values)
        if not self._rival.at_once:
            return fetched
        self._store()
        assert self.keys is not None
        assert self.values is not None
        return self.keys[..., : self.offset, :], self.values[..., : self.offset, :]

    def _store(self) -> None:
        start = self._num_stored
        stop = start + (self.offset - start) // self._unit * self._unit
        if start < stop:
            parts = (self.keys, self._rival.keys), (self.values, self._rival.values)
            for stored, read_back in parts:
                assert stored is not None
                stored[..., start:stop, :] = read_back(stored[..., start:stop, :])
            self._num_stored = stop


class RivalReader:
    """One window through mlx-lm's own attention over a rival's KV."""

    def __init__(self, loaded: LoadedModel, rival: Rival) -> None:
        self._model = loaded.model
        self._first = rival.num_sinks
        self._caches = [RivalCache(rival) for _ in loaded.windows()]

    def read(self, ids: Sequence[int], scored: bool) -> mx.array:
        """Feeds tokens, cut where blocks end. Returns: logits (len(ids), vocab)."""
        logits = []
        done = self._caches[0].offset
        ends = {done + len(ids)}
        ends |= {n for n in range(done + 1, done + len(ids)) if (n - self._first) % KV4.block == 0}
        for end in sorted(ends - {self._first}):
            at = self._caches[0].offset
            logits.append(self._model(mx.array([ids[at - done : end - done]]), cache=self._caches))
            mx.eval([cache.state for cache in self._caches], logits[-1] if scored else [])
        return mx.concatenate(logits, axis=1)[0]

    def bits_per_value(self) -> float:
        """Not known: nothing is packed."""
        return 0.0
