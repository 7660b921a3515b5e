"""How thoughts are shown: as lines, or as a table that is drawn again while they come along."""

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
    from edgecortex.warp.stream import Thought

FRAMES_PER_S = 8
STYLES = {"thinking": "yellow", "accepted": "green", "rejected": "red", "failed": "bold red"}
NUM_FIXED_CELLS = 36  # of a table's row: all but what is asked and what is thought


def verdict_of(thought: "Thought") -> str:
    """What became of a thought, in a line: status, score, reason and text."""
    score = "" if thought.score is None else f" {thought.score:.2f}"
    reason = f" ({thought.reason})" if thought.reason else ""
    text = f": {_one_line(thought.text)}" if thought.text else ""
    return thought.status + score + reason + text


def asked_of(thought: "Thought", max_cells: int = 40) -> str:
    """What a thought is about, shortened: its role if it has one, else its task."""
    asked = Text(_one_line(thought.role or thought.task))
    asked.truncate(max_cells, overflow="ellipsis")
    return asked.plain


def _one_line(text: str) -> str:
    return " ".join(text.split())


class Watch:
    """Shows on stderr what an agent's Streams think, and beneath it what the agent answers.

    At a terminal that is drawn again as it changes; elsewhere a line says when a thought has
    ended. `planned` are those that may not have begun, in the order in which they will.
    """

    def __init__(self, agent: "Agent", planned: "Sequence[Thought]") -> None:
        self.answer = ""
        self.console = Console(stderr=True, highlight=False, markup=False)
        self._agent, self._planned = agent, planned
        self._over = threading.Event()
        self._num_told = 0

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

    def _tell(self) -> None:
        told: set[int] = set()
        while True:
            over = self._over.wait(1 / FRAMES_PER_S)
            for number, thought in enumerate(self.thoughts, 1):
                if thought.ended and number not in told:
                    told.add(number)
                    self.console.print(
                        f"{number}. {asked_of(thought)}: {verdict_of(thought)}", soft_wrap=True
                    )
            if over:
                return

    # At a terminal.

    def _frame(self) -> RenderableType:
        if self._over.is_set():
            return self._table(list(enumerate(self.thoughts, 1)))
        table = self._table(self._newest(max(1, self.console.height // 2 - 4)))
        num_lines = len(self.console.render_lines(table, pad=False))
        lines = Text(self.answer).wrap(self.console, self.console.width)
        room = max(1, self.console.height - num_lines - 2)
        return Group(table, *lines[-room:])

    def _newest(self, most: int) -> "list[tuple[int, Thought]]":
        """Numbered thoughts; where they are too many, those that ended are left out first."""
        rows = list(enumerate(self.thoughts, 1))
        urgent = sorted(rows, key=lambda row: (row[1].ended, row[0]))
        return sorted(urgent[:most], key=lambda row: row[0])

    def _table(self, rows: "list[tuple[int, Thought]]") -> Table:
        over, hidden = self._over.is_set(), len(self.thoughts) - len(rows)
        free = max(20, self.console.width - NUM_FIXED_CELLS)
        table = Table(expand=True, caption=f"and {hidden} more" if hidden else None)
        for name in ("#", "role or task", "status", "score"):
            table.add_column(name, no_wrap=True)
        table.add_column("thought", ratio=1, no_wrap=not over)
        for number, thought in rows:
            score = "" if thought.score is None else f"{thought.score:.2f}"
            said = _said(thought) if over else _last(_said(thought), free - free // 3)
            status = Text(thought.status, STYLES.get(thought.status, "dim"))
            table.add_row(
                f"{number}", Text(asked_of(thought, free // 3)), status, score, Text(said)
            )
        return table


def _said(thought: "Thought") -> str:
    reason = f" ({thought.reason})" if thought.reason else ""
    return _one_line(thought.text) + reason


def _last(text: str, max_cells: int) -> str:
    """The end of a text, as much as fits."""
    if cell_len(text) <= max_cells:
        return text
    kept = text[-max_cells + 1 :]
    while cell_len(kept) > max_cells - 1:
        kept = kept[1:]
    return f"…{kept}"
