"""Both sides of the decode benchmark, block by block in turns, in one process."""

from collections.abc import Callable
from typing import Any

from edgecortex.bench.decode import GAP, MIXED, ROUNDS, SCENARIOS
from edgecortex.bench.decode_mlx_lm import Theirs
from edgecortex.bench.decode_ours import Agents, Ours, fed, gap, private, shared
from edgecortex.bench.report import Row
from edgecortex.bench.side import serve

FEWER = 2  # times fewer steps are timed of 64 agents
Block = Callable[[int], Row]  # of so many steps


def turns(path: str, num_steps: int, slow: bool) -> dict[str, Any]:
    """`rows` of all scenarios, in each round one of either side; and what ours `said`, by
    scenario.

    Args:
        num_steps: of a block.
        slow: measure all: 64 agents, the gap, and mlx-lm's mixed batch.
    """
    ours, theirs = Ours(path), Theirs(path)
    speakers: dict[str, Agents] = {}
    blocks: dict[tuple[str, str], Block] = {}
    for name, lengths in SCENARIOS.items():
        speakers[name] = ours.agents(lengths)
        blocks["ours", name] = speakers[name].block
        if slow or name != MIXED:
            blocks["mlx_lm", name] = theirs.agents(lengths).block
    rows = in_turns(blocks, num_steps)
    if slow:
        rows += _prefixes(ours, num_steps // FEWER)
        rows.append({"side": "ours", "scenario": GAP, "round": 1, **gap(ours.core())})
    return {"rows": rows, "said": {name: agents.said() for name, agents in speakers.items()}}


def _prefixes(ours: Ours, num_steps: int) -> list[Row]:
    """64 agents on one prefix and 64 on copies of it."""
    one, other = ours.core(), ours.core()
    contexts, memory = shared(one)
    blocks: dict[tuple[str, str], Block] = {
        ("ours", "prefix64"): fed(one, contexts),
        ("ours", "private64"): fed(other, private(other)),
    }
    rows = in_turns(blocks, num_steps)
    return [{**rows[0], "memory_ratio": memory}, *rows[1:]]


def in_turns(blocks: dict[tuple[str, str], Block], num_steps: int) -> list[Row]:
    """Rows of blocks, by side and scenario, one after the other in each round."""
    return [
        {"side": side, "scenario": name, "round": number, **block(num_steps)}
        for number in range(1, ROUNDS + 1)
        for (side, name), block in blocks.items()
    ]


if __name__ == "__main__":
    serve({"turns": turns})
