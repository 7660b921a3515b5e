"""The part of the council benchmark about speed: a River and Streams that decode in turns, and
both at once."""

import time
from dataclasses import dataclass

from edgecortex.agent import Agent
from edgecortex.bench.council_river import (
    QUESTION,
    open_engine,
    restored,
    step_until_said,
    tasks,
    wait_until_begun,
)
from edgecortex.bench.report import Row
from edgecortex.bench.side import serve
from edgecortex.config import SamplingParams
from edgecortex.core import EngineCore
from edgecortex.errors import EdgeCortexError
from edgecortex.scheduler import Request
from edgecortex.warp.cortex import CortexConfig

MOST = 2048  # tokens that anyone may say
SETTLING = 4  # tokens that are not measured when others begin or rest


@dataclass
class Council:
    """A River and its Streams in the midst of their answers. On the engine's thread."""

    core: EngineCore
    river: Request
    streams: list[Request]

    def rates(self, river: bool, streams: bool, num_tokens: int) -> tuple[float, float]:
        """Lets either or both decode until the first of them has said `num_tokens`, while the
        others rest.

        Returns: tokens per second of the River, and of all Streams together.

        Raises:
            EdgeCortexError: an answer has come to its end.
        """
        self.river.held = not river
        for request in self.streams:
            request.held = not streams
        lead = self.river if river else self.streams[0]
        self._step_until(lead, SETTLING)
        before, start = self._said(), time.perf_counter()
        self._step_until(lead, num_tokens)
        seconds = time.perf_counter() - start
        main, side = (b - a for a, b in zip(before, self._said(), strict=True))
        return main / seconds, side / seconds

    def _step_until(self, lead: Request, num_tokens: int) -> None:
        stats = lead.generation.stats
        stop = stats.num_generated_tokens + num_tokens
        while stats.num_generated_tokens < stop:
            self.core.step()
            ended = {r.generation.stats.finish_reason for r in (self.river, *self.streams)} - {None}
            if ended:
                raise EdgeCortexError(
                    f"expected all to go on decoding, got one that ended: {ended.pop()}; "
                    "measure fewer rounds"
                )

    def _said(self) -> tuple[int, int]:
        counts = [r.generation.stats.num_generated_tokens for r in (self.river, *self.streams)]
        return counts[0], sum(counts[1:])


def beside(path: str, store: str, streams: int, rounds: int, tokens: int) -> list[Row]:
    """In every round the River decodes alone and beside so many Streams, and they without it.

    Raises:
        EdgeCortexError: an answer has come to its end, or there are not that many Streams.
    """
    with open_engine(path, store, streams) as engine:
        council = _begun(restored(engine), streams)
        found = engine.call(lambda: [_round(council, tokens, i % 2 == 1) for i in range(rounds)])
    return [
        {
            "what": "speed",
            "streams": len(council.streams),
            "round": number,
            "river_alone_tok_s": alone[0],
            "river_beside_tok_s": together[0],
            "river_share": together[0] / alone[0],
            "streams_beside_tok_s": together[1],
            "streams_alone_tok_s": apart[1],
        }
        for number, (alone, together, apart) in enumerate(found, 1)
    ]


def _round(council: Council, num_tokens: int, backwards: bool) -> list[tuple[float, float]]:
    """Rates of the River alone, of all together, and of the Streams alone. As contexts grow,
    every other round goes backwards."""
    who = [(True, False), (True, True)] + [(False, True)] * bool(council.streams)
    order = who[::-1] if backwards else who
    found = {pair: council.rates(*pair, num_tokens) for pair in order}
    return [found.get(pair, (0.0, 0.0)) for pair in [*who[:2], (False, True)]]


def _begun(river: Agent, num_streams: int) -> Council:
    """A River that has begun to answer, and Streams that have all said something."""
    engine, core, sampling = river.engine, river.engine.core, SamplingParams(max_tokens=MOST)
    cortex = river.think_with(CortexConfig(sampling=sampling))
    river.chat(QUESTION, sampling)
    main = engine.call(lambda: hold(core, river))
    for task in tasks(num_streams):
        river.spawn(task)
    wait_until_begun(engine, cortex, num_streams)
    side = engine.call(lambda: step_until_said(core, cortex, num_streams, 1))
    return Council(core, main, side)


def hold(core: EngineCore, river: Agent) -> Request:
    """Has the River rest as soon as it has said something."""
    while not (held := [r for r in core.scheduler.running if r.agent is river]):
        core.step()
    while not held[0].generation.token_ids:
        core.step()
    held[0].held = True
    return held[0]


if __name__ == "__main__":
    serve({"beside": beside})
