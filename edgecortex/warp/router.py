"""`CortexRouter`: finds in a stream of text what asks for a side agent."""

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgecortex.errors import ConfigError

KINDS = ("TASK", "DELEGATE", "SEARCH", "CODE", "CHECK")
MAX_IGNORED = 100
MAX_OPENING = 64  # characters between a bracket and what follows the kind
MAX_KIND = 32  # characters
_KIND = re.compile(r"[A-Za-z0-9_-]+")
_OPENING = re.compile(r"\[[ \t]*([A-Za-z0-9_-]+)[ \t]*([:\]])")
_BEGUN = re.compile(r"\[[ \t]*[A-Za-z0-9_-]*[ \t]*")
_DECISIVE = re.compile(r"[\[\]\n]")
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")


@dataclass(frozen=True)
class Trigger:
    """What was asked for, its whitespace collapsed."""

    kind: str
    text: str


@dataclass(frozen=True)
class RouterLimits:
    """How many triggers are taken up until the router is reset, how deep (1: the main agent's
    alone), how many characters apart, and how long they may be.

    Raises:
        ConfigError: a value out of its range.
    """

    max_tasks: int = 8
    max_depth: int = 1
    min_gap_chars: int = 0
    max_chars: int = 400

    def __post_init__(self) -> None:
        least = {"max_tasks": 0, "max_depth": 0, "min_gap_chars": 0, "max_chars": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}, got {getattr(self, name)!r}")


@dataclass
class _Family:
    """What a router and its children have in common."""

    seen: set[str] = field(default_factory=set)
    num_accepted: int = 0
    ignored: deque[tuple[Trigger, str]] = field(default_factory=lambda: deque(maxlen=MAX_IGNORED))


class CortexRouter:
    """Listens to a main agent as it speaks (Warp-Cortex, section 3.4).

    `[KIND: text]` asks for a side agent; brackets inside belong to the text. A bare `[KIND]` takes
    the rest of its line, or what stands before it there if nothing follows. What holds a blank
    line, is too long or is never closed is no trigger. How the text is cut into pieces makes no
    difference.

    Raises:
        ConfigError: a kind that is not made of 1 to `MAX_KIND` letters, digits, `_` and `-`.
    """

    def __init__(
        self,
        kinds: Sequence[str] = KINDS,
        limits: RouterLimits | None = None,
        depth: int = 0,
        family: _Family | None = None,
    ) -> None:
        for kind in kinds:
            if not _KIND.fullmatch(kind) or len(kind) > MAX_KIND:
                raise ConfigError(
                    f"a kind of trigger must be letters, digits, _ and -, at most {MAX_KIND}, "
                    f"got {kind!r}"
                )
        self.kinds, self.limits, self.depth = tuple(kinds), limits or RouterLimits(), depth
        self._family = family or _Family()
        self._begin()

    def _begin(self) -> None:
        self._text, self._at = "", 0  # what is not decided begins at `_at`
        self._line = ""  # before that, on the same line
        self._num_before = 0
        self._last_end: int | None = None
        self._restart()

    def _restart(self) -> None:
        """No trigger is open."""
        self._scanned, self._open = 0, 1

    @property
    def ignored(self) -> list[tuple[Trigger, str]]:
        """The newest triggers that were not taken up, and why."""
        return list(self._family.ignored)

    def child(self) -> "CortexRouter":
        """A router for a side agent: one deeper, under the same limits together."""
        return CortexRouter(self.kinds, self.limits, self.depth + 1, self._family)

    def reset(self) -> None:
        """Forgets all that was said and counted."""
        self._family.seen.clear()
        self._family.ignored.clear()
        self._family.num_accepted = 0
        self._begin()

    def feed(self, piece: str) -> list[Trigger]:
        """The triggers to take up that this piece completes."""
        self._text = self._text[self._at :] + piece
        self._at = 0
        return self._scan(final=False)

    def finish(self) -> list[Trigger]:
        """The triggers that the end of the text completes; what comes next is another text."""
        found = self._scan(final=True)
        self._begin()
        return found

    def _scan(self, final: bool) -> list[Trigger]:
        found: list[Trigger] = []
        while True:
            start = self._text.find("[", self._at)
            self._pass(len(self._text) if start < 0 else start)
            if start < 0:
                return found
            decided = self._decide(final)
            if decided is None:
                return found
            trigger, stop = decided
            begins = self._num_before
            self._pass(stop)
            self._restart()
            if trigger and self._accepts(trigger, begins):
                found.append(trigger)

    def _pass(self, stop: int) -> None:
        """Leaves the text before `stop` behind."""
        passed = self._text[self._at : stop]
        newline = passed.rfind("\n")
        line = passed if newline < 0 else passed[newline + 1 :]
        self._line = ((self._line if newline < 0 else "") + line)[-self.limits.max_chars - 1 :]
        self._num_before += stop - self._at
        self._at = stop

    def _decide(self, final: bool) -> tuple[Trigger | None, int] | None:
        """What the bracket at `_at` opens and where that ends; None if that cannot be said yet."""
        opening = _OPENING.match(self._text, self._at)
        if opening is None:
            begun = _BEGUN.fullmatch(self._text, self._at)
            if begun and not final and len(self._text) - self._at <= MAX_OPENING:
                return None
        elif opening[1] in self.kinds and opening.end() - self._at <= MAX_OPENING:
            return (self._bare if opening[2] == "]" else self._closed)(opening, final)
        return None, self._at + 1

    def _closed(self, opening: re.Match[str], final: bool) -> tuple[Trigger | None, int] | None:
        first, nothing = opening.end(), (None, self._at + 1)
        limit = first + self.limits.max_chars
        at = max(first, self._at + self._scanned)
        while mark := _DECISIVE.search(self._text, at, limit + 1):
            at = mark.end()
            if mark[0] == "\n":
                if _BLANK_LINE.match(self._text, mark.start()):
                    return nothing
                if not final and not self._text[at:].strip(" \t\r"):
                    at = mark.start()  # the next line may be blank
                    break
            else:
                self._open += 1 if mark[0] == "[" else -1
                if not self._open:
                    return self._made(opening[1], self._text[first : mark.start()]), at
        if final or len(self._text) > limit:
            return nothing
        self._scanned = (at if mark else len(self._text)) - self._at
        return None

    def _bare(self, opening: re.Match[str], final: bool) -> tuple[Trigger | None, int] | None:
        first = opening.end()
        stop = self._text.find("\n", first, first + self.limits.max_chars + 1)
        if stop < 0:
            if len(self._text) - first > self.limits.max_chars:
                return None, self._at + 1
            if not final:
                return None
            stop = len(self._text)
        after = self._text[first:stop].strip().removeprefix(":")
        before = "" if len(self._line) > self.limits.max_chars else self._line
        return self._made(opening[1], after) or self._made(opening[1], before), stop

    def _made(self, kind: str, text: str) -> Trigger | None:
        collapsed = " ".join(text.split())
        return Trigger(kind, collapsed) if collapsed else None

    def _accepts(self, trigger: Trigger, begins: int) -> bool:
        reason = self._objection(trigger, begins)
        if reason:
            self._family.ignored.append((trigger, reason))
            return False
        self._family.seen.add(_plain(trigger.text))
        self._family.num_accepted += 1
        self._last_end = self._num_before
        return True

    def _objection(self, trigger: Trigger, begins: int) -> str:
        limits, last = self.limits, self._last_end
        if self.depth >= limits.max_depth:
            return "too deep"
        if _plain(trigger.text) in self._family.seen:
            return "duplicate"
        if self._family.num_accepted >= limits.max_tasks:
            return "too many"
        if last is not None and begins - last < limits.min_gap_chars:
            return "too often"
        return ""


def _plain(text: str) -> str:
    return text.casefold().rstrip(" .!?,;:")
