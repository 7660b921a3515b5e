"""How thoughts come about in a chat, and how they are shown: as lines, or as a table that is drawn
again while they come along."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from edgecortex import Agent
    from edgecortex.warp.router import Trigger
    from edgecortex.warp.stream import Stream, Thought

MAX_TOKENS = 64  # of a thought, unless an option says otherwise
FRAMES_PER_S = 8
STYLES = {"thinking": "yellow", "accepted": "green", "rejected": "red", "failed": "bold red"}
NUM_FIXED_CELLS = 32  # of a table's row: all but what is asked and what is thought


def verdict_of(thought: "Thought") -> str:
    """What became of a thought, in a line: status, score, reason and text."""
    score = "" if thought.score is None else f" {thought.score:.2f}"
    reason = f" ({thought.reason})" if thought.reason else ""
    text = f": {_one_line(thought.text)}" if thought.text else ""
    return thought.status + score + reason + text


def line_of(number: int, thought: "Thought", max_cells: int | None = None) -> str:
    """A thought in a line that begins with its number, cut where there is no more room."""
    line = Text(f"{number}. {asked_of(thought)} → {verdict_of(thought)}")
    if max_cells:
        line.truncate(max_cells, overflow="ellipsis")
    return line.plain


def asked_of(thought: "Thought", max_cells: int = 40) -> str:
    """What a thought is about, shortened: its role if it has one, else its task."""
    asked = Text(_one_line(thought.role or thought.task))
    asked.truncate(max_cells, overflow="ellipsis")
    return asked.plain


def _one_line(text: str) -> str:
    return " ".join(text.split())


class News:
    """Thoughts that have ended and were not told of yet, each with its number from 1 on."""

    def __init__(self) -> None:
        self._told: set[int] = set()

    def of(self, thoughts: "Sequence[Thought]") -> "list[tuple[int, Thought]]":
        numbered = enumerate(list(thoughts), 1)
        return [(number, t) for number, t in numbered if t.ended and number not in self._told]

    def told(self, thoughts: "Sequence[Thought]") -> "list[tuple[int, Thought]]":
        """The same, and they are told of now."""
        new = self.of(thoughts)
        self._told.update(number for number, _ in new)
        return new


class Listener:
    """Has side agents do what an answer asks for while it is being made.

    They go on when it is over, so that the next one can know what they found: an answer is
    mostly too short for that.
    """

    def __init__(self, agent: "Agent") -> None:
        from edgecortex.warp.router import CortexRouter

        config = agent.think_with().config
        self._agent, self._router = agent, CortexRouter(config.kinds, config.limits)
        self._streams: list[Stream] = []

    def hear(self, piece: str) -> None:
        self._start(self._router.feed(piece))

    def end(self, whole: bool) -> None:
        """The answer is over; what it asked for is let go if it was stopped."""
        if whole:
            self._start(self._router.finish())
            return
        for stream in self._streams:
            stream.close()

    def _start(self, triggers: "Sequence[Trigger]") -> None:
        self._streams += [self._agent.spawn(each.text, kind=each.kind) for each in triggers]


class Watch:
    """Shows on stderr what an agent's Streams think, and beneath it what the agent answers.

    At a terminal that is drawn again as it changes; elsewhere a line says when a thought has
    ended. `planned` are those that may not have begun, in the order in which they will.
    """

    def __init__(self, agent: "Agent", planned: "Sequence[Thought]") -> None:
        self.answer = ""
        self.console = Console(stderr=True, highlight=False, markup=False)
        self._agent, self._planned = agent, planned
        self._over, self._telling, self._news = threading.Event(), threading.Lock(), News()

    @property
    def is_live(self) -> bool:
        return self.console.is_terminal

    @property
    def thoughts(self) -> "list[Thought]":
        """All of them, begun or not."""
        begun = list(self._agent.thoughts)
        return [*begun, *self._planned[len(begun) :]]

    @contextmanager
    def shown(self) -> "Iterator[Watch]":
        """Shows until the block ends; what stays on a terminal is the table."""
        if self.is_live:
            live = Live(
                get_renderable=self._frame,
                console=self.console,
                refresh_per_second=FRAMES_PER_S,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            with live:
                try:
                    yield self
                finally:
                    self._over.set()
            return
        teller = threading.Thread(target=self._tell, daemon=True)
        teller.start()
        try:
            yield self
        finally:
            self._over.set()
            teller.join()

    def tell(self) -> None:
        """Says what has become of thoughts by now, where that is not drawn."""
        with self._telling:
            for number, thought in [] if self.is_live else self._news.told(self.thoughts):
                self.console.print(line_of(number, thought), soft_wrap=True)

    def _tell(self) -> None:
        while not self._over.wait(1 / FRAMES_PER_S):
            self.tell()
        self.tell()

    # At a terminal.

    def _frame(self) -> RenderableType:
        if self._over.is_set():
            return self._table(list(enumerate(self.thoughts, 1)))
        height = self.console.height
        table = self._table(self._newest(height // 2 - 4 if self.answer else height - 7))
        num_lines = len(self.console.render_lines(table, pad=False))
        lines = Text(self.answer).wrap(self.console, self.console.width)
        return Group(table, *lines[-max(1, height - num_lines - 2) :])

    def _newest(self, most: int) -> "list[tuple[int, Thought]]":
        """Numbered thoughts; where they are too many, those that ended are left out first."""
        rows = list(enumerate(self.thoughts, 1))
        urgent = sorted(rows, key=lambda row: (row[1].ended, row[0]))
        return sorted(urgent[: max(1, most)], key=lambda row: row[0])

    def _table(self, rows: "list[tuple[int, Thought]]") -> Table:
        over, hidden = self._over.is_set(), len(self.thoughts) - len(rows)
        free = max(20, self.console.width - NUM_FIXED_CELLS)
        table = Table(expand=True, caption=f"and {hidden} more" if hidden else None)
        for name, width in (("#", 2), ("role or task", 0), ("status", 9), ("score", 5)):
            table.add_column(name, no_wrap=True, min_width=width)
        table.add_column("thought", ratio=1, no_wrap=not over)
        for number, thought in rows:
            score = "" if thought.score is None else f"{thought.score:.2f}"
            room = free - free // 3
            said = _found(thought, 2 * room) if thought.ended else _last(thought, room)
            status = Text(thought.status, STYLES.get(thought.status, "dim"))
            table.add_row(
                f"{number}", Text(asked_of(thought, free // 3)), status, score, Text(said)
            )
        return table


def _found(thought: "Thought", max_cells: int) -> str:
    """What came of a thought: all of it if it was let in, else why not, and how it begins."""
    if thought.status == "accepted":
        return _one_line(thought.text)
    reason = f"({thought.reason}) " if thought.reason else ""
    text = Text(reason + _one_line(thought.text))
    text.truncate(max_cells, overflow="ellipsis")
    return text.plain


def _last(thought: "Thought", max_cells: int) -> str:
    """The end of what has been thought so far, as much as fits."""
    text = _one_line(thought.text)
    if cell_len(text) <= max_cells:
        return text
    kept = text[-max_cells + 1 :]
    while cell_len(kept) > max_cells - 1:
        kept = kept[1:]
    return f"…{kept}"
