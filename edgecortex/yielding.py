"""How much of the machine side agents get while main agents decode."""

from collections.abc import Hashable

SPENT = 0.8  # of the time that they may take: what they cost beside their steps is not seen
LONGEST = 10.0  # times a step alone: the rest of a longer step is something else's doing
GOOD_FOR = 64  # steps, after which what one takes without side agents is learnt anew


class SideShare:
    """Keeps the main agents at `share` of the speed that they would have alone, or above.

    While side agents wait, every step earns them time in proportion to a step alone. Their steps,
    and the first one after them, cost what they took longer than that. One that comes later earns
    less where it took longer, as theirs slow it too, but costs nothing: whatever else runs on the
    machine would make them wait for ever. A part is never spent.

    They are let in as soon as what they would cost is earned, all at once as far as a step stays
    within `max_gap` times its length: together they are cheaper. The first token goes alone, to
    learn what one costs.
    """

    def __init__(self, share: float, max_gap: float) -> None:
        self._rate, self._max_extra = SPENT * (1 / share - 1), max_gap - 1
        self._credit_s = 0.0
        self._who: Hashable = None  # decode
        self._alone_s: float | None = None  # what a step of theirs takes
        self._is_first = False  # what was learnt of them
        self._num_since = 0  # steps since that was learnt
        self._token_s: float | None = None
        self._had_side = False  # the newest step
        self._wanted = False  # side agents, to have something done

    def room(self, wanted: int) -> int:
        """How many tokens of side agents may go into a step of main agents that decode."""
        self._wanted |= wanted > 0
        if self._alone_s is None or not self._rate or self._num_since >= GOOD_FOR:
            return 0
        token_s = self._token_s or self._alone_s
        most = int(self._max_extra * self._alone_s / token_s) if self._token_s else 1
        room = min(wanted, max(1, most))
        return room if room * token_s <= self._credit_s else 0

    def spares(self) -> bool:
        """Whether something may be done for side agents between steps, to be charged. If not, they
        wait for it."""
        self._wanted = not self._rate or self._credit_s < 0
        return not self._wanted

    def observe(self, num_side: int, seconds: float, decoding: bool, who: Hashable) -> None:
        """Learns from a step in which main agents had a part, all of them `decoding` or not.

        Args:
            who: those main agents. Of others it has to be learnt what a step takes.
        """
        wanted, self._wanted = self._wanted, False
        after_side, self._had_side = self._had_side, num_side > 0
        others, self._who = decoding and who != self._who, who if decoding else self._who
        if others and not num_side:
            self._alone_s = None
        self._num_since += 1
        if decoding and not num_side and not after_side:
            self._learn_alone(seconds, wanted)
        if self._alone_s is not None:
            self._settle(num_side, seconds, self._alone_s, decoding, wanted, after_side)
        if others and num_side:  # let in by what the ones before took
            self._alone_s = None

    def _settle(
        self,
        num_side: int,
        seconds: float,
        alone_s: float,
        decoding: bool,
        wanted: bool,
        after_side: bool,
    ) -> None:
        """Earns or charges what a step has brought."""
        extra = max(0.0, min(seconds, LONGEST * alone_s) - alone_s)
        if num_side:
            least = 0.02 * alone_s  # noise hides what they take
            self._token_s = blend(self._token_s, max(extra, least) / num_side, 0.2)
        if decoding and wanted:
            earned = self._rate * alone_s - extra
            self._save(earned if num_side or after_side else max(0.0, earned), alone_s)
        elif not decoding:
            self._save(self._rate * seconds, alone_s)

    def charge(self, seconds: float) -> None:
        """Takes off what else was done for side agents while main agents waited."""
        self._credit_s -= seconds

    def _learn_alone(self, seconds: float, wanted: bool) -> None:
        """What a step takes that has no part for side agents. The first one after theirs pays for
        what they left to be put in order, and the others between theirs are slowed by them a
        little too: those count less where they are long. No noise makes a step short. The first
        one of all is longer for what was done before it: there has to be a second one soon."""
        old, is_second = self._alone_s, self._is_first
        self._is_first, self._num_since = old is None, GOOD_FOR - 2 if old is None else 0
        if old is None or seconds < (old if is_second else old / 2):
            self._alone_s = seconds
            return
        weight = 0.02 if wanted and seconds > old else 0.2
        self._alone_s = blend(old, min(seconds, 2 * old), weight)

    def _save(self, seconds: float, alone_s: float) -> None:
        """What is saved up is bounded: a burst would show as a gap."""
        most = max(1.0, self._max_extra) * alone_s
        self._credit_s = min(self._credit_s + seconds, max(most, self._token_s or 0.0))


def blend(old: float | None, new: float, weight: float) -> float:
    """A running mean in which what is new has this weight."""
    return new if old is None else (1 - weight) * old + weight * new
