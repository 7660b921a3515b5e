"""Requests for a scheduler without a model: every context is empty, every token the same."""

from collections.abc import Sequence

from edgecortex.config import SamplingParams
from edgecortex.generation import Generation
from edgecortex.kv.context import Context
from edgecortex.scheduler import Request, Scheduler


def request(prompt: int, most: int, side: bool = False, priority: int = 0) -> Request:
    sampling = SamplingParams(max_tokens=most)
    made = Request(object(), [7] * prompt, sampling, Generation(), lambda text, cut: None, None)  # type: ignore[arg-type]
    made.priority, made.side = priority, side
    return made


def admit(request: Request) -> bool:
    request.context = Context(0)
    return True


def feed(scheduler: Scheduler, batch: Sequence[tuple[Request, int]]) -> None:
    """Feeds a step's tokens; whoever is complete leaves."""
    for each, n in batch:
        assert each.context
        each.context.token_ids += each.next_ids(n)
        if each.pending() == 0:
            each.generation.add_token(7, "x")
            if len(each.generation.token_ids) == each.sampling.max_tokens:
                scheduler.remove(each)
