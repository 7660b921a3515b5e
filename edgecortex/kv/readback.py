"""Sealed runs read back, and kept so while agents decode over them."""

from weakref import WeakKeyDictionary

import mlx.core as mx

from edgecortex.kv.segment import LayerKV

PART = 64  # of the budget may be taken for them: one in so many bytes
AFTER = 4  # uses as they are stored: reading back takes as long as some products with it save
PER_STEP = 1 << 19  # values: once a step has read back so many, the others wait


class ReadBacks:
    """Those runs of a pool that are read back, for devices where a product with full precision is
    much faster than one with what is stored.

    They are none of the pool's books: they take what is free of its budget, up to a part of it,
    and are gone when that is wanted, or with their runs.
    """

    def __init__(self, keeps: bool) -> None:
        self._keeps = keeps
        self._held: WeakKeyDictionary[LayerKV, LayerKV] = WeakKeyDictionary()
        self._uses: WeakKeyDictionary[LayerKV, int] = WeakKeyDictionary()
        self._room = self._left = 0

    @property
    def nbytes(self) -> int:
        return sum(run.nbytes for run in self._held.values())

    def begin(self, max_bytes: int, free_bytes: int) -> None:
        """Begins a step of a pool with this budget, and so much free of it."""
        held, most = self.nbytes, min(max_bytes // PART, free_bytes)
        if held > most:
            self._held.clear()
            held = 0
        self._room, self._left = most - held, PER_STEP if self._keeps else 0

    def of(self, run: LayerKV, dtype: mx.Dtype, head_dim: int) -> LayerKV:
        """A run as it is multiplied fastest; one that is used time and again is read back."""
        if found := self._held.get(run):
            return found
        self._uses[run] = uses = self._uses.get(run, 0) + 1
        if uses <= AFTER or self._left <= 0 or run.format.bits is None:
            return run
        back = run.read_back(dtype, head_dim)
        if back.nbytes > self._room:
            return run
        self._room -= back.nbytes
        self._left -= back.nbytes // dtype.size
        self._held[run] = back
        return back
