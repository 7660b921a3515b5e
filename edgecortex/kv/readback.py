"""Sealed runs read back, and kept so while agents decode over them."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import mlx.core as mx

from edgecortex.kv.segment import LayerKV

PART = 64  # of the budget may be taken for them: one in so many bytes
AFTER = 4  # uses as they are stored: reading back takes as long as some products with it save
PER_STEP = 1 << 19  # values: once a step has read back so many, the others wait
UNUSED = 64  # steps: those that were not used for longer are let go


@dataclass
class _Held:
    run: LayerKV
    used: int  # the last step


class ReadBacks:
    """Those runs of a pool that are read back, for devices where a product with full precision is
    much faster than one with what is stored.

    They are none of the pool's books: they take what is free of its budget, up to a part of it,
    and are gone when that is wanted, or with their runs.
    """

    def __init__(self, keeps: bool) -> None:
        self._keeps = keeps
        self._held: WeakKeyDictionary[LayerKV, _Held] = WeakKeyDictionary()
        self._uses: WeakKeyDictionary[LayerKV, int] = WeakKeyDictionary()
        self._step = self._room = self._left = 0

    @property
    def nbytes(self) -> int:
        return sum(held.run.nbytes for held in self._held.values())

    def begin(self, max_bytes: int, free_bytes: int) -> None:
        """Begins a step of a pool with this budget, and so much free of it."""
        self._step += 1
        for run, held in list(self._held.items()):
            if self._step - held.used > UNUSED:
                del self._held[run]
        room = min(max_bytes // PART, free_bytes) - self.nbytes
        if room < 0:
            room += self.nbytes
            self._held.clear()
        self._room, self._left = room, PER_STEP

    def of(self, run: LayerKV, dtype: mx.Dtype, head_dim: int) -> LayerKV:
        """A run as it is multiplied fastest; one that is used time and again is read back."""
        if not self._keeps or run.format.bits is None:
            return run
        if found := self._held.get(run):
            found.used = self._step
            return found.run
        self._uses[run] = uses = self._uses.get(run, 0) + 1
        nbytes = run.num_values * dtype.size
        if uses <= AFTER or self._left <= 0 or nbytes > self._room:
            return run
        self._room -= nbytes
        self._left -= run.num_values
        back = run.read_back(dtype, head_dim)
        self._held[run] = _Held(back, self._step)
        return back
