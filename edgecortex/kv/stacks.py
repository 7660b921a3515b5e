"""Runs of one layer that are computed together, each for a row of its own."""

import mlx.core as mx

from edgecortex.kv.segment import KVSegment, LayerKV, Member, Stack

Segments = tuple[KVSegment, ...]


class Stacks:
    """Segments of equal length, moved together so that one call serves them all.

    They read from their stack from then on: nothing is held twice. A stack is kept for as long as
    all of its members are; who takes turns with others therefore stays in place, and is picked
    out of it. The same ones wanted twice in a row get a stack of their own.
    """

    def __init__(self, layer: int) -> None:
        self._layer = layer
        self._held: dict[Segments, Stack] = {}
        self._used: set[Segments] = set()
        self._wanted: set[Segments] = set()
        self._wanted_before: set[Segments] = set()

    def begin(self) -> None:
        """Begins a step: takes apart what has lost a member, and that nobody used in the last
        one. What was used is moved at once if it is wanted again."""
        broken = [s for s in self._held if s not in self._used and not self._is_whole(s)]
        for segments in broken:
            self._loosen(segments)
        self._wanted_before, self._wanted, self._used = self._wanted, set(), set()

    def clear(self) -> None:
        """Takes all apart, and forgets who was wanted: that would keep what is closed in memory."""
        for segments in list(self._held):
            self._loosen(segments)
        self._wanted_before, self._wanted, self._used = set(), set(), set()

    def of(self, segments: Segments) -> LayerKV:
        """The layer of these along a leading axis, in their order."""
        self._wanted.add(segments)
        home = self._home(segments)
        if home is None:
            home = segments if segments in self._wanted_before else self._with_others(segments)
            self._move(home)
        self._used.add(home)
        stack = self._held[home]
        return stack if home == segments else stack.chosen([home.index(s) for s in segments])

    def _home(self, segments: Segments) -> Segments | None:
        """The whole stack that holds them all, unless they had better have their own."""
        if segments in self._held and self._is_whole(segments):
            return segments
        first = segments[0].layers[self._layer]
        if segments in self._wanted_before or not isinstance(first, Member):
            return None
        homes = (s for s, stack in self._held.items() if stack is first.stack)
        home = next(homes, None)
        return home if home and set(segments) <= set(home) and self._is_whole(home) else None

    def _with_others(self, segments: Segments) -> Segments:
        """They and those alive that they lie together with."""
        near = {id(m.stack) for s in segments if isinstance(m := s.layers[self._layer], Member)}
        others = [
            s
            for held, stack in self._held.items()
            if id(stack) in near
            for s in held
            if s.refs and s not in segments and self._lies_in(s, stack)
        ]
        return (*segments, *others)

    def _move(self, segments: Segments) -> None:
        stack = Stack.of([segment.layers[self._layer] for segment in segments])
        for i, segment in enumerate(segments):
            segment.layers[self._layer] = Member(stack, i)
        self._held[segments] = stack

    def _is_whole(self, segments: Segments) -> bool:
        stack = self._held[segments]
        return all(s.refs and self._lies_in(s, stack) for s in segments)

    def _lies_in(self, segment: KVSegment, stack: Stack) -> bool:
        layer = segment.layers[self._layer]
        return isinstance(layer, Member) and layer.stack is stack

    def _loosen(self, segments: Segments) -> None:
        """Gives those that still lie in a stack arrays of their own: one alone would keep all of
        it in memory."""
        stack = self._held.pop(segments)
        for segment in segments:
            if segment.refs and self._lies_in(segment, stack):
                own = segment.layers[self._layer].copied()
                segment.layers[self._layer] = own
                mx.eval(own.k, own.v)
