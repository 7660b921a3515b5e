"""How much of the machine side agents get while main agents decode."""


class SideShare:
    """Keeps the main agents at `share` of the speed that they would have alone.

    A step without side agents earns them time, in proportion to how long it took; a step with
    them costs what it took longer. They are let in as soon as what they would cost is earned, all
    at once as far as a step stays within `max_gap` times its length: together they are cheaper.
    The first token goes alone, to learn what one costs.
    """

    def __init__(self, share: float, max_gap: float) -> None:
        self._rate, self._max_extra = 1 / share - 1, max_gap - 1
        self._credit_s = 0.0
        self._alone_s: float | None = None
        self._token_s: float | None = None
        self._had_side = False  # the newest step

    def room(self, wanted: int) -> int:
        """How many tokens of side agents may go into a step of main agents that decode."""
        if self._alone_s is None or not self._rate:
            return 0
        token_s = self._token_s or self._alone_s
        most = int(self._max_extra * self._alone_s / token_s) if self._token_s else 1
        room = min(wanted, max(1, most))
        return room if room * token_s <= self._credit_s else 0

    def observe(self, num_side: int, seconds: float, decoding: bool) -> None:
        """Learns from a step in which main agents had a part, all of them `decoding` or not.

        The first step without side agents pays for what theirs has left to be put in order: it
        says nothing of what main agents take alone, and what it takes longer counts as theirs.
        """
        after_side, self._had_side = self._had_side, num_side > 0
        if not num_side and not after_side:
            if decoding:
                self._alone_s = _blend(self._alone_s, seconds)
            self._earn(seconds)
        elif self._alone_s is not None:
            extra = max(seconds - self._alone_s, 0.0) if decoding or num_side else 0.0
            if num_side:
                self._token_s = _blend(self._token_s, max(extra / num_side, 1e-6))
            self._credit_s -= extra - self._rate * self._alone_s

    def charge(self, seconds: float) -> None:
        """Takes off what else was done for side agents while main agents waited."""
        self._credit_s -= seconds

    def _earn(self, seconds: float) -> None:
        """What is saved up is bounded: a burst would show as a gap."""
        most = max(1.0, self._max_extra) * (self._alone_s or 0.0)
        if self._token_s:
            most = max(most, self._token_s)
        earned = min(self._credit_s + self._rate * seconds, most)
        self._credit_s = max(self._credit_s, earned)


def _blend(old: float | None, new: float) -> float:
    return new if old is None else 0.8 * old + 0.2 * new
